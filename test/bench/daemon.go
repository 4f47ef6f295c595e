package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

const (
	held     = 250
	acquires = 700
	peers    = 1000
	idle     = 20 * time.Second
	firsts   = 50 // first packets
)

// addresses measures the slot file in process.
func (b *bench) addresses(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", netlab.Prefix()+"ipam-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	pool, err := ipam.Open(dir, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	key := func(i int) ipam.Key { return ipam.Key{Container: fmt.Sprint("c", i), IfName: "eth0"} }
	for i := range held {
		if _, err := pool.Acquire(ctx, ipam.Request{Key: key(i)}); err != nil {
			return err
		}
	}
	var times []time.Duration
	for i := range acquires {
		start := time.Now()
		_, err := pool.Acquire(ctx, ipam.Request{Key: key(held + i)})
		if err == nil {
			_, err = pool.Release(ctx, key(held+i))
		}
		if err != nil {
			return err
		}
		times = append(times, time.Since(start))
	}
	p99 := quantile(times, 0.99)
	b.add(Figure{fmt.Sprintf("acquire + release p99, %d held", held), "ms", p99, 0, "≤ 1 ms", p99 <= 1})
	return nil
}

// leases measures the daemon with many peers: time to all routes, memory, and
// wake-ups of the idle process.
func (b *bench) leases(ctx context.Context) (err error) {
	c, err := cluster.New(cluster.Options{Options: netlab.Options{Nodes: 1}, Bin: b.bin})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.StartEtcd(); err != nil {
		return err
	}
	if err := c.Put(ctx, "config", `{"Network": "10.240.0.0/12"}`); err != nil {
		return err
	}
	for i := range peers {
		if err := putLease(ctx, c, i); err != nil {
			return err
		}
	}
	n := c.Nodes[0]
	var times []time.Duration
	for range 5 {
		start := time.Now()
		if err := n.Start(); err != nil {
			return err
		}
		if err := routes(ctx, n, start); err != nil {
			return err
		}
		times = append(times, time.Since(start))
		if len(times) < 5 {
			// From nothing each time: the device goes, and with it all entries.
			if err := errors.Join(n.Stop(), n.IP("link del "+cluster.Device)); err != nil {
				return err
			}
		}
	}
	p50 := quantile(times, 0.5)
	b.add(Figure{fmt.Sprintf("%d leases, process start to all routes, p50", peers), "ms", p50, 0, "≤ 500 ms", p50 <= 500})
	return b.atRest(ctx, n.Daemon().PID)
}

func putLease(ctx context.Context, c *cluster.Cluster, i int) error {
	l := subnet.Lease{
		Node: fmt.Sprint("peer-", i), Backend: "vxlan", MTU: 1450,
		Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 241 + byte(i>>8), byte(i), 0}), 24)},
		VTEPs: []subnet.VTEP{{
			Underlay: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), MAC: subnet.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, VNI: 1,
		}},
	}
	data, err := subnet.EncodeRecord(l)
	if err != nil {
		return err
	}
	return c.Put(ctx, "subnets/"+subnet.Key(l.Subnets), string(data))
}

// routes waits until the kernel has a route to each peer. Reading them costs
// some milliseconds, which count too.
func routes(ctx context.Context, n *netlab.Node, start time.Time) error {
	for time.Since(start) < time.Minute && ctx.Err() == nil {
		out, err := n.Output("ip", "-4", "route", "show", "proto", "77")
		if err == nil && strings.Count(out, "\n") >= peers {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("not all routes after %s:\n%s", time.Since(start), netlab.Tail(n.Log, 20))
}

// atRest reads memory and context switches of the idle daemon.
func (b *bench) atRest(ctx context.Context, pid int) error {
	select {
	case <-time.After(5 * time.Second): // the start's garbage and timers
	case <-ctx.Done():
		return ctx.Err()
	}
	before, err := wakeUps(pid)
	if err != nil {
		return err
	}
	start := time.Now()
	select {
	case <-time.After(idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := wakeUps(pid)
	if err != nil {
		return err
	}
	rate := float64(after-before) / time.Since(start).Seconds()
	b.add(Figure{"idle wake-ups of overlayd, all threads", "/s", rate, 0, "≤ 1 /s", rate <= 1})
	rss, err := field(filepath.Join("/proc", strconv.Itoa(pid), "status"), "VmRSS:")
	if err != nil {
		return err
	}
	mb := float64(rss) / 1024
	b.add(Figure{fmt.Sprintf("RSS of overlayd with %d leases", peers), "MB", mb, 0, "≤ 30 MB", mb <= 30})
	return nil
}

// wakeUps sums the voluntary context switches of all threads.
func wakeUps(pid int) (sum int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("threads of process %d: none", pid)
	}
	for _, t := range tasks {
		n, err := field(t, "voluntary_ctxt_switches:")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// field reads a number from a status file of /proc.
func field(path, name string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// misses flushes the tables before each first packet, in on-miss mode.
func (b *bench) misses(ctx context.Context) (err error) {
	c, err := cluster.New(cluster.Options{Options: netlab.Options{Nodes: 2}, Bin: b.bin})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.StartEtcd(); err != nil {
		return err
	}
	if err := c.Put(ctx, "config", cluster.Network); err != nil {
		return err
	}
	if err := c.StartDaemons(ctx, "--resolve", "on-miss"); err != nil {
		return err
	}
	var pods []*cluster.Pod
	for _, r := range c.Runtimes {
		p, err := r.Add(ctx, "pod", nil)
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	var first []time.Duration
	lost := 0
	for range firsts {
		flush := []string{"neigh", "flush", "dev", cluster.Device, "nud", "permanent"}
		if _, err := c.Nodes[0].Output("ip", flush...); err != nil {
			return err
		}
		report, err := netlab.Ping(ctx, pods[0].NS, netlab.Pings{To: pods[1].Addr, Count: 1})
		if err != nil {
			return err
		}
		lost += report.Lost()
		if report.Lost() == 0 {
			first = append(first, report.RTT())
		}
	}
	b.add(Figure{fmt.Sprintf("first packets lost of %d, on-miss", firsts), "packets", float64(lost), 0, "0", lost == 0})
	b.add(Figure{"first round trip, on-miss, p50", "ms", quantile(first, 0.5), 0, "none", true})
	return nil
}
