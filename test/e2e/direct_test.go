package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// withBackend is a dual-stack network with another backend.
func withBackend(backend string) string {
	return strings.Replace(cluster.NetworkDual, `{"Type": "vxlan"}`, backend, 1)
}

// viaOf is what a node's routes to a pod's addresses lead over: the link of each
// family, as in "eth0 eth0".
func viaOf(n *netlab.Node, to *cluster.Pod) (string, error) {
	var links []string
	for _, a := range to.Addrs {
		out, err := n.Output("ip", "route", "get", a.String())
		if err != nil {
			return "", err
		}
		words := strings.Fields(out)
		i := slices.Index(words, "dev")
		if i < 0 || i+1 >= len(words) {
			return "", fmt.Errorf("route to %s: %s", a, out)
		}
		links = append(links, words[i+1])
	}
	return strings.Join(links, " "), nil
}

const (
	direct   = "eth0 eth0"
	tunneled = cluster.Device + " " + cluster.Device6
)

// wantVia waits until the node reaches the pod so.
func wantVia(t *testing.T, n *netlab.Node, to *cluster.Pod, want string) {
	t.Helper()
	began := time.Now()
	err := netlab.Eventually(patience, func() error {
		via, err := viaOf(n, to)
		if err == nil && via != want {
			err = fmt.Errorf("%s reaches %s by %s, want %s", n.Name, to.Args.ContainerID, via, want)
		}
		return err
	})
	if err != nil {
		t.Error(err, "\n", story(t, n))
	}
	t.Logf("%s reaches %s by %s after %v", n.Name, to.Args.ContainerID, want, time.Since(began))
}

// Two nodes share a link, and the third is behind a router: plain routes between
// the two, the tunnel to and from the third.
func TestDirectRouting(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Options{
		Network: withBackend(`{"Type": "vxlan", "DirectRouting": true}`), Options: netlab.Options{Nodes: 3, Far: 1},
	})
	pods := addPods(t, c, "a")
	for i, n := range c.Nodes {
		for j, p := range pods {
			switch {
			case i == j:
			case i < 2 && j < 2:
				wantVia(t, n, p, direct)
			default:
				wantVia(t, n, p, tunneled)
			}
		}
	}
	mtu := stack{"46", "46"}.mtu(1500)
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, mtu)
	}
	n := c.Nodes[0]
	pings := []*netlab.Pinger{startPings(t, pods[0], pods[1], 10*time.Millisecond), startPings(t, pods[1], pods[0], 10*time.Millisecond)}
	// The way to the other node's addresses leads over the router from now on, and
	// then no more.
	detour := func(verb string) {
		for _, a := range c.Nodes[1].Addrs() {
			if err := n.IP(fmt.Sprintf("route %s %s via %s", verb, a, netlab.Near.Router(a.Is4()))); err != nil {
				t.Fatal(err)
			}
		}
	}
	detour("add")
	wantVia(t, n, pods[1], tunneled)
	wantVia(t, c.Nodes[1], pods[0], direct) // each decides for itself
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods[:2], is4, mtu)
	}
	detour("del")
	wantVia(t, n, pods[1], direct)
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods[:2], is4, mtu)
	}
	// A link that goes away for a moment takes the routes with it.
	if err := n.Flap(); err != nil {
		t.Fatal(err)
	}
	wantVia(t, n, pods[1], direct)
	for _, g := range pings {
		answer(t, g, time.Now())
		if r := g.Stop(); r.Silence() > 10*time.Second {
			t.Errorf("while routes changed: %v", r)
		}
	}
	wantForeignRoutesUndone(t, c, pods)
}

// wantForeignRoutesUndone has somebody delete and bend the plain routes.
func wantForeignRoutesUndone(t *testing.T, c *cluster.Cluster, pods []*cluster.Pod) {
	t.Helper()
	for _, is4 := range []string{"-4", "-6"} {
		command := "ip " + is4 + " route show proto 77 dev eth0 | while read dst rest; do ip " + is4 + " route del $dst proto 77; done"
		flush(t, c.Nodes[0], command)
	}
	wantVia(t, c.Nodes[0], pods[1], direct)
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, stack{"46", "46"}.mtu(1500))
	}
}

// Without a tunnel there is no device, and pods have the underlay's whole MTU. A
// node behind a router cannot be reached, and that is told.
func TestHostGateway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Options: netlab.Options{Nodes: 3, Far: 1}})
	if err := c.StartEtcd(); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(t.Context(), "config", withBackend(`{"Type": "host-gw"}`)); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes {
		if err := n.Ready(cluster.ReadyWithin); err != nil {
			t.Fatal(err)
		}
	}
	pods := addPods(t, c, "a", "b")[:4]
	for i, n := range c.Nodes[:2] {
		wantVia(t, n, pods[2-2*i], direct)
		links, err := n.Links()
		if err != nil || slices.Contains(links, cluster.Device) || slices.Contains(links, cluster.Device6) {
			t.Errorf("%s has links %v %v", n.Name, links, err)
		}
	}
	for _, p := range pods {
		serveEcho(t, p.NS)
	}
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, 1500)
		wantAllSizes(t, pods[0], pods[2].Of(is4), 1500)
	}
	err := netlab.Eventually(patience, func() error {
		peers, err := c.Nodes[0].API().Peers(t.Context())
		if err != nil {
			return err
		}
		for _, p := range peers {
			if far := p.Node == c.Nodes[2].Name; p.InSync == far || far == (len(p.Missing) == 0) {
				return fmt.Errorf("%+v", p)
			}
		}
		if len(peers) != 2 {
			return fmt.Errorf("%d peers, want 2", len(peers))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := c.SetMTU(1400); err != nil {
		t.Fatal(err)
	}
	if err := netlab.Eventually(patience, func() error { return mtuIs(c, 1400, pods...) }); err != nil {
		t.Error(err)
	}
}

// A node that rolls from one backend to the other talks to those that have not
// yet: the lease says how each is reached.
func TestBackendsMix(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Options{
		Network: withBackend(`{"Type": "vxlan"}`), Options: netlab.Options{Nodes: 2},
	})
	pods := addPods(t, c, "a")
	if err := c.Put(t.Context(), "config", withBackend(`{"Type": "vxlan", "DirectRouting": true}`)); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[0].Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantVia(t, c.Nodes[0], pods[1], direct)
	wantVia(t, c.Nodes[1], pods[0], tunneled)
	for _, is4 := range []bool{true, false} {
		wantAllPairs(t, pods, is4, stack{"46", "46"}.mtu(1500))
	}
}
