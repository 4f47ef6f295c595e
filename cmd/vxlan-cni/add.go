package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

const (
	// addBound is how long ADD waits in all, for the node file, a lock or an
	// address. kubelet tries a failed ADD again only after 10 to 15 seconds, so
	// waiting is quicker; but while a plugin hangs containerd does nothing else.
	addBound = 15 * time.Second

	// nodeFilePoll is how often ADD looks for a node file that is not there. It
	// is missing only from a node's boot to its first lease.
	nodeFilePoll = 100 * time.Millisecond

	// undoBound is how long a failed ADD waits to give its slot back.
	undoBound = 3 * time.Second
)

// An addition is what one ADD asks for.
type addition struct {
	conf netConf
	prev *current.Result // of the plugins before us; nil: we are the first
	want wanted
	pod  pod.Attachment // without what node file and slot say
}

// add attaches a pod: node file, slot, bridge, link pair, result.
func add(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), addBound)
	defer cancel()
	a, err := newAddition(args)
	if err != nil {
		return err
	}
	node, err := waitNodeFile(ctx, a.conf.RunDir)
	if err != nil {
		return err
	}
	turn, err := takeTurn(ctx, a.conf.RunDir, pod.HostName(a.pod.Container, a.pod.IfName))
	if err != nil {
		return explain(err)
	}
	defer func() { _ = turn.Close() }()
	pool, err := ipam.Open(a.conf.RunDir, node.Subnets)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = pool.Close() }()
	pool.Warn = func(err error) {
		fmt.Fprintf(os.Stderr, "vxlan-cni: addresses of an earlier lease are not known to be free: %v\n", err)
	}
	return explain(a.run(ctx, node, pool))
}

func newAddition(args *skel.CmdArgs) (addition, error) {
	conf, err := parseStrict(args.StdinData)
	if err != nil {
		return addition{}, err
	}
	env, err := parseArgs(args.Args)
	if err != nil {
		return addition{}, err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return addition{}, err
	}
	want := conf.want(args.IfName, env.Want)
	return addition{conf: conf, prev: prev, want: want, pod: pod.Attachment{
		Container: args.ContainerID,
		IfName:    args.IfName,
		Netns:     args.Netns,
		Network:   conf.Name,
		Pod:       env.Pod,
		MAC:       want.MAC,
		Hairpin:   conf.Hairpin,
		Filter:    conf.Filter,
	}}, nil
}

// run writes the slot first, so that whatever ends the process leaves something
// that DEL and GC find by container id. On failure it leaves nothing.
func (a addition) run(ctx context.Context, node subnet.NodeFile, pool *ipam.Pool) (err error) {
	bridge := nodeBridge(node)
	if bytes.Equal(a.want.MAC, bridge.MAC()) {
		return fail(types.ErrInvalidNetworkConfig, "requested MAC %s: is that of bridge %s, the pod's gateway", a.want.MAC, bridge.Name)
	}
	slot, err := acquire(ctx, pool, ipam.Request{
		Key: a.key(), Pod: a.pod.Pod, Addrs: a.want.Addrs, MAC: a.want.MAC, Filtered: a.pod.Filter,
	})
	if err != nil {
		return err
	}
	success, attached := false, false
	defer func() {
		if !success {
			err = errors.Join(err, a.undo(pool, slot, attached))
		}
	}()
	ensured, err := bridge.Ensure()
	if err != nil {
		return err
	}
	a.pod.Addrs, a.pod.Gateways, a.pod.MTU = inSubnets(slot.Addrs, node.Subnets), gateways(bridge), node.MTU
	link, err := pod.Attach(a.pod, ensured)
	if err != nil {
		return err
	}
	attached = true
	if err := types.PrintResult(a.result(bridge, ensured, link), a.conf.Version); err != nil {
		return fail(types.ErrIOFailure, "write result: %w", err)
	}
	success = true
	return nil
}

func (a addition) key() ipam.Key {
	return ipam.Key{Container: a.pod.Container, IfName: a.pod.IfName}
}

// undo takes back what run did. The slot goes only after the link is gone. An
// attachment that stood before keeps both.
func (a addition) undo(pool *ipam.Pool, slot ipam.Slot, attached bool) error {
	if attached {
		if _, err := pod.Detach(a.pod.Container, a.pod.IfName); err != nil {
			return err
		}
	} else if stands, err := pod.Attached(a.pod.Container, a.pod.IfName); stands || err != nil {
		return err
	}
	// The bound of the waiting must not keep the slot.
	ctx, cancel := context.WithTimeout(context.Background(), undoBound)
	defer cancel()
	return pool.Cancel(ctx, slot)
}

// waitNodeFile reads the node file, and waits for one that is not there yet.
func waitNodeFile(ctx context.Context, dir string) (subnet.NodeFile, error) {
	tick := time.NewTicker(nodeFilePoll)
	defer tick.Stop()
	for {
		node, err := subnet.ReadNodeFile(dir)
		if err == nil {
			return node, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return subnet.NodeFile{}, fail(codeNodeFile, "node file: %w", err)
		}
		select {
		case <-ctx.Done():
			return subnet.NodeFile{}, fail(types.ErrTryAgainLater,
				"node file %s: there is none, %s long; overlayd writes it when it holds a lease",
				filepath.Join(dir, subnet.NodeFileName), addBound)
		case <-tick.C:
		}
	}
}

// An acquirer is the pool of the node's slots.
type acquirer interface {
	Acquire(context.Context, ipam.Request) (ipam.Slot, error)
}

// acquire takes a slot. Where all that are not held rest, it waits for the one
// that is free next, if that is within the bound.
func acquire(ctx context.Context, pool acquirer, req ipam.Request) (slot ipam.Slot, err error) {
	for {
		slot, err = pool.Acquire(ctx, req)
		var full *ipam.ExhaustedError
		if !errors.As(err, &full) || full.Resting == 0 {
			return slot, err
		}
		deadline, _ := ctx.Deadline()
		if time.Until(deadline) <= full.Next {
			return ipam.Slot{}, err
		}
		select {
		case <-ctx.Done():
			return ipam.Slot{}, err
		case <-time.After(full.Next):
		}
	}
}
