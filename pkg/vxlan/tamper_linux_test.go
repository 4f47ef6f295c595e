package vxlan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// tampering is what others do to our device. Node 1's entries are meant:
// 10.244.1.0/24 and fd00:0:0:1::/64 behind 0e:…:01 at 192.0.2.1.
var tampering = []struct {
	name  string
	lines []string // the last one is announced
	says  string   // how its announcement begins
	named bool     // with the requester's port id
}{
	{"FDB: another destination", []string{"bridge fdb replace 0e:00:00:00:00:01 dev overlay.1 dst 192.0.2.99"}, "set fdb 0e:00:00:00:00:01 dst 192.0.2.99", false},
	{"FDB: another port", []string{"bridge fdb replace 0e:00:00:00:00:01 dev overlay.1 dst 192.0.2.1 port 99"}, "set fdb 0e:00:00:00:00:01 dst 192.0.2.1, with a port, VNI or device of its own", false},
	{"FDB: another VNI", []string{"bridge fdb replace 0e:00:00:00:00:01 dev overlay.1 dst 192.0.2.1 vni 9"}, "set fdb 0e:00:00:00:00:01 dst 192.0.2.1, with", false},
	{"FDB: dynamic", []string{"bridge fdb replace 0e:00:00:00:00:01 dev overlay.1 dst 192.0.2.1 dynamic"}, "set fdb 0e:00:00:00:00:01 dst 192.0.2.1, not permanent", false},
	{"FDB: deleted", []string{"bridge fdb del 0e:00:00:00:00:01 dev overlay.1"}, "deleted fdb 0e:00:00:00:00:01", false},
	{"FDB: foreign entry", []string{"bridge fdb add 0e:00:00:00:00:77 dev overlay.1 dst 192.0.2.7"}, "set fdb 0e:00:00:00:00:77 dst 192.0.2.7", false},
	{"FDB: nexthop group", []string{
		"bridge fdb del 0e:00:00:00:00:01 dev overlay.1", "ip nexthop add id 1 via 192.0.2.9 fdb",
		"ip nexthop add id 10 group 1 fdb", "bridge fdb add 0e:00:00:00:00:01 dev overlay.1 nhid 10",
	}, "set fdb 0e:00:00:00:00:01 dst invalid IP", false},

	{"neighbour: another MAC", []string{"ip neigh replace 10.244.1.0 dev overlay.1 lladdr 02:00:00:00:00:77"}, "set neigh 10.244.1.0 lladdr 02:00:00:00:00:77", true},
	{"neighbour: REACHABLE", []string{"ip neigh replace 10.244.1.0 dev overlay.1 lladdr 0e:00:00:00:00:01 nud reachable"}, "set neigh 10.244.1.0 lladdr 0e:00:00:00:00:01, not permanent", true},
	{"neighbour: deleted", []string{"ip neigh del 10.244.1.0 dev overlay.1"}, "deleted neigh 10.244.1.0", true},
	{"neighbour: flushed", []string{"ip neigh flush dev overlay.1 nud permanent"}, "deleted neigh 10.244.1.0", true},
	{"neighbour: foreign", []string{"ip neigh replace 10.244.77.0 dev overlay.1 lladdr 02:00:00:00:00:77"}, "set neigh 10.244.77.0 lladdr 02:00:00:00:00:77", true},
	{"IPv6 neighbour: another MAC", []string{"ip neigh replace fd00:0:0:1:: dev overlay.1 lladdr 02:00:00:00:00:77"}, "set neigh fd00:0:0:1:: lladdr 02:00:00:00:00:77", true},
	{"IPv6 neighbour: deleted", []string{"ip neigh del fd00:0:0:1:: dev overlay.1"}, "deleted neigh fd00:0:0:1::", true},

	{"route: replaced by lo", []string{"ip route replace 10.244.1.0/24 dev lo"}, "set route 10.244.1.0/24 via invalid IP dev 1 proto 3", true},
	{"route: replaced by a blackhole", []string{"ip route replace blackhole 10.244.1.0/24"}, "set route 10.244.1.0/24", true},
	{"route: another in front", []string{"ip route prepend blackhole 10.244.1.0/24"}, "set route 10.244.1.0/24", true},
	{"route: another behind", []string{"ip route append blackhole 10.244.1.0/24"}, "set route 10.244.1.0/24", true},
	{"route: without onlink", []string{"ip route replace 10.244.1.0/24 dev overlay.1 proto 77"}, "set route 10.244.1.0/24 via invalid IP dev", true},
	{"route: other gateway", []string{"ip route replace 10.244.1.0/24 via 10.244.2.0 dev overlay.1 onlink proto 77"}, "set route 10.244.1.0/24 via 10.244.2.0", true},
	{"route: deleted", []string{"ip route del 10.244.1.0/24"}, "deleted route 10.244.1.0/24", true},
	{"route: stale one of ours", []string{"ip route add 10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink proto 77"}, "set route 10.244.77.0/24", true},
	{"routes: flushed", []string{"ip route flush dev overlay.1"}, "deleted route 10.244.1.0/24", true},
	{"routes: flushed by protocol", []string{"ip route flush proto 77"}, "deleted route 10.244.1.0/24", true},
	{"IPv6 route: replaced by lo", []string{"ip -6 route replace fd00:0:0:1::/64 dev lo"}, "set route fd00:0:0:1::/64", true},
	{"IPv6 route: replaced by a blackhole", []string{"ip -6 route replace blackhole fd00:0:0:1::/64"}, "set route fd00:0:0:1::/64", true},
	{"IPv6 route: second next hop", []string{"ip -6 route append fd00:0:0:1::/64 via fd00:0:0:2:: dev overlay.1 onlink"}, "set route fd00:0:0:1::/64", true},
	{"IPv6 route: another in front", []string{"ip -6 route prepend blackhole fd00:0:0:1::/64"}, "set route fd00:0:0:1::/64", true},
	{"IPv6 routes: flushed", []string{"ip -6 route flush dev overlay.1 proto 77"}, "deleted route fd00:0:0:1::/64", true},

	{"address: deleted", []string{"ip addr del 10.244.0.0/32 dev overlay.1"}, "deleted address 10.244.0.0/32", true},
	{"IPv6 address: deleted", []string{"ip addr del fd00::/128 dev overlay.1"}, "deleted address fd00::/128", false},
	{"link: down", []string{"ip link set overlay.1 down"}, "set link overlay.1 down", false},
	{"link: down and up", []string{"ip link set overlay.1 down", "ip link set overlay.1 up"}, "set link overlay.1 down", false},
	{"link: MTU", []string{"ip link set overlay.1 mtu 1400"}, "set link overlay.1 up mtu 1400", false},
	{"link: MAC", []string{"ip link set overlay.1 address 02:00:00:00:00:99"}, "set link overlay.1 up mtu 1450 address 02:00:00:00:00:99", false},
	{"link: alias", []string{"ip link set overlay.1 alias mine"}, "set link overlay.1", false},
	{"link: deleted", []string{"ip link del overlay.1"}, "deleted link overlay.1", false},
}

// Whatever others do to ours is announced within a second, with their port id
// where the kernel tells it; one Ensure and one Reconcile put it right; another
// one has nothing to do; and the repair is not announced in its turn.
func TestTamperingIsAnnouncedAndPutRight(t *testing.T) {
	want := Desired(append(peersOf(1, 3, 0, 0), peersOf(2, 3, 0, 0)...))
	for _, c := range tampering {
		t.Run(c.name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			foreign := foreignThings(t, ns)
			d := openIn(t, ns, testConfig())
			m := listen(t, ns, Scope{})
			read(t, m)
			ensure(t, d)
			m.SetScope(testScope(d, want))
			reconcile(t, d, want)
			run(t, ns, "ip route add 10.244.200.0/24 dev overlay.1 proto static")
			barrier(t, m, ns)

			var pid uint32
			for _, l := range c.lines {
				pid = run(t, ns, l)
			}
			e := collect(t, m, func(e Events) bool {
				_, ok := find(e.Changes, c.says)
				return ok
			})
			change, _ := find(e.Changes, c.says)
			if who := map[bool]uint32{true: pid, false: 0}[c.named]; change.Port != who {
				t.Errorf("%q was done by port %d, want %d", change.Text, change.Port, who)
			}
			if !e.Dirty() {
				t.Error("events are not dirty")
			}
			// Some tampering takes the static route, too; we never do.
			kept := strings.Contains(show(t, ns, "ip route show"), "10.244.200.0/24")

			// A link that flaps takes entries with it, and the kernel tells of
			// each: there the end of the news is not known.
			link := strings.HasPrefix(c.name, "link: ")
			if !link {
				barrier(t, m, ns)
			}
			ensure(t, d)
			m.SetScope(testScope(d, want))
			reconcile(t, d, want)
			if !link {
				if repair := barrier(t, m, ns); len(repair) != 0 {
					t.Errorf("the repair is announced:\n%s", changeTexts(repair))
				}
			}
			if got := seen(t, ns); got != text(want) {
				t.Errorf("kernel holds\n%s\nwant\n%s", got, text(want))
			}
			if did := ensure(t, d); len(did) != 0 {
				t.Errorf("another Ensure did %q", did)
			}
			if ops := reconcile(t, d, want); len(ops) != 0 {
				t.Errorf("another Reconcile issued %v", ops)
			}
			foreign()
			if kept && !strings.Contains(show(t, ns, "ip route show"), "10.244.200.0/24") {
				t.Error("somebody else's route on our device is gone")
			}
		})
	}
}

// Our own changes are no news: neither those that make the device and its
// tables, nor those that move a peer, nor repairs.
func TestOwnChangesAreNoNews(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	m := listen(t, ns, testScope(d, Empty()))
	read(t, m)
	ensure(t, d)
	for _, peers := range [][]Peer{
		append(peersOf(1, 3, 0, 0), peersOf(2, 3, 0, 0)...), append(peersOf(1, 3, 1, 0), peersOf(2, 3, 0, 1)...), peersOf(1, 3, 1, 0), nil,
	} {
		m.SetScope(testScope(d, Desired(peers)))
		reconcile(t, d, Desired(peers))
		if before := barrier(t, m, ns); len(before) != 0 {
			t.Errorf("to %d peers: announced were\n%s", len(peers), changeTexts(before))
		}
	}
	c := testConfig()
	c.MTU, c.Addrs = 1400, c.Addrs[:1]
	if err := d.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	m.SetScope(testScope(d, Empty()))
	if ensure(t, d); len(show(t, ns, "ip link show overlay.1")) == 0 {
		t.Fatal("no device")
	}
	if before := barrier(t, m, ns); len(before) != 0 {
		t.Errorf("other MTU, address removed: announced were\n%s", changeTexts(before))
	}
}

// A reader that is late still tells a device that was made from one whose
// forwarding somebody switched off: both are announced as forwarding off.
func TestNewDeviceIsNotForwardingSwitchedOff(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	m := listen(t, ns, Scope{})
	ensure(t, d)
	m.SetScope(testScope(d, Empty()))
	read(t, m)
	if news := barrier(t, m, ns); len(news) != 0 {
		t.Errorf("announced were\n%s", changeTexts(news))
	}
	if err := ns.Sysctl("net/ipv4/conf/"+testDevice+"/forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	if news := barrier(t, m, ns); len(news) != 1 || !strings.HasPrefix(news[0].Text, "set forwarding off on link ") {
		t.Errorf("forwarding was switched off; announced were\n%s", changeTexts(news))
	}
}

// foreignThings makes what is not ours and returns a check that it is all there
// still.
func foreignThings(t *testing.T, ns *netlab.Namespace) func() {
	t.Helper()
	for _, l := range []string{
		"ip link add br0 type bridge",
		"ip link set br0 addrgenmode none",
		"ip link set br0 up",
		"ip addr add 203.0.113.1/24 dev br0",
		"ip route add 10.244.210.0/24 via 203.0.113.9 proto static",
		"ip route add blackhole 10.244.211.0/24 table 99 proto 77",
		"ip neigh add 203.0.113.9 dev br0 lladdr 02:00:00:00:00:09 nud permanent",
		"bridge fdb add 02:00:00:00:00:09 dev br0 self permanent",
	} {
		run(t, ns, l)
	}
	all := func() string {
		// The kernel adds group entries to the FDB when it likes.
		fdb := strings.Contains(show(t, ns, "bridge fdb show dev br0"), "02:00:00:00:00:09 ")
		return show(t, ns, "ip -o addr show dev br0") + show(t, ns, "ip route show dev br0") + show(t, ns, "ip route show table 99") +
			show(t, ns, "ip neigh show dev br0 nud permanent") + fmt.Sprintf("FDB entry: %t\n", fdb)
	}
	before := all()
	return func() {
		t.Helper()
		if after := all(); after != before {
			t.Errorf("what is not ours was\n%sand is\n%s", before, after)
		}
	}
}

// A bridge that takes the device as a port keeps FDB entries of its own for it.
// They show up in the same dump, and are neither ours nor ours to remove.
func TestBridgePortEntriesAreNotOurs(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	want := Desired(peersOf(1, 3, 0, 0))
	reconcile(t, d, want)
	run(t, ns, "ip link add br0 type bridge")
	run(t, ns, "ip link set overlay.1 master br0")
	m := listen(t, ns, testScope(d, want))
	read(t, m)
	run(t, ns, "bridge fdb add 02:00:00:00:00:55 dev overlay.1 master static")
	if ops := reconcile(t, d, want); len(ops) != 0 {
		t.Errorf("Reconcile issued %v", ops)
	}
	if news := barrier(t, m, ns); len(news) != 0 {
		t.Errorf("announced were\n%s", changeTexts(news))
	}
	if fdb := show(t, ns, "bridge fdb show dev overlay.1"); !strings.Contains(fdb, "02:00:00:00:00:55 master br0 static") {
		t.Errorf("the bridge's entry is gone:\n%s", fdb)
	}
}
