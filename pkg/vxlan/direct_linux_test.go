package vxlan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// withUnderlay gives a namespace a link on which peersOf's addresses are.
func withUnderlay(t *testing.T) *netlab.Namespace {
	t.Helper()
	ns := netlab.TestNamespace(t)
	for _, l := range []string{"ip link add under type bridge", "ip link set under up", "ip addr add 192.0.2.250/24 dev under", "ip addr add 2001:db8::250/64 dev under nodad"} {
		run(t, ns, l)
	}
	return ns
}

// A peer on the same link may change between a plain route and one through the
// tunnel, in place: at no time is there none.
func TestDirectRoutesReplaceTunnelled(t *testing.T) {
	ns := withUnderlay(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	for _, families := range []int{3, 7, 3, 7, 0} {
		want := Desired(peersOf(1, families, 0, 0))
		ops := reconcile(t, d, want)
		if got := seen(t, ns); got != text(want) {
			t.Errorf("families %d: kernel holds\n%s\nwant\n%s", families, got, text(want))
		}
		if deletes := slices.ContainsFunc(ops, func(o Op) bool { return o.Del }); deletes && families != 0 {
			t.Errorf("families %d: %v", families, ops)
		}
		if ops := reconcile(t, d, want); len(ops) != 0 {
			t.Errorf("families %d: a second Reconcile issued %v", families, ops)
		}
	}
}

// Without a name there is no device, and plain routes are all there is.
func TestNoDevice(t *testing.T) {
	ns := withUnderlay(t)
	run(t, ns, "ip route add blackhole 10.244.77.0/24 proto 77") // bears our number, and no next hop
	d := openIn(t, ns, Config{Local: addr("192.0.2.250"), Alone: true})
	if did := ensure(t, d); len(did) != 0 || d.Link().Index != 0 {
		t.Errorf("did %q", did)
	}
	peer := Peer{Subnet: prefix("10.244.1.0/24"), Gateway: addr("10.244.1.0"), Underlay: addr("192.0.2.1"), Direct: true}
	peer6 := Peer{Subnet: prefix("fd00:0:0:1::/64"), Gateway: addr("fd00:0:0:1::"), Underlay: addr("2001:db8::1"), Direct: true}
	away := Peer{Subnet: prefix("10.244.2.0/24"), Gateway: addr("10.244.2.0"), Underlay: addr("198.51.100.1")}
	want := Desired([]Peer{peer, peer6, away})
	if len(want.Routes) != 2 || len(want.FDB) != 0 || len(want.Neighs) != 0 {
		t.Errorf("wanted is\n%s", text(want))
	}
	reconcile(t, d, want)
	if s, err := d.State(); err != nil || text(s) != text(want) {
		t.Errorf("kernel holds\n%s\n%v; want\n%s", text(s), err, text(want))
	}
	reconcile(t, d, Empty())
	if got := show(t, ns, "ip route show proto 77") + show(t, ns, "ip -6 route show proto 77"); got != "blackhole 10.244.77.0/24 \n" {
		t.Errorf("left is\n%s", got)
	}
}

// Of two devices on a node each keeps its own routes, plain ones by the next
// hop's family.
func TestTwoDevicesKeepToTheirs(t *testing.T) {
	ns := withUnderlay(t)
	four := openIn(t, ns, testConfig())
	c := testConfig()
	c.Name, c.MAC, c.Local, c.MTU, c.Addrs = "overlay-v6.1", MAC{2, 0, 0, 0, 0, 6}, addr("2001:db8::250"), 1430, []netip.Prefix{prefix("fd00::/128")}
	six := openIn(t, ns, c)
	ensure(t, four)
	ensure(t, six)
	want4 := Desired(slices.Concat(peersOf(1, 1, 0, 0), peersOf(2, 5, 0, 0)))
	want6 := Desired([]Peer{
		{prefix("fd00:0:0:1::/64"), addr("fd00:0:0:1::"), MAC{0x0e, 6, 0, 0, 0, 1}, addr("2001:db8::1"), false},
		{prefix("fd00:0:0:2::/64"), addr("fd00:0:0:2::"), MAC{0x0e, 6, 0, 0, 0, 2}, addr("2001:db8::2"), true},
	})
	for range 2 {
		reconcile(t, four, want4)
		reconcile(t, six, want6)
	}
	for d, want := range map[*Device]State{four: want4, six: want6} {
		if s, err := d.State(); err != nil || text(s) != text(want) {
			t.Errorf("%s holds\n%s\n%v; want\n%s", d.Config().Name, text(s), err, text(want))
		}
	}
}

// The kernel takes no onlink route over a device while another one leads to its
// gateway: the plain route of an IPv6 subnet has to go first.
func TestDirectRoutesOfIPv6BecomeTunnelled(t *testing.T) {
	ns := withUnderlay(t)
	c := testConfig()
	c.Local, c.MTU = addr("2001:db8::250"), 1430
	d := openIn(t, ns, c)
	ensure(t, d)
	for _, direct := range []bool{true, false, true, false} {
		want := Desired([]Peer{{prefix("fd00:0:0:1::/64"), addr("fd00:0:0:1::"), MAC{0x0e, 6, 0, 0, 0, 1}, addr("2001:db8::1"), direct}})
		reconcile(t, d, want)
		if s, err := d.State(); err != nil || text(s) != text(want) {
			t.Errorf("direct %t: kernel holds\n%s\n%v; want\n%s", direct, text(s), err, text(want))
		}
	}
}

func TestOnLink(t *testing.T) {
	unicast := func(dst, via string, index int, metric uint32) route {
		r := route{dst: prefix(dst), index: index, metric: metric, kind: unix.RTN_UNICAST}
		if via != "" {
			r.via = addr(via)
		}
		return r
	}
	table := []route{
		unicast("0.0.0.0/0", "192.0.2.254", 2, 0),
		unicast("192.0.2.0/24", "", 2, 0),
		unicast("192.0.2.128/25", "192.0.2.254", 2, 0), // a part of it is behind a router
		unicast("192.0.2.200/32", "", 3, 0),
		unicast("198.51.100.0/24", "192.0.2.9", 2, 10),
		unicast("198.51.100.0/24", "", 4, 5), // counts more
		{dst: prefix("192.0.2.7/32"), kind: unix.RTN_BLACKHOLE},
		{dst: prefix("203.0.113.0/24"), kind: unix.RTN_UNICAST}, // several next hops
	}
	on := onLink(table, []netip.Addr{
		addr("192.0.2.1"), addr("192.0.2.129"), addr("192.0.2.200"), addr("198.51.100.1"), addr("192.0.2.7"), addr("203.0.113.1"), addr("8.8.8.8"),
	})
	var got []string
	for a := range on {
		got = append(got, a.String())
	}
	if want := "192.0.2.1\n192.0.2.200\n198.51.100.1"; sorted(got) != want {
		t.Errorf("on link are\n%s\nwant\n%s", sorted(got), want)
	}
	if on := onLink(nil, []netip.Addr{addr("192.0.2.1")}); len(on) != 0 {
		t.Errorf("without routes: %v", on)
	}
}

func TestOnLinkReadsTheKernel(t *testing.T) {
	ns := withUnderlay(t)
	for _, l := range []string{
		"ip route add default via 192.0.2.254", "ip route add 10.244.3.0/24 via 192.0.2.3 proto 77",
		"ip -6 route add default via 2001:db8::254", "ip route add 198.51.100.0/24 via 192.0.2.9",
	} {
		run(t, ns, l)
	}
	addrs := []netip.Addr{addr("192.0.2.1"), addr("198.51.100.1"), addr("2001:db8::1"), addr("2001:db8:1::1"), addr("10.244.3.1")}
	for local, want := range map[string]string{"192.0.2.250": "192.0.2.1", "2001:db8::250": "2001:db8::1"} {
		d := openIn(t, ns, Config{Local: addr(local)})
		on, err := d.OnLink(addrs)
		if err != nil || len(on) != 1 || !on[addr(want)] {
			t.Errorf("from %s: %v, %v; want %s", local, on, err, want)
		}
	}
}

func TestRemoveTakesOursOnly(t *testing.T) {
	ns := withUnderlay(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	reconcile(t, d, Desired(slices.Concat(peersOf(1, 3, 0, 0), peersOf(2, 5, 0, 0))))
	for _, l := range []string{
		"ip link add other type vxlan id 9 dstport 4789 local 192.0.2.250", "ip route add 10.99.0.0/24 via 192.0.2.9 proto static",
		"ip route add blackhole 10.244.211.0/24 table 99 proto 77",
	} {
		run(t, ns, l)
	}
	within := func(fn func() ([]string, error)) string {
		t.Helper()
		var did []string
		if err := ns.Do(func() (err error) {
			did, err = fn()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return sorted(did)
	}
	if did := within(func() ([]string, error) { return RemoveDevices("overlay.1") }); did != "" {
		t.Errorf("what is to be kept: %s", did)
	}
	if did := within(RemoveRoutes); did != "removed route 10.244.1.0/24\nremoved route 10.244.2.0/24\nremoved route fd00:0:0:1::/64" {
		t.Errorf("routes: %s", did)
	}
	if did := within(func() ([]string, error) { return RemoveDevices() }); did != "removed overlay.1" {
		t.Errorf("devices: %s", did)
	}
	if did := within(func() ([]string, error) { return RemoveDevices() }) + within(RemoveRoutes); did != "" {
		t.Errorf("a second time: %s", did)
	}
	if left := show(t, ns, "ip -br link") + show(t, ns, "ip route show table all proto 77") + show(t, ns, "ip route"); !strings.Contains(left, "other") ||
		!strings.Contains(left, "table 99") || !strings.Contains(left, "10.99.0.0/24") || strings.Contains(left, "overlay.1") {
		t.Errorf("left is\n%s", left)
	}
}

func TestChecksumOffloadOfOldKernels(t *testing.T) {
	for release, bad := range map[string]bool{
		"4.18.0-553.el8.x86_64": true, "5.6.19": true, "5.4": true, "5.7": false, "5.7.0-rc1": false, "5.10.0-28-amd64": false,
		"6.18.0": false, "10.1": false, "": false, "5": false, "x.y": false,
	} {
		if got := badChecksums(release); got != bad {
			t.Errorf("%q: %t", release, got)
		}
	}
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	mend := func(release string) (what string) {
		t.Helper()
		if err := ns.Do(func() (err error) {
			what, err = d.mendChecksums(release)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return what
	}
	value := func() (on uint32) {
		t.Helper()
		if err := ns.Do(func() (err error) {
			on, err = txChecksum(testDevice, unix.ETHTOOL_GTXCSUM, 0)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return on
	}
	if what := mend("6.1.0"); what != "" || value() != 1 {
		t.Errorf("a good kernel: %q, offload is %d", what, value())
	}
	if what := mend("5.4.0"); what == "" || value() != 0 {
		t.Errorf("a bad kernel: %q, offload is %d", what, value())
	}
	if what := mend("5.4.0"); what != "" {
		t.Errorf("a second time: %q", what)
	}
}

// Two devices, one monitor: each one's misses and changes are told once.
func TestTwoScopes(t *testing.T) {
	all := Scope{Index: 9, Networks: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00::/16")}, Gateways: []netip.Prefix{prefix("10.244.0.0/32")}}
	m := quiet(all, Scope{Index: 2, Device: testConfig(), Want: Empty()})
	for _, kind := range []string{"l3miss", "l2miss"} {
		m.note(rtnl.Notification{Kind: unix.RTM_GETNEIGH, Body: body(t, kind)})
	}
	if e := m.Take(); len(e.Misses) != 2 || e.Misses[Miss{Device: 2, IP: addr("10.244.1.0")}].IsZero() {
		t.Errorf("misses %v", e.Misses)
	}
	m.note(rtnl.Notification{Kind: unix.RTM_DELROUTE, Port: 7, Body: body(t, "route")})
	m.note(rtnl.Notification{Kind: unix.RTM_NEWADDR, Body: body(t, "address")})
	m.note(rtnl.Notification{Kind: unix.RTM_NEWNEIGH, Port: 7, Body: body(t, "neigh")})
	if got := changeTexts(m.Take().Changes); got != "deleted route 10.244.1.0/24 via 10.244.1.0 dev 2 proto 77\nset neigh 10.244.1.0 lladdr 0e:00:00:00:01:01\n" {
		t.Errorf("told\n%s", got)
	}
}

// News of the underlay are told as such, and are no changes to ours.
func TestLookout(t *testing.T) {
	ns := withUnderlay(t)
	index := 2
	m := listen(t, ns, Scope{Index: 99})
	m.SetLookout(Lookout{Interface: "under", Index: index})
	read(t, m)
	news := func(line string) bool {
		t.Helper()
		run(t, ns, line)
		// A link of another kind ends what has to be waited for.
		seen := false
		run(t, ns, "ip link add mark type bridge")
		m.SetScope(Scope{Index: 99, Names: []string{"mark"}})
		run(t, ns, "ip link set mark mtu 1400")
		e := collect(t, m, func(e Events) bool { return e.Dirty() })
		seen = e.Underlay
		run(t, ns, "ip link del mark")
		return seen
	}
	for _, c := range []struct {
		line   string
		routes bool
		want   bool
	}{
		{"ip link set under mtu 1400", false, true},
		{"ip addr add 192.0.2.251/24 dev under", false, true},
		{"ip addr del 192.0.2.251/24 dev under", false, true},
		{"ip route add default via 192.0.2.254", false, true},
		{"ip route add 198.51.100.0/24 via 192.0.2.254", false, false},
		{"ip route add 198.51.101.0/24 via 192.0.2.254", true, true},
		{"ip route add 10.244.5.0/24 via 192.0.2.254 proto 77", true, false},
		{"ip addr add 203.0.113.1/24 dev lo", false, false},
		{"ip link set under down", false, true},
	} {
		m.SetLookout(Lookout{Interface: "under", Index: index, Routes: c.routes})
		if got := news(c.line); got != c.want {
			t.Errorf("%s (routes %t): news %t, want %t", c.line, c.routes, got, c.want)
		}
	}
}

// Routes move from one device to another within one ReconcileAll, both ways, IPv6
// too.
func TestRoutesMoveBetweenDevices(t *testing.T) {
	ns := withUnderlay(t)
	four := openIn(t, ns, testConfig())
	c := testConfig()
	c.Name, c.MAC, c.Local, c.MTU, c.Addrs = "overlay-v6.1", MAC{2, 0, 0, 0, 0, 6}, addr("2001:db8::250"), 1430, nil
	six := openIn(t, ns, c)
	ensure(t, four)
	ensure(t, six)
	over6 := peersOf(1, 3, 0, 0)
	for i := range over6 {
		over6[i].Underlay, over6[i].MAC = addr("2001:db8::1"), MAC{0x0e, 6, 0, 0, 0, 1}
	}
	for _, want := range [][2]State{
		{Desired(peersOf(1, 3, 0, 0)), Empty()}, {Empty(), Desired(over6)},
		{Desired(peersOf(1, 1, 0, 0)), Desired(over6[1:])}, {Desired(peersOf(1, 2, 0, 0)), Desired(over6[:1])},
	} {
		if _, err := ReconcileAll([]Kernel{four, six}, []func(State) State{Exactly(want[0]), Exactly(want[1])}); err != nil {
			t.Error(err)
		}
		for i, d := range []*Device{four, six} {
			if s, err := d.State(); err != nil || text(s) != text(want[i]) {
				t.Errorf("%s holds\n%s\n%v; want\n%s", d.Config().Name, text(s), err, text(want[i]))
			}
		}
	}
}
