package vxlan

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// node is one end of a two-node overlay: an address on an underlay, a device,
// and a pod's addresses on the loopback device.
type node struct {
	ns     *netlab.Namespace
	device *Device
	peers  []Peer // how the other one reaches it
}

func (n node) pod(six bool) netip.Addr {
	gw := n.peers[0].Gateway
	if six {
		gw = n.peers[1].Gateway
	}
	return gw.Next().Next()
}

// pair joins two nodes by an underlay of the given family.
func pair(t *testing.T, underlay6 bool) (a, b node) {
	t.Helper()
	spaces := []*netlab.Namespace{netlab.TestNamespace(t), netlab.TestNamespace(t)}
	run(t, spaces[0], "ip link add under type veth peer name under netns "+spaces[1].Name)
	var nodes []node
	for i, ns := range spaces {
		peers := peersOf(i+1, 3, 0, 0)
		c := testConfig()
		c.MAC, c.Local, c.Addrs = peers[0].MAC, peers[0].Underlay, nil
		if underlay6 {
			c.Local = addr(fmt.Sprintf("2001:db8::%d", i+1))
			peers[0].Underlay, peers[1].Underlay = c.Local, c.Local
		}
		bits := map[bool]int{false: 24, true: 64}[underlay6]
		run(t, ns, fmt.Sprintf("ip addr add %s/%d dev under%s", c.Local, bits, withoutDAD(c.Local)))
		run(t, ns, "ip link set under up")
		n := node{ns: ns, peers: peers}
		for _, p := range peers {
			c.Addrs = append(c.Addrs, netip.PrefixFrom(p.Gateway, p.Gateway.BitLen()))
			pod := p.Gateway.Next().Next()
			run(t, ns, fmt.Sprintf("ip addr add %s dev lo%s", pod, withoutDAD(pod)))
		}
		n.device = openIn(t, ns, c)
		ensure(t, n.device)
		nodes = append(nodes, n)
	}
	warm(t, nodes[0], nodes[1])
	return nodes[0], nodes[1]
}

// withoutDAD has an IPv6 address work at once: even on lo it is tentative until
// the kernel's worker has come round.
func withoutDAD(a netip.Addr) string {
	if a.Is6() {
		return " nodad"
	}
	return ""
}

// warm waits until the underlay itself carries packets: an IPv6 link takes a
// while after it came up.
func warm(t *testing.T, a, b node) {
	t.Helper()
	to := netip.AddrPortFrom(b.device.Config().Local, 7)
	serveEcho(t, b.ns, to)
	client := listenUDP(t, a.ns, netip.AddrPortFrom(a.device.Config().Local, 0))
	defer func() { _ = client.Close() }()
	if err := netlab.Eventually(5*time.Second, func() error {
		_, err := echo(client, to, "warm", 100*time.Millisecond)
		return err
	}); err != nil {
		t.Fatalf("the underlay is dead: %v", err)
	}
}

// serveEcho returns every packet that comes to the address, until the test ends.
func serveEcho(t *testing.T, ns *netlab.Namespace, at netip.AddrPort) {
	t.Helper()
	conn := listenUDP(t, ns, at)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

func listenUDP(t *testing.T, ns *netlab.Namespace, at netip.AddrPort) (conn *net.UDPConn) {
	t.Helper()
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// answer answers misses until the test ends, as the daemon's loop does.
func answer(t *testing.T, m *Monitor, d *Device, want State) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-m.Ready():
			}
			for miss := range m.Take().Misses {
				if err := d.Apply(want.Resolve(miss)); err != nil {
					t.Errorf("answer %s: %v", miss, err)
				}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// The first packet to a peer of which the node has but the route: the kernel
// parks it, asks, and sends it when it is answered. Not one is lost.
func TestFirstPacketIsNotLost(t *testing.T) {
	const rounds = 20
	for _, underlay6 := range []bool{false, true} {
		for _, pods6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("underlay6=%t pods6=%t", underlay6, pods6), func(t *testing.T) {
				a, b := pair(t, underlay6)
				toB := Desired(b.peers)
				reconcile(t, b.device, Desired(a.peers))
				serveEcho(t, b.ns, netip.AddrPortFrom(b.pod(pods6), 7))
				client := listenUDP(t, a.ns, netip.AddrPortFrom(a.pod(pods6), 0))
				defer func() { _ = client.Close() }()

				m := listen(t, a.ns, testScope(a.device, toB))
				read(t, m)
				answer(t, m, a.device, toB)
				// The daemon's device is the answering goroutine's: forget with
				// another one.
				forget := openIn(t, a.ns, a.device.Config())
				ensure(t, forget)
				routes := toB.Clone()
				clear(routes.FDB)
				clear(routes.Neighs)

				var slowest time.Duration
				for i := range rounds {
					reconcile(t, forget, routes)
					took, err := echo(client, netip.AddrPortFrom(b.pod(pods6), 7), fmt.Sprintf("packet %d", i), time.Second)
					if err != nil {
						t.Fatalf("round %d of %d: %v; kernel holds\n%s", i, rounds, err, seen(t, a.ns))
					}
					slowest = max(slowest, took)
				}
				t.Logf("%d first packets, 0 lost, the slowest was back after %v", rounds, slowest)
				if _, err := Reconcile(forget, Exactly(toB)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// echo sends one packet, once, and waits for it to come back.
func echo(conn *net.UDPConn, to netip.AddrPort, text string, limit time.Duration) (time.Duration, error) {
	sent := time.Now()
	if err := conn.SetDeadline(sent.Add(limit)); err != nil {
		return 0, err
	}
	if _, err := conn.WriteToUDPAddrPort([]byte(text), to); err != nil {
		return 0, err
	}
	b := make([]byte, 2048)
	n, err := conn.Read(b)
	if err != nil {
		return 0, err
	}
	if string(b[:n]) != text {
		return 0, fmt.Errorf("came back as %q", b[:n])
	}
	return time.Since(sent), nil
}

// With all entries written, nobody has to be there: no question, no loss.
func TestEagerNodeNeedsNoAnswers(t *testing.T) {
	a, b := pair(t, false)
	reconcile(t, a.device, Desired(b.peers))
	reconcile(t, b.device, Desired(a.peers))
	m := listen(t, a.ns, testScope(a.device, Desired(b.peers)))
	read(t, m)
	for _, six := range []bool{false, true} {
		serveEcho(t, b.ns, netip.AddrPortFrom(b.pod(six), 7))
		client := listenUDP(t, a.ns, netip.AddrPortFrom(a.pod(six), 0))
		if _, err := echo(client, netip.AddrPortFrom(b.pod(six), 7), "hello", time.Second); err != nil {
			t.Errorf("IPv6 %t: %v", six, err)
		}
		_ = client.Close()
	}
	if e := m.Take(); e.Received != 0 {
		t.Errorf("the kernel asked for %v", e.Misses)
	}
}
