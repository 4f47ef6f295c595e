package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

const (
	nodes       = 3
	podsPerNode = 2
	pairs       = nodes * podsPerNode * (nodes*podsPerNode - 1)

	// pingsPerPair is more than one, because the first of a pair may find its
	// neighbour missing and the second may not.
	pingsPerPair = 3
)

// A demo is one run.
type demo struct {
	out   io.Writer
	began time.Time
	bin   string
	keep  bool

	c    *cluster.Cluster
	pods []pod
	result
}

// result is what the last line says.
type result struct {
	reachable int
	lost      int
	healed    time.Duration // 0: it did not
}

func (r result) good() bool { return r.reachable == pairs && r.lost == 0 && r.healed > 0 }

func (r result) String() string {
	healed := "not healed after flush"
	if r.healed > 0 {
		healed = fmt.Sprintf("healed after flush in %.1f ms", float64(r.healed.Microseconds())/1000)
	}
	return fmt.Sprintf("demo: %d/%d pairs reachable, %d lost, %s", r.reachable, pairs, r.lost, healed)
}

// A pod and the runtime of the node that it is on.
type pod struct {
	*cluster.Pod
	on *cluster.Runtime
}

func (p pod) label() string { return p.on.Node.Name + "-" + p.Name }

// main runs the demo and returns the exit status.
func (d *demo) main(ctx context.Context) int {
	err := d.run(ctx)
	if d.c != nil && (err != nil || !d.keep) {
		if err != nil {
			d.print("%s", d.c.Logs(10))
		}
		err = errors.Join(err, d.close())
	}
	if err != nil {
		d.print("\nfailed: %v", err)
	}
	d.print("%s", d.result)
	if err != nil || !d.good() {
		return 1
	}
	return 0
}

func (d *demo) run(ctx context.Context) error {
	steps := []func(context.Context) error{d.up, d.leases, d.attach, d.pingAll, d.flush}
	if d.keep {
		steps = append(steps, d.explain)
	} else {
		steps = append(steps, d.detach)
	}
	for _, step := range steps {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// up makes the lab. The last node resolves on miss, so that the flush shows the
// kernel's questions; the others hold all entries from the start.
func (d *demo) up(ctx context.Context) (err error) {
	d.step("making %d nodes on an underlay of their own, 192.0.2.0/24", nodes)
	d.c, err = cluster.New(cluster.Options{Bin: d.bin, Options: netlab.Options{Name: "demo", Nodes: nodes, Keep: d.keep}})
	if err != nil {
		return err
	}
	d.step("starting etcd on %s", d.c.StoreAddr())
	if err := d.c.StartEtcd(); err != nil {
		return err
	}
	if err := d.c.Put(ctx, "config", cluster.Network); err != nil {
		return err
	}
	d.step("starting overlayd on each node; the last one with --resolve on-miss")
	for i, n := range d.c.Nodes {
		mode := "eager"
		if i == nodes-1 {
			mode = "on-miss"
		}
		if err := n.Start("--resolve", mode); err != nil {
			return err
		}
	}
	if err := d.c.Ready(ctx); err != nil {
		return err
	}
	d.step("all ready")
	return nil
}

func (d *demo) leases(ctx context.Context) error { return d.overlayctl(ctx, d.c.Nodes[0], "leases") }

func (d *demo) attach(ctx context.Context) error {
	d.step("attaching %d pods to each node with libcni and vxlan-cni", podsPerNode)
	for _, r := range d.c.Runtimes {
		for i := range podsPerNode {
			at := time.Now()
			p, err := r.Add(ctx, string(rune('a'+i)), nil)
			if err != nil {
				return err
			}
			d.pods = append(d.pods, pod{p, r})
			d.print("  %s  %-12s %5.1f ms", d.pods[len(d.pods)-1].label(), p.Addr, time.Since(at).Seconds()*1000)
		}
	}
	return nil
}

// pingAll pings every ordered pair of pods and prints the median round trips.
func (d *demo) pingAll(ctx context.Context) error {
	d.step("pinging all %d ordered pairs, %d times each; median round trips in ms:", pairs, pingsPerPair)
	var table strings.Builder
	fmt.Fprintf(&table, "  %-9s", "from \\ to")
	for _, to := range d.pods {
		fmt.Fprintf(&table, " %6s", to.label())
	}
	for _, from := range d.pods {
		fmt.Fprintf(&table, "\n  %-9s", from.label())
		for _, to := range d.pods {
			if from == to {
				fmt.Fprintf(&table, " %6s", "-")
				continue
			}
			r, err := netlab.Ping(ctx, from.NS, netlab.Pings{To: to.Addr, Count: pingsPerPair, Interval: 2 * time.Millisecond})
			if err != nil {
				return err
			}
			d.lost += r.Lost()
			if r.Lost() == r.Sent() {
				fmt.Fprintf(&table, " %6s", "none")
				continue
			}
			d.reachable++
			fmt.Fprintf(&table, " %6.2f", r.RTT().Seconds()*1000)
		}
	}
	d.print("%s", table.String())
	return nil
}

// flush empties the tables of the last node and pings at once.
func (d *demo) flush(ctx context.Context) error {
	from := d.pods[len(d.pods)-1]
	n := from.on.Node
	d.step("flushing the neighbours and the FDB of %s on %s, and pinging at once:", cluster.Device, n.Name)
	before, err := n.API().Status(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(
		n.IP("neigh flush dev "+cluster.Device+" nud all"),
		n.Bridge("fdb flush dev "+cluster.Device),
	)
	if err != nil {
		return err
	}
	flushed := time.Now()
	var healed time.Duration
	for _, to := range d.pods[:podsPerNode*(nodes-1)] {
		if to.Name != "a" {
			continue // behind the same entries as its neighbour
		}
		at := time.Now()
		r, err := netlab.Ping(ctx, from.NS, netlab.Pings{To: to.Addr, Count: 100, Interval: time.Millisecond})
		if err != nil {
			return err
		}
		d.lost += r.Lost()
		back, ok := r.AnsweredAfter(at)
		if !ok {
			d.print("  %s to %s: no answer", from.label(), to.label())
			return fmt.Errorf("%s does not reach %s after the flush", from.label(), to.label())
		}
		d.print("  %s to %s: %d sent, %d lost, first answer after %.2f ms, then %.2f ms", from.label(), to.label(),
			r.Sent(), r.Lost(), back.Seconds()*1000, r.RTT().Seconds()*1000)
		healed = max(healed, back)
	}
	return d.misses(ctx, n, flushed, before, healed)
}

// misses shows what the kernel asked since the flush; without a question that
// was answered nothing was healed by us.
func (d *demo) misses(ctx context.Context, n *netlab.Node, since time.Time, before api.Status, healed time.Duration) error {
	after, err := n.API().Status(ctx)
	if err != nil {
		return err
	}
	all, err := n.API().Misses(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Time.Before(since) {
			continue
		}
		what := m.MAC
		if m.Addr.IsValid() {
			what = m.Addr.String()
		}
		d.print("  %s  %s %-12s node %s, answered %t in %d µs", m.Time.Format("15:04:05.000000"), m.Kind, what, m.Node, m.Answered, m.Micros)
	}
	answered := after.Misses.Answered - before.Misses.Answered
	d.print("  misses answered: %d, unknown: %d", answered, after.Misses.Unknown-before.Misses.Unknown)
	if answered == 0 {
		return errors.New("no miss was answered after the flush")
	}
	d.healed = healed
	return nil
}

// detach deletes all pods and looks for what they left.
func (d *demo) detach(ctx context.Context) error {
	d.step("deleting all pods")
	var errs []error
	for _, p := range d.pods {
		errs = append(errs, p.on.Delete(ctx, p.Pod))
	}
	d.pods = nil
	d.step("looking for what is left: links, slots, addresses")
	for _, n := range d.c.Nodes {
		links, slots, err := left(ctx, n)
		if err == nil && len(links)+slots > 0 {
			err = fmt.Errorf("%s: left: links %v, %d slots", n.Name, links, slots)
		}
		d.print("  %s: %d links, %d slots and addresses", n.Name, len(links), slots)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// left lists the links that belong to pods and counts the slots that are held.
func left(ctx context.Context, n *netlab.Node) (links []string, slots int, err error) {
	all, err := n.Links()
	if err != nil {
		return nil, 0, err
	}
	for _, l := range all {
		switch l {
		case "lo", "eth0", cluster.Device, cluster.Bridge:
		default:
			links = append(links, l)
		}
	}
	pods, err := n.API().Pods(ctx)
	return links, len(pods), err
}

// explain says how to use a lab that stays up.
func (d *demo) explain(context.Context) error {
	d.step("the lab stays up (KEEP=1)")
	n := d.c.Nodes[0]
	d.print("  enter a node:  ip netns exec %s bash", n.Namespace.Name)
	d.print("  enter a pod:   ip netns exec %s bash", d.pods[0].NS.Name)
	d.print("  ask overlayd:  %s --run-dir %s status", filepath.Join(d.bin, "overlayctl"), n.RunDir)
	d.print("  its log:       %s", n.Log)
	d.print("  remove it:     make lab-down")
	return nil
}

func (d *demo) close() error {
	d.step("stopping and removing the lab")
	err := d.c.Close()
	if err == nil {
		d.step("nothing is left of %s", d.c.ID)
	}
	return err
}

// overlayctl runs the operator's command line as a user would.
func (d *demo) overlayctl(ctx context.Context, n *netlab.Node, args ...string) error {
	d.step("overlayctl %s on %s:", strings.Join(args, " "), n.Name)
	cmd := exec.CommandContext(ctx, filepath.Join(d.c.Bin, "overlayctl"), append([]string{"--run-dir", n.RunDir}, args...)...)
	out, err := cmd.CombinedOutput()
	d.print("  %s", strings.ReplaceAll(strings.TrimRight(string(out), "\n"), "\n", "\n  "))
	if err != nil {
		return fmt.Errorf("overlayctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (d *demo) step(format string, args ...any) {
	d.print("[%6.3f s] %s", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) print(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }
