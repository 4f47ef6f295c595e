package node

import (
	"context"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// guarded are the attachments that may send by their own MAC and addresses only, as
// the slot files say it. A pod that another plugin attached is none of them.
func (l *loop) guarded() (all []pod.Guarded, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	slots, err := ipam.List(ctx, l.cfg.RunDir)
	for _, s := range slots {
		if s.Filtered {
			all = append(all, pod.Guarded{Container: s.Key.Container, IfName: s.Key.IfName, MAC: s.MAC, Addrs: s.Addrs})
		}
	}
	return all, err
}

// ensureFilter makes right what pods may send, and returns what was changed, in
// words. vxlan-cni sets it by itself; here it is put back.
func (l *loop) ensureFilter() ([]string, error) { return pod.EnsureFilter(l.guarded) }
