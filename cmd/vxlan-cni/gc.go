package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// gcBound is how long GC may take; the next one goes on where it stopped.
const gcBound = 60 * time.Second

// gc removes the links and slots of this network that belong to no attachment
// that the runtime lists. It attempts all and reports at the end.
func gc(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	list, ok, err := conf.attachments()
	if err != nil {
		return err
	}
	if !ok {
		return fail(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments: missing; GC would remove every attachment")
	}
	ctx, cancel := context.WithTimeout(context.Background(), gcBound)
	defer cancel()
	ports, err := pod.List()
	if err != nil {
		return explain(err)
	}
	slots, err := ipam.List(ctx, conf.RunDir)
	// A slot file that cannot be read must not keep the links of others.
	errs := []error{err}
	for _, stale := range staleAttachments(conf.Name, list, ports, withoutGuests(conf.RunDir, slots)) {
		errs = append(errs, stale.remove(ctx, conf.RunDir))
	}
	return retryable(explain(errors.Join(errs...)))
}

// withoutGuests takes out the slots of pods that another plugin attached and that
// may live: the runtime may list them under another network's name. Without
// knowledge of the bridge it takes out all of them.
func withoutGuests(dir string, slots []ipam.Entry) []ipam.Entry {
	if !slices.ContainsFunc(slots, func(s ipam.Entry) bool { return s.Imported }) {
		return slots
	}
	node, err := subnet.ReadNodeFile(dir)
	var bridge pod.BridgeState
	if err == nil {
		bridge, _, err = pod.ReadBridge(node.Bridge)
	}
	return slices.DeleteFunc(slots, func(s ipam.Entry) bool {
		return s.Imported && (err != nil || bridge.MayLive(s.Addrs, node.Subnets))
	})
}

// A stale attachment is one that nobody wants any more. One of the two may be
// missing: a link that tells no container, or a slot without a link.
type stale struct {
	link string
	key  ipam.Key
}

// remove takes the turn of the attachment. An ADD that was at work when links and
// slots were listed is done by then: what it made complete stays.
func (s stale) remove(ctx context.Context, dir string) error {
	name := s.link
	if name == "" {
		name = pod.HostName(s.key.Container, s.key.IfName)
	}
	turn, err := takeTurn(ctx, dir, name)
	switch {
	case err == nil:
		defer func() { _ = turn.Close() }()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if complete, err := s.completed(); complete || err != nil {
		return err
	}
	if s.link != "" {
		if _, err := pod.Remove(s.link); err != nil {
			return err
		}
	}
	if s.key == (ipam.Key{}) {
		return nil
	}
	// A link that bore the alias of another attachment was not that one's.
	if stands, err := pod.Attached(s.key.Container, s.key.IfName); stands || err != nil {
		return err
	}
	// What an ADD left that was killed before there was a link.
	if _, err := pod.Detach(s.key.Container, s.key.IfName); err != nil {
		return err
	}
	if _, err := ipam.ReleaseAll(ctx, dir, s.key); err != nil {
		return fmt.Errorf("release addresses of %s of container %s: %w", s.key.IfName, s.key.Container, err)
	}
	return nil
}

// completed says whether a slot without a link has got one by now, or a link
// without an owner has one.
func (s stale) completed() (bool, error) {
	if s.link == "" {
		return pod.Attached(s.key.Container, s.key.IfName)
	}
	if s.key != (ipam.Key{}) {
		return false, nil
	}
	ports, err := pod.List()
	return slices.ContainsFunc(ports, func(p pod.Port) bool { return p.HostName == s.link && p.Container != "" }), err
}

// staleAttachments compares what is there with what is valid. The list is that
// of one network, so links of another stay, and slots that belong to them. A
// slot without a link is a leak whoever left it.
func staleAttachments(network string, list []types.GCAttachment, ports []pod.Port, slots []ipam.Entry) []stale {
	valid, keep := map[string]bool{}, map[ipam.Key]bool{}
	for _, a := range list {
		valid[pod.HostName(a.ContainerID, a.IfName)] = true
		keep[ipam.Key{Container: a.ContainerID, IfName: a.IfName}] = true
	}
	var found []stale
	for _, p := range ports {
		key := ipam.Key{Container: p.Container, IfName: p.IfName}
		switch {
		case valid[p.HostName], valid[pod.HostName(p.Container, p.IfName)]: // it may have been renamed
		case p.Container != "" && p.Network != network:
			keep[key] = true
		default:
			found = append(found, stale{link: p.HostName, key: key})
			keep[key] = true // found once is enough
		}
	}
	for _, s := range slots {
		if !keep[s.Key] {
			found = append(found, stale{key: s.Key})
		}
	}
	return found
}
