package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// After everything that a node goes through, overlayd --cleanup leaves what was
// there before the first start: on a bare node, and on one with bridge, routes and
// rules of others.
func TestCleanupLeavesWhatWasThere(t *testing.T) {
	t.Parallel()
	for _, mode := range firewalls {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := cluster.Options{
				Network: withBackend(`{"Type": "vxlan", "DirectRouting": true}`),
				Options: netlab.Options{Nodes: 3, Far: 1, Flags: []string{"--firewall", mode}},
			}
			c := newCluster(t, o)
			dress(t, c.Nodes[1])
			before := make([]string, len(c.Nodes))
			for i, n := range c.Nodes {
				before[i] = settled(t, n)
			}
			err := errors.Join(c.StartEtcd(), c.Put(t.Context(), "config", o.Network), c.StartDaemons(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			live(t, c)
			if _, err := cleanUp(c.Nodes[0]); err == nil {
				t.Error("cleanup beside a daemon that runs")
			}
			for i, n := range c.Nodes {
				if err := n.Stop(); err != nil {
					t.Fatal(err)
				}
				out, err := cleanUp(n)
				if err != nil {
					t.Fatal(err)
				}
				if out == "" {
					t.Errorf("%s: cleanup says nothing", n.Name)
				}
				if after := everything(t, n); after != before[i] {
					t.Errorf("%s is not as it was:\n%s\ncleanup said:\n%s", n.Name, difference(before[i], after), out)
				}
				if left, err := os.ReadDir(n.RunDir); err == nil && len(left) > 0 {
					t.Errorf("%s: left in the run folder: %v", n.Name, left)
				}
				if _, err := cleanUp(n); err != nil {
					t.Errorf("cleanup again: %v", err)
				}
			}
		})
	}
}

// dress gives a node what is not overlayd's.
func dress(t *testing.T, n *netlab.Node) {
	t.Helper()
	err := errors.Join(n.IP(
		"link add br-other type bridge", "link set br-other up", "address add 172.30.0.1/24 dev br-other",
		"link add other0 type veth peer name other1", "link set other0 master br-other up", "link set other1 up",
		"route add 172.31.0.0/24 via 172.30.0.9 dev br-other onlink", "route add fd01::/64 dev br-other proto 99",
		"neigh add 172.30.0.9 lladdr 02:00:00:00:00:09 dev br-other nud permanent",
	), n.Bridge("fdb add 02:00:00:00:00:09 dev other0 master static"),
		n.NFT("table inet other { set s { type ipv4_addr; elements = { 192.0.2.99 }; }; chain c { type filter hook forward priority 0; ip saddr @s counter drop; }; }"))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		flush(t, n, strings.ReplaceAll(`i -w -N OTHER && i -w -A FORWARD -j OTHER && i -w -A OTHER -p udp --dport 99 -j ACCEPT &&
			i -w -t nat -A POSTROUTING -o lo -j RETURN && i -w -t raw -A PREROUTING -i nothing -j ACCEPT`, "i -w", i+" -w"))
	}
}

// live is what a node goes through: pods, traffic, changes of the underlay, faults.
// Some pods are still there at the end.
func live(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	pods := addPods(t, c, "a", "b")
	mtu := stack{"46", "46"}.mtu(1500)
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, mtu)
	}
	if err := c.Runtimes[0].Delete(t.Context(), pods[0]); err != nil {
		t.Error(err)
	}
	pods = pods[1:]
	if err := c.SetMTU(1400); err != nil {
		t.Fatal(err)
	}
	err := netlab.Eventually(patience, func() error { return mtuIs(&cluster.Cluster{Lab: &netlab.Lab{}}, mtu-100, pods...) })
	if err != nil {
		t.Error(err)
	}
	if err := c.SetMTU(1500); err != nil {
		t.Fatal(err)
	}
	flush(t, c.Nodes[0], "nft flush ruleset", "ip link del "+cluster.Device)
	for _, n := range c.Nodes {
		if err := n.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, 1300)
	}
}

// cleanUp runs overlayd --cleanup on the node and returns what it said.
func cleanUp(n *netlab.Node) (string, error) {
	out, err := n.Command(filepath.Join(binDir, "overlayd"), n.Args("--cleanup")...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: cleanup: %w: %s", n.Name, err, out)
	}
	return string(out), err
}

var counters = regexp.MustCompile(`\[\d+:\d+\]|packets \d+ bytes \d+|[a-z_]+_timer +[0-9.]+`)

// settled is everything once the kernel has got over what was new.
func settled(t *testing.T, n *netlab.Node) (all string) {
	t.Helper()
	err := netlab.Eventually(patience, func() error {
		all = everything(t, n)
		if strings.Contains(all, " tentative") || strings.Contains(all, "br-other: <NO-CARRIER") {
			return fmt.Errorf("%s has not settled:\n%s", n.Name, all)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// everything is what the node's kernel holds, as the tools write it, without what
// was counted and what the kernel learns by itself.
func everything(t *testing.T, n *netlab.Node) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{
		"ip -d link show", "ip address show", "ip rule show", "ip -6 rule show",
		"ip route show table all", "ip -6 route show table all",
		"ip neigh show nud permanent", "ip -6 neigh show nud permanent",
		"bridge -d link show", "bridge fdb show", "bridge mdb show",
		"nft list ruleset", "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save",
	} {
		words := strings.Fields(c)
		out, err := n.Output(words[0], words[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(counters.ReplaceAllString(out, "")) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, c+": "+line)
			}
		}
		if words[0] == "ip" || words[0] == "bridge" {
			slices.Sort(lines) // the kernel's order follows hashes
		}
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	one := func(sign, a, other string) {
		for line := range strings.Lines(a) {
			if !strings.Contains(other, line) {
				b.WriteString(sign + line)
			}
		}
	}
	one("- ", before, after)
	one("+ ", after, before)
	return b.String()
}

// A node that is cleaned up is nobody's peer any more.
func TestCleanupWithdrawsTheNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 2}})
	n := c.Nodes[0]
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := cleanUp(n); err != nil {
		t.Fatal(err)
	}
	for _, r := range records(t, c) {
		if r.Lease.Node == n.Name {
			t.Errorf("the store still has %+v", r)
		}
	}
}
