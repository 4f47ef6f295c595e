package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// healed is the target: how long traffic may be away after any of the faults.
const healed = time.Second

// dev is what others do to a node behind overlayd's back.
const dev = cluster.Device

var faults = []struct {
	name, command string
}{
	{"link down and up", "ip link set " + dev + " down; ip link set " + dev + " up"},
	{"link down", "ip link set " + dev + " down"},
	{"route flush", "ip route flush dev " + dev},
	{"route deletion", "ip route show dev " + dev + " proto 77 | while read dst rest; do ip route del $dst dev " + dev + "; done"},
	{"neighbour flush", "ip neigh flush dev " + dev + " nud all"},
	{"fdb deletions", "bridge fdb show dev " + dev + " | grep ' dst ' | while read mac d dst rest; do bridge fdb del $mac dev " + dev + " $d $dst; done"},
	{"fdb flush", "bridge fdb flush dev " + dev},
	{"wrong fdb destination", "bridge fdb show dev " + dev + " | grep ' dst ' | while read mac rest; do bridge fdb replace $mac dev " + dev + " dst 192.0.2.99 self; done"},
	{"wrong neighbour", "ip neigh show dev " + dev + " | while read ip rest; do ip neigh replace $ip lladdr 0e:00:00:00:00:99 nud permanent dev " + dev + "; done"},
	{"device deletion", "ip link del " + dev},
	{"bridge down and up", "ip link set " + cluster.Bridge + " down; ip link set " + cluster.Bridge + " up"},
	{"bridge address flush", "ip addr flush dev " + cluster.Bridge},
	{"MTU", "ip link set " + dev + " mtu 1000"},
	{"MAC", "ip link set " + dev + " address 0e:00:00:00:00:98"},
}

// Each fault strikes one of two nodes that talk, while they talk, and heals
// without a restart.
func TestFaultsHeal(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, threeNodes(), "--resolve", mode)
			pods := addPods(t, c, "a")
			startPings(t, pods[0], pods[1], time.Second).Stop() // in on-miss mode this brings the entries
			n := c.Nodes[0]
			daemon := n.Daemon()
			for _, f := range faults {
				t.Run(f.name, func(t *testing.T) { heal(t, n, pods[0], pods[1], f.command) })
			}
			if n.Daemon() != daemon || !daemon.Alive() {
				t.Error("overlayd is not the process that it was")
			}
		})
	}
}

// stalled is how long a pinger of 5 ms may be kept from the processor before
// its measurement counts for nothing.
const stalled = 250 * time.Millisecond

func heal(t *testing.T, n *netlab.Node, from, to *cluster.Pod, command string) {
	want := tables(t, n)
	var r netlab.Report
	// Other work on the machine can hold up the pings and the daemon alike: then
	// once more. The third time counts, whatever it is.
	for range 3 {
		r = strike(t, n, from, to, command)
		t.Log(r)
		if r.Stall() < stalled {
			break
		}
	}
	if r.Silence() > healed {
		t.Errorf("%s: traffic was away for %v, want at most %v\n%s", command, r.Silence(), healed, story(t, n))
	}
	err := netlab.Eventually(healed, func() error {
		if have := tables(t, n); have != want {
			return fmt.Errorf("tables before:\n%s\nnow:\n%s", want, have)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", command, err)
	}
}

// strike runs the command while the pods talk, and returns what became of their
// talk.
func strike(t *testing.T, n *netlab.Node, from, to *cluster.Pod, command string) netlab.Report {
	t.Helper()
	g := startPings(t, from, to, 5*time.Millisecond)
	flush(t, n, command)
	answer(t, g, time.Now())
	// A second outage, by the repair itself, would show as another silence.
	wait(t, 200*time.Millisecond)
	return g.Stop()
}

// story is what the node's daemon has to say about its latest repairs.
func story(t *testing.T, n *netlab.Node) string {
	t.Helper()
	status, err := n.API().Status(t.Context())
	if err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("%+v\n%+v", status.Kernel, status.Misses)
	misses, err := n.API().Misses(t.Context())
	if err != nil {
		return err.Error()
	}
	for _, m := range misses[:min(10, len(misses))] {
		text += fmt.Sprintf("\n%+v", m)
	}
	events, err := n.API().Events(t.Context())
	if err != nil {
		return err.Error()
	}
	for _, e := range events[:min(20, len(events))] {
		text += fmt.Sprintf("\n%+v", e)
	}
	return text
}
