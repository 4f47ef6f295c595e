package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// slotsWithin bounds the wait for the slot files, in which everything else waits, too.
const slotsWithin = 500 * time.Millisecond

// guarded are the attachments that may send by their own MAC and addresses only, as
// the slot files say it. A pod that another plugin attached is none of them.
func (l *loop) guarded() (all []pod.Guarded, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), slotsWithin)
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

// fitPods gives the links of pods that are there the MTU that new ones get. Those
// whose namespace cannot be entered keep theirs, and their large packets are
// answered with the right size.
func (l *loop) fitPods() {
	if len(l.snapshot.Own.Subnets) == 0 {
		return
	}
	did, err := pod.SetMTU(l.mtu, l.cfg.Bridge, pod.NetnsFolders...)
	l.kernel.Operations += uint64(len(did))
	if len(did) > 0 {
		l.log.Info("MTU of pods changed", "mtu", l.mtu, "pods", len(did), "first", did[0])
		l.journal.event("underlay", fmt.Sprintf("MTU of %d pods is %d", len(did), l.mtu))
	}
	l.unfit = nil
	if err != nil {
		l.unfit = strings.Split(err.Error(), "\n")
	}
}
