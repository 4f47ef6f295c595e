package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func eachFamily(t *testing.T, fn func(*testing.T, place)) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { fn(t, places[f.name]) })
	}
}

// What leaves the cluster's networks bears the node's address; what stays
// inside keeps its own.
func TestMasquerade(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		s := newSite(t)
		for _, p := range places {
			serve(t, s.pod, netip.AddrPortFrom(p.pod, 7))
			serve(t, s.peer, netip.AddrPortFrom(p.peer, 7))
			serve(t, s.peer, netip.AddrPortFrom(p.peerPod, 7))
			serve(t, s.outside, netip.AddrPortFrom(p.outside, 7))
		}
		f := open(t, s.node, v.mode)
		ensure(t, s.node, f, testRules())
		eachFamily(t, func(t *testing.T, p place) {
			at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 7) }
			t.Run("pod to outside", func(t *testing.T) { sees(t, s.pod, p.pod, at(p.outside), p.nodeOut) })
			t.Run("pod to a peer's host", func(t *testing.T) { sees(t, s.pod, p.pod, at(p.peer), p.node) })
			t.Run("pod to pod", func(t *testing.T) { sees(t, s.pod, p.pod, at(p.peerPod), p.pod) })
			t.Run("peer's pod to pod", func(t *testing.T) { sees(t, s.peer, p.peerPod, at(p.pod), p.peerPod) })
			t.Run("outside to pod", func(t *testing.T) { sees(t, s.outside, p.outside, at(p.pod), p.outside) })
			t.Run("outside to a peer's pod", func(t *testing.T) { sees(t, s.outside, p.outside, at(p.peerPod), p.node) })
			t.Run("node to pod", func(t *testing.T) { sees(t, s.node, p.gateway, at(p.pod), p.gateway) })
			t.Run("node to a peer's pod", func(t *testing.T) { sees(t, s.node, p.gateway, at(p.peerPod), p.gateway) })
			t.Run("multicast", func(t *testing.T) { multicast(t, s, p) })
		})
		r := testRules()
		r.Masquerade = false
		ensure(t, s.node, f, r)
		eachFamily(t, func(t *testing.T, p place) {
			sees(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 7), p.pod)
		})
	})
}

// multicast sends a packet with an address of the pod network to a group on the
// underlay, and looks at whom the peer sees.
func multicast(t *testing.T, s *site, p place) {
	member := listen(t, s.peer, netip.AddrPortFrom(netip.IPv6Unspecified(), 5353))
	must(t, s.peer.Do(func() error { return join("eth0", member, p.group) }))
	must(t, s.node.Do(func() error {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.gateway, 0)))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := sendMulticastBy("u0", conn, p.group); err != nil {
			return err
		}
		_, err = conn.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(p.group, 5353))
		return err
	}))
	must(t, member.SetDeadline(time.Now().Add(5*time.Second)))
	_, from, err := member.ReadFromUDPAddrPort(make([]byte, 64))
	must(t, err)
	if got := from.Addr().Unmap(); got != p.gateway {
		t.Errorf("multicast is seen as from %s, want %s", got, p.gateway)
	}
}

// join has conn hear what comes to a group by the link.
func join(name string, conn *net.UDPConn, group netip.Addr) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, 0))
	if group.Is4() {
		return ipv4.NewPacketConn(conn).JoinGroup(link, to)
	}
	return ipv6.NewPacketConn(conn).JoinGroup(link, to)
}

// sendMulticastBy chooses the link by which conn sends to a group.
func sendMulticastBy(name string, conn *net.UDPConn, group netip.Addr) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	if group.Is4() {
		return ipv4.NewPacketConn(conn).SetMulticastInterface(link)
	}
	return ipv6.NewPacketConn(conn).SetMulticastInterface(link)
}

// kube-proxy marks what its own rules masquerade.
func TestMarkedIsLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		s := newSite(t)
		for _, p := range places {
			serve(t, s.outside, netip.AddrPortFrom(p.outside, 7))
		}
		ensure(t, s.node, open(t, s.node, v.mode), testRules())
		run(t, s.node, `nft 'table inet others { chain before { type filter hook prerouting priority mangle; iifname p0 meta mark set meta mark or 0x4000; }; }'`)
		eachFamily(t, func(t *testing.T, p place) {
			sees(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 7), p.pod)
		})
		run(t, s.node, `nft flush table inet others`)
		eachFamily(t, func(t *testing.T, p place) {
			sees(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 7), p.nodeOut)
		})
	})
}

// VXLAN from an address that is no peer's arrives at no socket.
func TestPeerFilter(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		s := newSite(t)
		f := open(t, s.node, v.mode)
		r := testRules()
		ensure(t, s.node, f, r)
		conn := listen(t, s.node, netip.AddrPortFrom(netip.IPv6Unspecified(), r.Port))
		// got sends from each address in turn and returns whose packets arrived:
		// what the last one overtook was dropped.
		got := func(t *testing.T, to netip.Addr, from ...netip.Addr) (heard []netip.Addr) {
			t.Helper()
			for _, a := range from {
				ns := s.peer
				if a.IsLoopback() {
					ns = s.node
				}
				c := listen(t, ns, netip.AddrPortFrom(a, 0))
				if to.IsMulticast() {
					must(t, ns.Do(func() error { return sendMulticastBy("eth0", c, to) }))
				}
				_, err := c.WriteToUDPAddrPort([]byte("not VXLAN"), netip.AddrPortFrom(to, r.Port))
				must(t, err)
			}
			must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
			for {
				_, a, err := conn.ReadFromUDPAddrPort(make([]byte, 64))
				if err != nil {
					t.Fatalf("at %s: %v; heard %v", to, err, heard)
				}
				heard = append(heard, a.Addr().Unmap())
				if heard[len(heard)-1] == from[len(from)-1] {
					return heard
				}
			}
		}
		eachFamily(t, func(t *testing.T, p place) {
			// Neighbours first: a parked packet would be overtaken.
			serveOnce(t, s, p)
			if heard := got(t, p.node, p.stranger, p.peer); len(heard) != 1 {
				t.Errorf("heard %v, want the peer alone", heard)
			}
			dropped, err := f.Dropped()
			must(t, err)
			if heard := got(t, p.nodeOut, p.stranger, p.peer); len(heard) != 1 {
				t.Errorf("at the node's other address heard %v, want the peer alone", heard)
			}
			if now, err := f.Dropped(); err != nil || now != dropped+1 {
				t.Errorf("%d packets dropped (%v), want %d", now, err, dropped+1)
			}
		})
		t.Run("broadcast and multicast", func(t *testing.T) {
			peer := map[bool]netip.Addr{true: places["ipv4"].peer, false: places["ipv6"].peer}
			stranger := map[bool]netip.Addr{true: places["ipv4"].stranger, false: places["ipv6"].stranger}
			for _, to := range []netip.Addr{addr("192.0.2.255"), addr("224.0.0.1"), addr("ff02::1")} {
				if to.IsMulticast() {
					must(t, s.node.Do(func() error { return join("u0", conn, to) }))
				}
				if heard := got(t, to, stranger[to.Is4()], peer[to.Is4()]); len(heard) != 1 {
					t.Errorf("at %s heard %v, want the peer alone", to, heard)
				}
			}
		})
		t.Run("loopback", func(t *testing.T) { got(t, addr("127.0.0.1"), addr("127.0.0.1")) })
		t.Run("forwarded", func(t *testing.T) {
			eachFamily(t, func(t *testing.T, p place) {
				to := netip.AddrPortFrom(p.outside, r.Port)
				serve(t, s.outside, to)
				sees(t, s.peer, p.stranger, to, p.stranger)
			})
		})
		t.Run("new peer", func(t *testing.T) {
			r.Peers = append(r.Peers, addr("192.0.2.66"), addr("2001:db8::66"))
			ensure(t, s.node, f, r)
			quiet(t, s.node, f, r)
			eachFamily(t, func(t *testing.T, p place) { got(t, p.node, p.stranger) })
		})
		t.Run("peer left", func(t *testing.T) {
			r.Peers = []netip.Addr{addr("192.0.2.66"), addr("2001:db8::66")}
			ensure(t, s.node, f, r)
			eachFamily(t, func(t *testing.T, p place) {
				if heard := got(t, p.node, p.peer, p.stranger); len(heard) != 1 {
					t.Errorf("heard %v, want the new peer alone", heard)
				}
			})
		})
		t.Run("no filter", func(t *testing.T) {
			r.Filter = false
			ensure(t, s.node, f, r)
			eachFamily(t, func(t *testing.T, p place) {
				if heard := got(t, p.node, p.peer, p.stranger); len(heard) != 2 {
					t.Errorf("heard %v, want both", heard)
				}
			})
		})
	})
}

// serveOnce exchanges a packet in each direction between the node and the
// addresses of the peer's host.
func serveOnce(t *testing.T, s *site, p place) {
	t.Helper()
	serve(t, s.node, netip.AddrPortFrom(p.node, 9))
	sees(t, s.peer, p.peer, netip.AddrPortFrom(p.node, 9), p.peer)
	sees(t, s.peer, p.stranger, netip.AddrPortFrom(p.node, 9), p.stranger)
}

// A real VXLAN device: what a stranger sends is not decapsulated, what a peer
// sends is, and neither leaves an entry of the outer packets in conntrack.
func TestVXLAN(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		eachFamily(t, func(t *testing.T, p place) {
			s := newSite(t)
			r := testRules()
			f := open(t, s.node, v.mode)
			ensure(t, s.node, f, r)
			inner := []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}
			for i, ns := range []*netlab.Namespace{s.node, s.peer} {
				local, remote := p.node, p.stranger
				if i == 1 {
					local, remote = p.stranger, p.node
				}
				must(t, ns.IP("link add vx type vxlan id 1 dstport 8472 local "+local.String()+" remote "+remote.String(),
					"addr add "+inner[i].String()+"/24 dev vx", "link set vx up"))
			}
			to := netip.AddrPortFrom(inner[0], 7)
			serve(t, s.node, to)
			if got, err := whoami(t, s.peer, inner[1], to); err == nil {
				t.Fatalf("a stranger's VXLAN was answered: it is %s", got)
			}
			r.Peers = append(r.Peers, p.stranger)
			ensure(t, s.node, f, r)
			sees(t, s.peer, inner[1], to, inner[1])
			for line := range strings.Lines(conntrack(t, s.node)) {
				if strings.Contains(line, "port=8472") {
					t.Errorf("conntrack knows of %s", line)
				}
			}
			if c := conntrack(t, s.node); !strings.Contains(c, "198.51.100.2") {
				t.Errorf("conntrack does not know of the inner packets: it is off, and this test shows nothing\n%s", c)
			}
		})
	})
}

// conntrack lists the connections that the namespace tracks.
func conntrack(t *testing.T, ns *netlab.Namespace) string {
	t.Helper()
	out, err := ns.Output("cat", "/proc/net/nf_conntrack")
	must(t, err)
	return out
}

// A pod's own UDP to another node's VXLAN port would arrive there with this node's
// address, which is a peer's.
func TestPodsMakeNoVXLAN(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		s := newSite(t)
		f := open(t, s.node, v.mode)
		r := testRules()
		heard := listen(t, s.peer, netip.AddrPortFrom(netip.IPv6Unspecified(), r.Port))
		first := func(t *testing.T, from netip.Addr, to ...netip.AddrPort) netip.Addr {
			t.Helper()
			c := listen(t, s.pod, netip.AddrPortFrom(from, 0))
			for _, a := range to {
				_, err := c.WriteToUDPAddrPort([]byte("forged"), a)
				must(t, err)
			}
			must(t, heard.SetDeadline(time.Now().Add(5*time.Second)))
			_, a, err := heard.ReadFromUDPAddrPort(make([]byte, 64))
			must(t, err)
			return a.Addr().Unmap()
		}
		eachFamily(t, func(t *testing.T, p place) {
			serveOnce(t, s, p) // neighbours first
			peer, peerPod := netip.AddrPortFrom(p.peer, r.Port), netip.AddrPortFrom(p.peerPod, r.Port)
			service := netip.AddrPortFrom(p.outside, 4242)
			family := map[bool]string{true: "ip", false: "ip6"}[p.pod.Is4()]
			run(t, s.node, fmt.Sprintf("nft add table %s svc; nft add chain %[1]s svc c '{ type nat hook prerouting priority -100; }'; "+
				"nft add rule %[1]s svc c %[1]s daddr %[2]s udp dport 4242 dnat to %[3]s", family, p.outside, peer))
			open := r
			open.Filter, open.Peers = false, nil
			ensure(t, s.node, f, open)
			for _, to := range []netip.AddrPort{peer, service} {
				if from := first(t, p.pod, to); from != p.node {
					t.Fatalf("without the filter %s hears %s, want the node: this test shows nothing", to, from)
				}
			}
			ensure(t, s.node, f, r)
			// Between pods the port is one like any other.
			if from := first(t, p.pod, peer, service, peerPod); from != p.pod {
				t.Errorf("the peer heard %s first, want the pod that sent to a pod", from)
			}
		})
	})
}
