package vxlan

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// sendTo sends one UDP packet from inside the namespace.
func sendTo(t *testing.T, ns *netlab.Namespace, to netip.Addr) {
	t.Helper()
	conn, err := ns.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

// A packet to a routed subnet makes the kernel ask for its gateway, and with
// that known for the gateway's FDB entry.
func TestMisses(t *testing.T) {
	ns := netlab.TestNamespace(t)
	run(t, ns, "ip link add under type bridge")
	run(t, ns, "ip link set under up")
	run(t, ns, "ip addr add 192.0.2.1/24 dev under")
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	want := Desired(peersOf(1, 3, 0, 0))
	pods := []netip.Addr{addr("10.244.1.7"), addr("fd00:0:0:1::7")}
	for i, gw := range []netip.Addr{addr("10.244.1.0"), addr("fd00:0:0:1::")} {
		t.Run(gw.String(), func(t *testing.T) {
			routes := want.Clone()
			clear(routes.FDB)
			clear(routes.Neighs)
			reconcile(t, d, routes)
			m := listen(t, ns, testScope(d, want))
			read(t, m)
			sendTo(t, ns, pods[i])
			only(t, m, Miss{Device: d.Link().Index, IP: gw})

			// The neighbour alone: the parked packet goes on, and misses its
			// FDB entry.
			mac := want.Neighs[gw]
			if err := d.Apply([]Op{{Entry: Neigh{gw, mac}}}); err != nil {
				t.Fatal(err)
			}
			only(t, m, Miss{Device: d.Link().Index, MAC: mac})

			if err := d.Apply(want.Resolve(Miss{MAC: mac})); err != nil {
				t.Fatal(err)
			}
			sendTo(t, ns, pods[i])
			if news := barrier(t, m, ns); len(news) != 0 {
				t.Errorf("answers are announced:\n%s", changeTexts(news))
			}
		})
	}
}

// only waits for a miss and fails the test if it is another one.
func only(t *testing.T, m *Monitor, want Miss) {
	t.Helper()
	e := collect(t, m, func(e Events) bool { return len(e.Misses) > 0 })
	when, ok := e.Misses[want]
	if len(e.Misses) != 1 || !ok || time.Since(when) > time.Second || e.Received < 1 {
		t.Errorf("misses %v (%d read), want %s", e.Misses, e.Received, want)
	}
	if e.Dirty() {
		t.Errorf("with the miss came\n%s", changeTexts(e.Changes))
	}
}

// Multicast, broadcast and other devices' questions are no misses.
func TestOnlyUnicastOfOurDeviceIsAMiss(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	for _, l := range []string{
		"ip route add 239.1.1.0/24 dev overlay.1", "ip -6 route add ff0e::/16 dev overlay.1 table local",
		"ip link add other type vxlan id 2 dstport 8472 local 192.0.2.1 nolearning l2miss",
		"ip link set other up", "ip route add 10.99.0.0/24 dev other",
		"sysctl -q -w net.ipv4.neigh.other.app_solicit=3",
	} {
		run(t, ns, l)
	}
	want := Desired(peersOf(1, 3, 0, 0))
	m := listen(t, ns, testScope(d, want))
	read(t, m)
	reconcile(t, d, want)
	for _, to := range []string{"239.1.1.1", "ff0e::7", "10.99.0.1"} {
		sendTo(t, ns, addr(to))
	}
	run(t, ns, "bridge fdb del 0e:00:00:00:00:01 dev overlay.1")
	sendTo(t, ns, addr("10.244.1.7"))
	e := collect(t, m, func(e Events) bool { return len(e.Misses) > 0 })
	if _, ok := e.Misses[Miss{Device: d.Link().Index, MAC: MAC{0x0e, 0, 0, 0, 0, 1}}]; !ok || len(e.Misses) != 1 {
		t.Errorf("misses %v", e.Misses)
	}
}

// More notifications than the receive buffer holds, while nobody reads.
func TestOverrun(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	want := manyState(5000)
	m := listen(t, ns, testScope(d, want))
	for range 2 {
		reconcile(t, d, want)
		reconcile(t, d, Empty())
	}
	read(t, m)
	// Once at once, and once when what the kernel had queued is read: until
	// then it drops in silence.
	e := collect(t, m, func(e Events) bool { return e.Overruns > 1 })
	if !e.Dirty() {
		t.Error("after an overrun anything may have changed, and the events are not dirty")
	}
	// It goes on reading.
	run(t, ns, "ip route add 10.244.200.0/24 dev overlay.1")
	collect(t, m, func(e Events) bool {
		_, ok := find(e.Changes, "set route 10.244.200.0/24")
		return ok
	})
}

func TestMonitorEndsWithItsContext(t *testing.T) {
	ns := netlab.TestNamespace(t)
	m := listen(t, ns, Scope{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Second):
		t.Fatal("Run goes on a second after the end of its context")
	}
	if err := m.Run(t.Context()); err != nil {
		t.Errorf("on a closed socket Run says %v", err)
	}
}

// quiet is a Monitor without a socket.
func quiet(s ...Scope) *Monitor {
	return &Monitor{ready: make(chan struct{}, 1), links: map[int]string{}, scopes: s}
}

func TestMissesAreCoalesced(t *testing.T) {
	m := quiet(Scope{Index: 2})
	l3, l2 := body(t, "l3miss"), body(t, "l2miss")
	for range 500 {
		m.note(rtnl.Notification{Kind: unix.RTM_GETNEIGH, Body: l3})
		m.note(rtnl.Notification{Kind: unix.RTM_GETNEIGH, Body: l2})
	}
	first := m.events.Misses[Miss{Device: 2, IP: addr("10.244.1.0")}]
	<-m.Ready()
	select {
	case <-m.Ready():
		t.Error("told twice that there is something")
	default:
	}
	e := m.Take()
	if len(e.Misses) != 2 || e.Received != 1000 || e.Dirty() {
		t.Errorf("took %+v", e)
	}
	if e.Misses[Miss{Device: 2, IP: addr("10.244.1.0")}] != first {
		t.Error("the time is not that of the first question")
	}
	if e := m.Take(); e.Received != 0 || e.Misses != nil || e.Dirty() {
		t.Errorf("taken twice: %+v", e)
	}
	m.SetScope(Scope{Index: 3})
	m.note(rtnl.Notification{Kind: unix.RTM_GETNEIGH, Body: l3})
	if e := m.Take(); len(e.Misses) != 0 {
		t.Errorf("another device's misses were kept: %+v", e)
	}
}

func TestChangesAreBounded(t *testing.T) {
	m := quiet(Scope{Index: 2})
	for range maxChanges + 36 {
		m.note(rtnl.Notification{Kind: unix.RTM_NEWNEIGH, Port: 7, Body: body(t, "neigh")})
	}
	e := m.Take()
	if len(e.Changes) != maxChanges || e.More != 36 || !e.Dirty() {
		t.Errorf("%d changes and %d more", len(e.Changes), e.More)
	}
	if (Events{}).Dirty() || !(Events{More: 1}).Dirty() || !(Events{Overruns: 1}).Dirty() || (Events{Received: 1}).Dirty() {
		t.Error("Dirty is wrong")
	}
}

// What the kernel tells, in words; "" where it is no news.
func TestDescribe(t *testing.T) {
	mac := MAC{0x0e, 0, 0, 0, 1, 1}
	device := testConfig()
	wants := Scope{Index: 2, Device: device, Want: State{FDB: map[MAC]netip.Addr{mac: addr("192.0.2.101")}}}
	elsewhere := Scope{Index: 2, Want: State{FDB: map[MAC]netip.Addr{mac: addr("192.0.2.102")}}}
	unwanted := Scope{Index: 2, Want: Empty()}
	networks := Scope{Index: 9, Networks: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00::/16")}}
	index, other := Scope{Index: 2}, Scope{Index: 9}
	mtu := wants
	mtu.Device.MTU = 1400
	for _, c := range []struct {
		name  string
		scope Scope
		kind  uint16
		port  uint32
		body  string
		want  string
	}{
		{"neighbour", index, unix.RTM_NEWNEIGH, 7, "neigh", "set neigh 10.244.1.0 lladdr 0e:00:00:00:01:01"},
		{"neighbour of the kernel's", index, unix.RTM_NEWNEIGH, 0, "neigh", "set neigh 10.244.1.0 lladdr 0e:00:00:00:01:01"},
		{"neighbour on another device", other, unix.RTM_NEWNEIGH, 7, "neigh", ""},
		{"IPv6 neighbour gone with the link", index, unix.RTM_DELNEIGH, 0, "neigh6", "deleted neigh fd00:0:0:1::"},
		{"neighbour failed", index, unix.RTM_NEWNEIGH, 7, "neigh failed", "deleted neigh 10.244.1.0"},
		{"question that failed", index, unix.RTM_NEWNEIGH, 0, "neigh failed", ""},
		{"failed one that went", index, unix.RTM_DELNEIGH, 0, "neigh failed", ""},
		{"FDB entry", index, unix.RTM_NEWNEIGH, 0, "fdb", "set fdb 0e:00:00:00:01:01 dst 192.0.2.101"},
		{"FDB entry as wanted", wants, unix.RTM_NEWNEIGH, 0, "fdb", ""},
		{"FDB entry to elsewhere", elsewhere, unix.RTM_NEWNEIGH, 0, "fdb", "set fdb 0e:00:00:00:01:01 dst 192.0.2.101"},
		{"FDB entry unwanted", unwanted, unix.RTM_NEWNEIGH, 0, "fdb", "set fdb 0e:00:00:00:01:01 dst 192.0.2.101"},
		{"FDB entry with a port", wants, unix.RTM_NEWNEIGH, 0, "fdb port", "set fdb 0e:00:00:00:01:01 dst 192.0.2.101, with a port, VNI or device of its own"},
		{"FDB entry that ages", wants, unix.RTM_NEWNEIGH, 0, "fdb dynamic", "set fdb 0e:00:00:00:01:01 dst 192.0.2.101, not permanent"},
		{"FDB entry deleted", wants, unix.RTM_DELNEIGH, 0, "fdb", "deleted fdb 0e:00:00:00:01:01"},
		{"unwanted FDB entry deleted", unwanted, unix.RTM_DELNEIGH, 0, "fdb", ""},
		{"FDB entry deleted, wanted or not", index, unix.RTM_DELNEIGH, 0, "fdb", "deleted fdb 0e:00:00:00:01:01"},
		{"route of ours", index, unix.RTM_DELROUTE, 7, "route", "deleted route 10.244.1.0/24 via 10.244.1.0 dev 2 proto 77"},
		{"foreign route inside", networks, unix.RTM_NEWROUTE, 7, "route6 multipath", "set route fd00:0:0:1::/64 via invalid IP dev 0 proto 3"},
		{"foreign route outside", index, unix.RTM_NEWROUTE, 7, "route6 multipath", ""},
		{"address of the device", index, unix.RTM_DELADDR, 7, "address", "deleted address 10.244.0.0/32"},
		{"address inside", networks, unix.RTM_NEWADDR, 7, "address6", "set address fd00::/128"},
		{"address elsewhere", other, unix.RTM_NEWADDR, 7, "address", ""},
		{"address as wanted", wants, unix.RTM_NEWADDR, 0, "address6", ""},
		{"wanted address deleted", wants, unix.RTM_DELADDR, 0, "address6", "deleted address fd00::/128"},
		{"link", index, unix.RTM_NEWLINK, 0, "link", "set link overlay.1 up mtu 1450 address 02:00:00:00:00:01"},
		{"link by name", Scope{Names: []string{"overlay.1"}}, unix.RTM_DELLINK, 0, "link", "deleted link overlay.1 up mtu 1450 address 02:00:00:00:00:01"},
		{"link of others", other, unix.RTM_NEWLINK, 0, "link", ""},
		{"link as wanted", wants, unix.RTM_NEWLINK, 0, "link", ""},
		{"link not as wanted", mtu, unix.RTM_NEWLINK, 0, "link", "set link overlay.1 up mtu 1450 address 02:00:00:00:00:01"},
		{"other kinds", index, unix.RTM_NEWQDISC, 7, "link", ""},
		{"cut short", index, unix.RTM_NEWNEIGH, 7, "short", ""},
		{"route cut short", networks, unix.RTM_NEWROUTE, 7, "short", ""},
		{"link cut short", index, unix.RTM_NEWLINK, 7, "short", ""},
		{"address cut short", index, unix.RTM_NEWADDR, 7, "short", ""},
	} {
		if got := c.scope.describe(rtnl.Notification{Kind: c.kind, Port: c.port, Body: body(t, c.body)}); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The kernel repeats what it told of a link; only what is new is news.
func TestLinkIsNewsOnce(t *testing.T) {
	m := quiet(Scope{Names: []string{"overlay.1"}})
	up := body(t, "link")
	down := slices.Clone(up)
	down[8] &^= unix.IFF_UP
	for _, b := range [][]byte{up, up, down, down, up, up} {
		m.note(rtnl.Notification{Kind: unix.RTM_NEWLINK, Body: b})
	}
	m.note(rtnl.Notification{Kind: unix.RTM_DELLINK, Body: up})
	m.note(rtnl.Notification{Kind: unix.RTM_NEWLINK, Body: up})
	const line = " link overlay.1 %s mtu 1450 address 02:00:00:00:00:01\n"
	want := ""
	for _, w := range []string{"set up", "set down", "set up", "deleted up", "set up"} {
		verb, state, _ := strings.Cut(w, " ")
		want += verb + fmt.Sprintf(line, state)
	}
	if got := changeTexts(m.Take().Changes); got != want {
		t.Errorf("told\n%swant\n%s", got, want)
	}
}

func TestOwnPortIsNoNews(t *testing.T) {
	m := quiet(Scope{Index: 2, Ports: []uint32{7, uint32(os.Getpid())}})
	m.note(rtnl.Notification{Kind: unix.RTM_NEWNEIGH, Port: 7, Body: body(t, "neigh")})
	if e := m.Take(); e.Dirty() {
		t.Errorf("our own change is news: %v", e.Changes)
	}
	m.note(rtnl.Notification{Kind: unix.RTM_NEWNEIGH, Port: 8, Body: body(t, "neigh")})
	if e := m.Take(); len(e.Changes) != 1 || e.Changes[0].Port != 8 || time.Since(e.Changes[0].Time) > time.Second {
		t.Errorf("another's change: %v", e.Changes)
	}
}
