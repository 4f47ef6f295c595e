package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// delBound is how long DEL waits for locks; removing a link takes the kernel
// some 20 ms on top.
const delBound = 8 * time.Second

// del detaches a pod. It needs neither node file, nor previous result, nor the
// pod's namespace, for any of these may be gone; and what is gone already, or
// never was, is a success.
func del(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), delBound)
	defer cancel()
	turn, err := takeTurn(ctx, conf.RunDir, pod.HostName(args.ContainerID, args.IfName))
	switch {
	case err == nil:
		defer func() { _ = turn.Close() }()
	case !errors.Is(err, fs.ErrNotExist): // without the folder no ADD is at work
		return retryable(explain(err))
	}
	return retryable(detach(ctx, conf.RunDir, ipam.Key{Container: args.ContainerID, IfName: args.IfName}, args.Netns))
}

// detach removes the link and then gives the slot up: after a failure there is
// still something that leads a later DEL or GC here.
//
// A pod that another plugin attached, before this one took the node over, has no
// link of ours. Its interface goes by its name in the pod; where the namespace is
// gone the kernel has removed it. A slot that it shares with another such pod stays,
// until overlayd finds both gone.
func detach(ctx context.Context, dir string, key ipam.Key, netns string) error {
	if _, err := pod.Detach(key.Container, key.IfName); err != nil {
		return explain(fmt.Errorf("detach %s of container %s: %w", key.IfName, key.Container, err))
	}
	// A slot file that cannot be read is told by ReleaseAll.
	slots, _ := ipam.List(ctx, dir)
	for _, s := range slots {
		if !s.Key.OwnedBy(key) || !s.Imported {
			continue
		}
		if _, err := pod.DetachGuest(netns, key.IfName, s.Addrs); err != nil {
			return explain(fmt.Errorf("detach %s of container %s: %w", key.IfName, key.Container, err))
		}
	}
	if _, err := ipam.ReleaseAll(ctx, dir, key); err != nil {
		return explain(fmt.Errorf("release addresses of %s of container %s: %w", key.IfName, key.Container, err))
	}
	return nil
}
