package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wantPing fails the test unless all of some pings are answered.
func wantPing(t *testing.T, n *Namespace, p Pings) {
	t.Helper()
	p.Count, p.Interval = 2, time.Millisecond
	if r, err := Ping(t.Context(), n, p); err != nil || r.Lost() != 0 {
		t.Errorf("%s: %v %v", n.Name, r, err)
	}
}

func TestUnderlayOfOneFamily(t *testing.T) {
	for family, store := range map[string]string{"4": "192.0.2.1:2379", "6": "[2001:db8::1]:2379"} {
		l := testLab(t, Options{Nodes: 2, Underlay: family})
		if got := l.StoreAddr().String(); got != store {
			t.Errorf("underlay %s: store at %s, want %s", family, got, store)
		}
		for _, is4 := range []bool{true, false} {
			if have := l.Nodes[0].Addr(is4).IsValid(); have != (is4 == (family == "4")) {
				t.Errorf("underlay %s: node has an address of IPv4 %t: %t", family, is4, have)
			}
		}
		out, err := l.Nodes[0].Output("ip", "-br", "address", "show", "eth0", "scope", "global")
		if err != nil || strings.Contains(out, "192.0.2.") != (family == "4") || strings.Contains(out, "2001:db8:") != (family == "6") {
			t.Errorf("underlay %s: %s %v", family, out, err)
		}
		if _, err := l.StartStore(os.Args[0], storeArg, l.StoreAddr().String()); err != nil {
			t.Fatal(err)
		}
		conn, err := l.Nodes[1].Dial("tcp", l.StoreAddr().String())
		if err != nil {
			t.Errorf("underlay %s: store from a node: %v", family, err)
		} else {
			_ = conn.Close()
		}
		wantPing(t, l.Nodes[0].Namespace, Pings{To: l.Nodes[1].Addrs()[0]})
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, o := range []Options{{Name: "no", Nodes: 1, Underlay: "64"}, {Name: "no", Nodes: 1, Far: 2}, {Name: "no", Nodes: 1, Far: -1}} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "want ") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestFarNodesAreBehindARouter(t *testing.T) {
	l := testLab(t, Options{Nodes: 3, Far: 1})
	near, far := l.Nodes[0], l.Nodes[2]
	if near.Address != netip.MustParseAddr("192.0.2.11") || far.Address != netip.MustParseAddr("198.51.100.13") ||
		far.Address6 != netip.MustParseAddr("2001:db8:1::13") {
		t.Errorf("addresses %v, %v", near.Addrs(), far.Addrs())
	}
	for _, to := range far.Addrs() {
		wantPing(t, near.Namespace, Pings{To: to})
		if out, err := near.Output("ip", "route", "get", to.String()); err != nil || !strings.Contains(out, " via ") {
			t.Errorf("route to %s: %s %v", to, out, err)
		}
	}
	// A node on one of the segments can have an interface on the other too.
	for _, n := range []*Node{near, far} {
		addrs, err := l.Plug(n, "eth1")
		if err != nil || len(addrs) != 2 {
			t.Fatal(addrs, err)
		}
		for _, a := range addrs {
			wantPing(t, l.Nodes[1].Namespace, Pings{To: a})
		}
	}
	if out, err := near.Output("ip", "route", "get", far.Address.String()); err != nil || !strings.Contains(out, " dev eth1 ") {
		t.Errorf("route to a host on eth1: %s %v", out, err)
	}
	if err := l.Nodes[1].IP("link show eth1"); err == nil {
		t.Error("a node that was not asked for has eth1")
	}
}

func TestPlugMakesTheFarSegment(t *testing.T) {
	l := testLab(t, Options{Nodes: 1})
	addrs, err := l.Plug(l.Nodes[0], "eth1")
	if err != nil || len(addrs) != 2 || addrs[0] != netip.MustParseAddr("198.51.100.11") {
		t.Fatal(addrs, err)
	}
	wantPing(t, l.Underlay, Pings{To: addrs[0]})
}

func TestOutsideKnowsNodesOnly(t *testing.T) {
	l := testLab(t, Options{Nodes: 2, Far: 1})
	out, err := l.NewOutside()
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.NewNeighbour(250)
	if err != nil {
		t.Fatal(err)
	}
	s, err := StartWitness(out.Namespace, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, is4 := range []bool{true, false} {
		for _, n := range l.Nodes {
			wantPing(t, out.Namespace, Pings{To: n.Addr(is4)})
			wantPing(t, n.Namespace, Pings{To: host.Addr(is4)})
			for _, network := range []string{"tcp", "udp"} {
				from, err := Seen(n.Namespace, network, netip.AddrPortFrom(out.Addr(is4), s.Port), 5*time.Second)
				if err != nil || from.Addr() != n.Addr(is4) {
					t.Errorf("%s by %s is seen as %s, %v", n.Name, network, from, err)
				}
			}
		}
	}
	// What a pod sends under its own address is not answered.
	n := l.Nodes[0]
	if err := n.IP("address add 10.244.0.9/32 dev lo"); err != nil {
		t.Fatal(err)
	}
	err = n.IP("route add " + out.Addr(true).String() + " via 192.0.2.1 src 10.244.0.9")
	if err != nil {
		t.Fatal(err)
	}
	if from, err := Seen(n.Namespace, "udp", netip.AddrPortFrom(out.Addr(true), s.Port), 100*time.Millisecond); err == nil {
		t.Errorf("an address of pods is answered, as %s", from)
	}
}

// A new port must not give the router another MAC: nodes would go on with the old
// one for half a minute.
func TestRouterKeepsItsMAC(t *testing.T) {
	l := testLab(t, Options{Nodes: 3})
	reach := func() {
		t.Helper()
		for _, n := range l.Nodes {
			wantPing(t, n.Namespace, Pings{To: Near.Router(true)})
		}
	}
	reach()
	if err := l.Underlay.IP("link add low address 02:00:00:00:00:00 master underlay up type veth peer name low2"); err != nil {
		t.Fatal(err)
	}
	reach()
}

func TestSetMTU(t *testing.T) {
	l := testLab(t, Options{Nodes: 3, Far: 1})
	whole := func(from, to *Node, packet int) error {
		for _, a := range to.Addrs() {
			p := Pings{To: a, Size: ICMPSize(a, packet), Whole: true, Timeout: 200 * time.Millisecond}
			if r, err := Ping(t.Context(), from.Namespace, p); err != nil || r.Lost() > 0 {
				return fmt.Errorf("%s to %s: %v: %w", from.Name, to.Name, r, r.SendError)
			}
		}
		return nil
	}
	a, b, far := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	for _, mtu := range []int{1500, 1400, 9000} {
		if err := l.SetMTU(mtu); err != nil {
			t.Fatal(err)
		}
		for _, to := range []*Node{b, far} {
			if err := whole(a, to, mtu); err != nil {
				t.Errorf("MTU %d: %v", mtu, err)
			}
			if err := whole(a, to, mtu+1); err == nil || !strings.Contains(err.Error(), syscall.EMSGSIZE.Error()) {
				t.Errorf("MTU %d, one byte more: %v", mtu, err)
			}
		}
	}
	if err := l.SetMTU(1300, a); err != nil {
		t.Fatal(err)
	}
	if err := whole(a, b, 1301); err == nil {
		t.Error("a node sends more than its own MTU")
	}
	if err := whole(b, far, 9000); err != nil {
		t.Errorf("the MTU of one node was to change: %v", err)
	}
}

func TestNodeAddressAndLinkChange(t *testing.T) {
	l := testLab(t, Options{Nodes: 2})
	out, err := l.NewOutside()
	if err != nil {
		t.Fatal(err)
	}
	n := l.Nodes[0]
	reachable := func(what string) {
		t.Helper()
		for _, is4 := range []bool{true, false} {
			wantPing(t, l.Nodes[1].Namespace, Pings{To: n.Addr(is4)})
			r, err := Ping(t.Context(), n.Namespace, Pings{To: out.Addr(is4), Count: 1})
			if err != nil || r.Lost() > 0 {
				t.Errorf("%s: %v %v", what, r, err)
			}
		}
	}
	reachable("at first")
	for _, is4 := range []bool{true, false} {
		old := n.Addr(is4)
		if err := n.SetAddress(is4, 99); err != nil {
			t.Fatal(err)
		}
		if n.Addr(is4) == old || n.Addr(is4) != Near.Addr(is4, 99) {
			t.Errorf("address is %s, was %s", n.Addr(is4), old)
		}
		if out, err := n.Output("ip", "-br", "address", "show", "eth0"); err != nil || strings.Contains(out, old.String()+"/") {
			t.Errorf("%s is still there: %s %v", old, out, err)
		}
	}
	reachable("after a change of addresses")
	if err := n.Flap(); err != nil {
		t.Fatal(err)
	}
	reachable("after a flap")
}
