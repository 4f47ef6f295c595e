package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// moved is the target: how long traffic may be away after a node's underlay
// address has changed.
const moved = 2 * time.Second

// A node's underlay changes under running pods: nothing is restarted, and both
// families are back soon, in both directions.
func TestUnderlayChanges(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 3}}, "--resolve", mode)
			pods := addPods(t, c, "a")
			daemon := c.Nodes[0].Daemon()
			number := 100
			for _, is4 := range []bool{true, false} {
				t.Run(fmt.Sprintf("address of IPv4 %t", is4), func(t *testing.T) {
					wantBack(t, c, pods, moved, func() error {
						number++
						return c.Nodes[0].SetAddress(is4, number)
					})
					wantLeased(t, c, c.Nodes[0].Addrs())
				})
			}
			t.Run("link flap", func(t *testing.T) {
				wantBack(t, c, pods, moved, c.Nodes[0].Flap)
			})
			if c.Nodes[0].Daemon() != daemon || !daemon.Alive() {
				t.Error("overlayd is not the process that it was")
			}
		})
	}
}

// wantBack changes something of the first node while its pod and the second node's
// talk, both ways and in both families, and fails the test if that takes longer
// than limit to go on.
func wantBack(t *testing.T, c *cluster.Cluster, pods []*cluster.Pod, limit time.Duration, change func() error) {
	t.Helper()
	var longest time.Duration
	// Other work on the machine can hold up pings and daemons alike: the best of
	// three counts.
	for range 3 {
		var pings []*netlab.Pinger
		for _, pair := range [][2]*cluster.Pod{{pods[0], pods[1]}, {pods[1], pods[0]}} {
			for _, a := range pair[1].Addrs {
				g, err := netlab.StartPings(pair[0].NS, netlab.Pings{To: a, Interval: 5 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				defer g.Stop()
				answer(t, g, time.Now())
				pings = append(pings, g)
			}
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		changed := time.Now()
		for _, g := range pings {
			answer(t, g, changed)
		}
		// A second outage, by what comes later, would show as another silence.
		wait(t, 500*time.Millisecond)
		longest = 0
		for _, g := range pings {
			r := g.Stop()
			t.Log(r)
			longest = max(longest, r.Silence())
		}
		if longest <= limit {
			return
		}
	}
	t.Errorf("traffic was away for %v, want at most %v\n%s\n%s", longest, limit, story(t, c.Nodes[0]), story(t, c.Nodes[1]))
}

// wantLeased fails the test unless the other nodes know the first one by these
// addresses.
func wantLeased(t *testing.T, c *cluster.Cluster, want []netip.Addr) {
	t.Helper()
	err := netlab.Eventually(patience, func() error {
		leases, err := c.Nodes[1].API().Leases(t.Context())
		if err != nil {
			return err
		}
		for _, l := range leases {
			var have []netip.Addr
			for _, v := range l.VTEPs {
				have = append(have, v.Underlay)
			}
			if l.Node == c.Nodes[0].Name && slices.Equal(have, want) {
				return nil
			}
		}
		return fmt.Errorf("%s is leased as %+v, want %v", c.Nodes[0].Name, leases, want)
	})
	if err != nil {
		t.Error(err)
	}
}

// Without --iface the underlay is where the default route leads, also when that
// is moved.
func TestDefaultRouteMoves(t *testing.T) {
	t.Parallel()
	o := cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 2, AnyIface: true}}
	c := startCluster(t, o)
	pods := addPods(t, c, "a")
	n := c.Nodes[0]
	second, err := c.Plug(n, "eth1")
	if err != nil {
		t.Fatal(err)
	}
	move := func(link string, s netlab.Segment) error {
		var lines []string
		for _, is4 := range []bool{true, false} {
			lines = append(lines, netlab.DefaultRoute(s.Router(is4), link))
		}
		return n.IP(lines...)
	}
	first := n.Addrs()
	to := []func() error{
		func() error { return move("eth1", netlab.Far) },
		func() error { return move("eth0", netlab.Near) },
	}
	turn := 0
	wantBack(t, c, pods, moved, func() error {
		turn++
		return to[(turn-1)%2]()
	})
	wantLeased(t, c, [][]netip.Addr{first, second}[turn%2])
	s, err := n.API().Status(t.Context())
	if err != nil || !slices.Equal(s.Underlay.Addresses, [][]netip.Addr{first, second}[turn%2]) || s.Underlay.Reason == "" {
		t.Errorf("status: %+v %v", s.Underlay, err)
	}
}

// Each flag that chooses the underlay, on a node with two interfaces.
func TestUnderlayIsChosen(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 1, AnyIface: true}})
	n := c.Nodes[0]
	second, err := c.Plug(n, "eth1")
	err = errors.Join(err, c.StartEtcd(), c.Put(t.Context(), "config", cluster.NetworkDual))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		flags []string
		link  string
		addrs []netip.Addr
	}{
		{nil, "eth0", n.Addrs()},
		{[]string{"--iface", "eth1"}, "eth1", second},
		{[]string{"--iface", "eth9,eth1"}, "eth1", second},
		{[]string{"--iface", second[1].String()}, "eth1", second},
		{[]string{"--iface-regex", "^eth[1-9]$"}, "eth1", second},
		{[]string{"--iface-can-reach", "198.51.100.77"}, "eth1", second},
		{[]string{"--public-ip", "192.0.2.200", "--public-ipv6", "2001:db8::200"}, "eth0", []netip.Addr{
			netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::200"),
		}},
	} {
		if err := errors.Join(n.Start(want.flags...), n.Ready(cluster.ReadyWithin)); err != nil {
			t.Fatal(err)
		}
		s, err := n.API().Status(t.Context())
		if err != nil || s.Underlay.Interface != want.link || s.Underlay.Reason == "" {
			t.Errorf("%q: %+v %v, want %s", want.flags, s.Underlay, err, want.link)
		}
		var have []netip.Addr
		for _, v := range s.Lease.VTEPs {
			have = append(have, v.Underlay)
		}
		if !slices.Equal(have, want.addrs) {
			t.Errorf("%q: leased as %v, want %v", want.flags, have, want.addrs)
		}
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
