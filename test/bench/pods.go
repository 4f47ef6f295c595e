package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

const (
	rounds   = 40 // sequential ADDs of each kind
	parallel = 30
	waves    = 5 // of parallel ADDs
)

// A chain is one way to attach pods on a node: ours or the reference.
type chain struct {
	runtime *cluster.Runtime
	list    *libcni.NetworkConfigList
	adds    []time.Duration
	dels    []time.Duration
	rates   []time.Duration // of a whole wave
}

// referenceList is what most small clusters run: the plugins bridge and
// host-local of containernetworking/plugins.
func referenceList(dir string) (*libcni.NetworkConfigList, error) {
	return libcni.ConfListFromBytes(fmt.Appendf(nil, `{
		"cniVersion": "1.0.0", "name": "reference", "plugins": [{
			"type": "bridge", "bridge": "ref0", "isGateway": true, "hairpinMode": true,
			"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.99.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
		}]}`, dir))
}

// pods measures ADD and DEL, our way and the reference's in turn, on two nodes
// that differ in nothing else.
func (b *bench) pods(ctx context.Context) (err error) {
	for _, p := range []string{"bridge", "host-local"} {
		if _, err := os.Stat(filepath.Join(b.plugins, p)); err != nil {
			return fmt.Errorf("%w: `make bench` builds it", err)
		}
	}
	plugins, err := filepath.Abs(b.plugins)
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cluster.Options{
		Options: netlab.Options{Nodes: 2}, Bin: b.bin, Plugins: []string{plugins},
		// Room for all pods of the run: a released address rests for two minutes.
		Network: `{"Network": "10.240.0.0/12", "SubnetLen": 23}`,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	list, err := referenceList(filepath.Join(c.Dir, "host-local"))
	if err != nil {
		return err
	}
	ours := &chain{runtime: c.Runtimes[0], list: c.Runtimes[0].List}
	reference := &chain{runtime: c.Runtimes[1], list: list}
	both := []*chain{ours, reference}
	if err := b.sequential(ctx, c, both); err != nil {
		return err
	}
	if err := b.waves(ctx, c, both); err != nil {
		return err
	}
	o, r := quantile(ours.adds, 0.5), quantile(reference.adds, 0.5)
	b.add(Figure{"ADD p50", "ms", o, r, "≤ 1/2 of the reference", o <= r/2})
	o, r = quantile(ours.adds, 0.99), quantile(reference.adds, 0.99)
	b.add(Figure{"ADD p99", "ms", o, r, "none", true})
	o, r = quantile(ours.dels, 0.5), quantile(reference.dels, 0.5)
	b.add(Figure{"DEL p50", "ms", o, r, "none", true})
	rate := func(ch *chain) float64 { return parallel / (quantile(ch.rates, 0.5) / 1000) }
	o, r = rate(ours), rate(reference)
	b.add(Figure{fmt.Sprintf("%d parallel ADDs", parallel), "/s", o, r, "≥ 3× the reference", o >= 3*r})
	return nil
}

// sequential takes turns, and in each turn the other begins.
func (b *bench) sequential(ctx context.Context, c *cluster.Cluster, both []*chain) error {
	for i := range rounds {
		for j := range both {
			ch := both[(i+j)%len(both)]
			name := fmt.Sprintf("s%d-%s", i, ch.runtime.Node.Name)
			ns, err := c.NewPod(name)
			if err != nil {
				return err
			}
			add, err := ch.add(ctx, name, ns)
			if err != nil {
				return err
			}
			del, err := ch.del(ctx, name, ns)
			if err != nil {
				return err
			}
			// The first makes the bridge and warms the page cache.
			if i > 0 {
				ch.adds, ch.dels = append(ch.adds, add), append(ch.dels, del)
			}
			if err := c.RemovePod(ns); err != nil {
				return err
			}
		}
	}
	return nil
}

// waves adds many pods at once.
func (b *bench) waves(ctx context.Context, c *cluster.Cluster, both []*chain) error {
	for w := range waves {
		for j := range both {
			ch := both[(w+j)%len(both)]
			pods := map[string]*netlab.Namespace{}
			for i := range parallel {
				name := fmt.Sprintf("w%d-%d-%s", w, i, ch.runtime.Node.Name)
				ns, err := c.NewPod(name)
				if err != nil {
					return err
				}
				pods[name] = ns
			}
			took, err := each(pods, func(name string, ns *netlab.Namespace) error {
				_, err := ch.add(ctx, name, ns)
				return err
			})
			if err != nil {
				return err
			}
			ch.rates = append(ch.rates, took)
			_, err = each(pods, func(name string, ns *netlab.Namespace) error {
				_, err := ch.del(ctx, name, ns)
				return errors.Join(err, c.RemovePod(ns))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// each calls fn for all pods at once and returns how long that took.
func each(pods map[string]*netlab.Namespace, fn func(string, *netlab.Namespace) error) (time.Duration, error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	start := time.Now()
	for name, ns := range pods {
		all.Go(func() {
			if err := fn(name, ns); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return time.Since(start), errors.Join(slices.Clip(errs)...)
}

func (ch *chain) add(ctx context.Context, name string, ns *netlab.Namespace) (took time.Duration, err error) {
	err = ch.runtime.Node.Do(func() error {
		start := time.Now()
		_, err := ch.runtime.CNI(nil).AddNetworkList(ctx, ch.list, ch.runtime.Args(name, ns.Path()))
		took = time.Since(start)
		return err
	})
	return took, err
}

func (ch *chain) del(ctx context.Context, name string, ns *netlab.Namespace) (took time.Duration, err error) {
	err = ch.runtime.Node.Do(func() error {
		start := time.Now()
		err := ch.runtime.CNI(nil).DelNetworkList(ctx, ch.list, ch.runtime.Args(name, ns.Path()))
		took = time.Since(start)
		return err
	})
	return took, err
}
