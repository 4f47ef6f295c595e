package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

func threeNodes() cluster.Options {
	return cluster.Options{Options: netlab.Options{Nodes: 3}}
}

func TestAllPairsReachEachOther(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, threeNodes(), "--resolve", mode)
			pods := addPods(t, c, "a", "b")
			for _, from := range pods {
				for _, to := range pods {
					// The first ping of a pair counts too: none may be lost.
					r, err := netlab.Ping(t.Context(), from.NS, netlab.Pings{To: to.Addr, Count: 2, Interval: time.Millisecond})
					if err != nil || r.Lost() > 0 {
						t.Errorf("%s to %s: %v %v", from.Args.ContainerID, to.Args.ContainerID, r, err)
					}
				}
			}
			// Packets of full size, both ways, and a UDP datagram that has to
			// be fragmented inside the tunnel.
			from, to := pods[0], pods[len(pods)-1]
			s, err := netlab.StartEcho(to.NS, 7)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			for network, size := range map[string]int{"tcp": 4 << 20, "udp": 8000} {
				err := netlab.Exchange(from.NS, network, netip.AddrPortFrom(to.Addr, s.Port), size, 10*time.Second)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// In on-miss mode the kernel parks the packet that asks; the answer must send
// it on, whether the entry was never there or was flushed.
func TestFirstPacketIsNeverLost(t *testing.T) {
	c := startCluster(t, threeNodes(), "--resolve", "on-miss")
	pods := addPods(t, c, "a")
	for round := range 20 {
		for i, from := range pods {
			for j, to := range pods {
				if i == j {
					continue
				}
				r, err := netlab.Ping(t.Context(), from.NS, netlab.Pings{To: to.Addr, Count: 1})
				if err != nil || r.Lost() > 0 {
					t.Errorf("round %d, %s to %s: %v %v", round, c.Nodes[i].Name, c.Nodes[j].Name, r, err)
				}
			}
		}
		for _, n := range c.Nodes {
			flush(t, n, "ip neigh flush dev "+cluster.Device+" nud all", "bridge fdb flush dev "+cluster.Device)
		}
	}
	for _, n := range c.Nodes {
		s, err := n.API().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Two peers in each of 20 rounds; one entry serves both directions,
		// and the peer's ping may have brought it.
		if s.Misses.Answered < 20 {
			t.Errorf("%s: %+v: this test has not asked", n.Name, s.Misses)
		}
	}
}

func TestKilledDaemonsLoseNoPacket(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, threeNodes(), "--resolve", mode)
			pods := addPods(t, c, "a")
			g := startPings(t, pods[0], pods[1], 10*time.Millisecond)
			before := make([]string, len(c.Nodes))
			for i, n := range c.Nodes {
				before[i] = tables(t, n)
			}
			if err := c.OnAll(func(n *netlab.Node) error { return n.Kill() }); err != nil {
				t.Fatal(err)
			}
			wait(t, 2*time.Second) // traffic without any daemon
			if err := c.StartDaemons(t.Context()); err != nil {
				t.Fatal(err)
			}
			wait(t, 500*time.Millisecond) // and after the first reconciles
			if r := g.Stop(); r.Lost() != 0 || r.Sent() < 200 {
				t.Errorf("kill -9 of every overlayd: %v", r)
			}
			for i, n := range c.Nodes {
				s, err := n.API().Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if s.Kernel.Operations != 0 || s.Kernel.Reconciles == 0 {
					t.Errorf("%s: restart with nothing changed: %+v, want 0 operations", n.Name, s.Kernel)
				}
				if after := tables(t, n); after != before[i] {
					t.Errorf("%s: tables before:\n%s\nafter:\n%s", n.Name, before[i], after)
				}
			}
		})
	}
}

func TestTerminatedOnMissDaemonsLeaveAllEntries(t *testing.T) {
	c := startCluster(t, threeNodes(), "--resolve", "on-miss")
	pods := addPods(t, c, "a")
	if err := c.OnAll(func(n *netlab.Node) error { return n.Stop() }); err != nil {
		t.Fatal(err)
	}
	for i, from := range pods {
		r, err := netlab.Ping(t.Context(), from.NS, netlab.Pings{To: pods[(i+1)%len(pods)].Addr, Count: 20})
		if err != nil || r.Lost() > 0 {
			t.Errorf("without daemons: %v %v", r, err)
		}
	}
}

func TestStoreOutageStopsNoTraffic(t *testing.T) {
	c := startCluster(t, threeNodes())
	pods := addPods(t, c, "a")
	g := startPings(t, pods[0], pods[1], 10*time.Millisecond)
	if err := c.KillEtcd(); err != nil {
		t.Fatal(err)
	}
	wait(t, time.Second)
	// Pods come and go without the store.
	p, err := c.Runtimes[0].Add(t.Context(), "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Runtimes[0].Delete(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := c.StartEtcd(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	// The daemons watch again: a new lease arrives.
	const lease = `{"PublicIP":"192.0.2.200","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:c8"}}`
	if err := c.Put(t.Context(), "subnets/10.244.200.0-24", lease); err != nil {
		t.Fatal(err)
	}
	if err := cluster.InSync(t.Context(), c.Nodes[0], 3); err != nil {
		t.Error(err)
	}
	if r := g.Stop(); r.Lost() != 0 {
		t.Errorf("while etcd was away: %v", r)
	}
}

// wait lets the traffic that is under test run on. It is no synchronisation:
// nothing is expected to have happened afterwards.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// flush runs commands on a node that break something.
func flush(t *testing.T, n *netlab.Node, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := n.Output("sh", "-c", c); err != nil {
			t.Fatal(fmt.Errorf("break: %w", err))
		}
	}
}
