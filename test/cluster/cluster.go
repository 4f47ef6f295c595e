package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

const (
	// Prefix is where the network's records stand in etcd; flannel's default.
	Prefix = "/coreos.com/network"

	// Network is the configuration that Start stores.
	Network = `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`

	// Network6 is Network for pods of IPv6.
	Network6 = `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}`

	// NetworkDual is Network for pods of both families.
	NetworkDual = `{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}`

	// Device is overlayd's name for the VXLAN device over an underlay of IPv4.
	Device = "overlay.1"

	// Device6 is the same over one of IPv6.
	Device6 = "overlay-v6.1"

	// Bridge is overlayd's name for the bridge that pods hang on.
	Bridge = "overlay-br0"
)

// ReadyWithin bounds the wait for a daemon to become ready. It needs some ten
// milliseconds; a machine that is busy with other tests needs more.
const ReadyWithin = 15 * time.Second

// Options says what a Cluster is made of.
type Options struct {
	netlab.Options
	Bin     string   // folder of overlayd, overlayctl and vxlan-cni
	Plugins []string // folders of other CNI plugins
	Chain   []Plugin // CNI plugins after vxlan-cni
	Network string   // configuration that Start stores; empty: the constant Network
}

// A Cluster is a lab with an etcd and a container runtime on each node.
type Cluster struct {
	*netlab.Lab
	Bin      string
	Runtimes []*Runtime // one per node

	etcd netlab.Process
}

// New makes a Cluster in which neither etcd nor overlayd runs yet.
func New(o Options) (*Cluster, error) {
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"overlayd", "overlayctl", "vxlan-cni"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return nil, fmt.Errorf("%w; is it built?", err)
		}
	}
	o.Daemon = filepath.Join(bin, "overlayd")
	l, err := netlab.New(o.Options)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: l, Bin: bin}
	for _, n := range l.Nodes {
		r, err := newRuntime(c, n, o)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", n.Name, err), c.Close())
		}
		c.Runtimes = append(c.Runtimes, r)
	}
	return c, nil
}

// Start makes a Cluster, and starts etcd with the configuration Network and
// overlayd on all nodes. It returns when all are ready.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	err = c.StartEtcd()
	if err == nil {
		err = c.Put(ctx, "config", cmp.Or(o.Network, Network))
	}
	if err == nil {
		err = c.StartDaemons(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// StartDaemons starts overlayd, with flags, on all nodes and waits until each
// is ready and sees all others.
func (c *Cluster) StartDaemons(ctx context.Context, flags ...string) error {
	err := c.OnAll(func(n *netlab.Node) error { return n.Start(flags...) })
	if err != nil {
		return err
	}
	return c.Ready(ctx)
}

// Ready waits until overlayd is ready on all nodes and has all others in sync.
func (c *Cluster) Ready(ctx context.Context) error {
	return c.OnAll(func(n *netlab.Node) error {
		if err := n.Ready(ReadyWithin); err != nil {
			return err
		}
		return InSync(ctx, n, len(c.Nodes)-1)
	})
}

// InSync waits until the node's kernel holds all that peers peers need.
func InSync(ctx context.Context, n *netlab.Node, peers int) error {
	err := netlab.Eventually(ReadyWithin, func() error {
		s, err := n.API().Status(ctx)
		if err == nil && (s.Peers.Total != peers || s.Peers.InSync != peers) {
			err = fmt.Errorf("%s: peers in sync %d of %d, want %d", n.Name, s.Peers.InSync, s.Peers.Total, peers)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, netlab.Tail(n.Log, 20))
	}
	return nil
}

// OnAll calls fn for every node at once and joins the errors.
func (c *Cluster) OnAll(fn func(*netlab.Node) error) error {
	errs := make([]error, len(c.Nodes))
	var all sync.WaitGroup
	for i, n := range c.Nodes {
		all.Go(func() { errs[i] = fn(n) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Logs are the ends of the logs of all nodes and of the store.
func (c *Cluster) Logs(lines int) string {
	s := netlab.Tail(filepath.Join(c.Dir, "store.log"), lines)
	for _, n := range c.Nodes {
		s += "\n" + netlab.Tail(n.Log, lines)
	}
	return s
}
