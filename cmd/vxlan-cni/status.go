package main

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// statusBound is how long STATUS waits for a lock; containerd asks every five
// seconds, under the lock that every ADD and DEL needs.
const statusBound = 500 * time.Millisecond

// status says whether ADD can succeed: there is a node file, and an address.
// It does not ask for overlayd: a network that is not ready for five minutes
// evicts every pod of the node, and ADD works while the daemon restarts.
func status(args *skel.CmdArgs) error {
	conf, err := parseStrict(args.StdinData)
	if err != nil {
		return err
	}
	node, err := subnet.ReadNodeFile(conf.RunDir)
	if err != nil {
		return fail(types.ErrPluginNotAvailable, "node file: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusBound)
	defer cancel()
	used, err := usage(ctx, conf.RunDir, node.Subnets)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil // busy is not broken
	case err != nil:
		return fail(types.ErrPluginNotAvailable, "%w", err)
	case used.Held >= used.Total:
		return fail(types.ErrPluginNotAvailable, "every address of %v is held (%d)", node.Subnets, used.Held)
	}
	return nil
}

func usage(ctx context.Context, dir string, subnets []netip.Prefix) (ipam.Usage, error) {
	pool, err := ipam.Open(dir, subnets)
	if err != nil {
		return ipam.Usage{}, err
	}
	defer func() { _ = pool.Close() }()
	return pool.Usage(ctx)
}
