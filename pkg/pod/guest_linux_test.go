package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// addGuest hangs a pod on the bridge as the reference plugin does.
func addGuest(t testing.TB, node, ns *netlab.Namespace, host string, addrs ...string) {
	t.Helper()
	err := node.IP(
		fmt.Sprintf("link add %s mtu 1450 type veth peer name eth0 mtu 1450 netns %s", host, ns.Name),
		fmt.Sprintf("link set %s master cni0 up", host),
	)
	lines := []string{"link set eth0 up"}
	for _, a := range addrs {
		lines = append(lines, "address add "+a+" dev eth0 nodad")
	}
	if err := errors.Join(err, ns.IP(lines...)); err != nil {
		t.Fatal(err)
	}
}

func readBridge(t testing.TB, node *netlab.Namespace) (b BridgeState) {
	t.Helper()
	in(t, node, func() (err error) {
		var found bool
		b, found, err = ReadBridge("cni0")
		if err == nil && !found {
			err = errors.New("not found")
		}
		return err
	})
	return b
}

func TestReadBridgeTellsGuestsAndTheirAddresses(t *testing.T) {
	node, ours, one, two, bare := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	in(t, node, func() error {
		if b, found, err := ReadBridge("cni0"); found || err != nil {
			return fmt.Errorf("without a bridge: %+v, %t, %w", b, found, err)
		}
		return nil
	})
	e := ensure(t, node, testBridge())
	attach(t, node, testAttachment(ours, 7), e)
	addGuest(t, node, one, "vethone", "10.244.1.20/24", "fd00:1::20/64")
	addGuest(t, node, two, "vethtwo", "10.244.1.21/24")
	addGuest(t, node, bare, "vethbare")
	output(t, node, "ip link add aside type veth peer name aside2") // on no bridge
	b := readBridge(t, node)
	if b.Index != e.Index || b.MTU != 1450 || b.MAC.String() != e.MAC.String() || b.Ports != 4 || !b.Up {
		t.Errorf("bridge %+v, want index %d, MAC %s and 4 ports", b, e.Index, e.MAC)
	}
	for _, want := range prefixes("10.244.1.1/24", "fd00:1::1/64") {
		if !slices.Contains(b.Addrs, want) {
			t.Errorf("addresses %v lack %s", b.Addrs, want)
		}
	}
	want := []Guest{{"vethone", addrs("10.244.1.20", "fd00:1::20")}, {"vethtwo", addrs("10.244.1.21")}, {"vethbare", nil}}
	if fmt.Sprint(b.Guests) != fmt.Sprint(want) {
		t.Errorf("guests %v, want %v", b.Guests, want)
	}
	if g, ok := b.With(addrs("10.244.1.9", "fd00:1::20")); !ok || g.HostName != "vethone" {
		t.Errorf("the guest with fd00:1::20 is %v, %t", g, ok)
	}
	in(t, node, func() error {
		if _, _, err := ReadBridge("aside"); err == nil || !strings.Contains(err.Error(), "want a bridge") {
			return fmt.Errorf("of a veth link: %w", err)
		}
		return nil
	})
}

// TestAdoptedMACIsPinned: a bridge whose MAC nobody set takes the lowest of its
// ports', and changes it when that one goes.
func TestAdoptedMACIsPinned(t *testing.T) {
	node, one, two := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	adopt := func() (mac net.HardwareAddr) {
		in(t, node, func() (err error) { mac, err = AdoptBridge("cni0"); return err })
		return mac
	}
	if mac := adopt(); mac != nil {
		t.Errorf("without a bridge %s, want none", mac)
	}
	output(t, node, "ip link add cni0 type bridge")
	if mac := adopt(); mac != nil {
		t.Errorf("without a pod %s, want none: nobody knows it", mac)
	}
	addGuest(t, node, one, "vethone", "10.244.1.20/24")
	addGuest(t, node, two, "vethtwo", "10.244.1.21/24")
	output(t, node, "ip link set vethone address 02:00:00:00:00:01")
	mac := adopt()
	if mac.String() != "02:00:00:00:00:01" {
		t.Fatalf("MAC %s, want that of the lowest port: this test tests nothing", mac)
	}
	output(t, node, "ip link del vethone")
	if got := readBridge(t, node).MAC; got.String() != mac.String() {
		t.Errorf("after the port has gone MAC is %s, want %s", got, mac)
	}
}

func TestMayLive(t *testing.T) {
	subnets := prefixes("10.244.1.0/24", "fd00:1::/64")
	known := Guest{"a", addrs("10.244.1.20", "fd00:1::20")}
	for _, tt := range []struct {
		name   string
		guests []Guest
		addrs  []netip.Addr
		want   bool
	}{
		{"an empty bridge", nil, addrs("10.244.1.20"), false},
		{"its own", []Guest{known}, addrs("10.244.1.20"), true},
		{"its own, by the other family", []Guest{known}, addrs("10.244.1.7", "fd00:1::20"), true},
		{"somebody else's", []Guest{known}, addrs("10.244.1.21"), false},
		{"one that tells nothing", []Guest{known, {"b", nil}}, addrs("10.244.1.21"), true},
		{"one that has addresses of elsewhere only", []Guest{known, {"b", addrs("10.0.2.1")}}, addrs("10.244.1.21"), true},
		{"one with another besides", []Guest{{"b", addrs("10.0.2.1", "10.244.1.22")}}, addrs("10.244.1.21"), false},
	} {
		if got := (BridgeState{Guests: tt.guests}).MayLive(tt.addrs, subnets); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestDetachGuest(t *testing.T) {
	node, ns, other := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	ensure(t, node, testBridge())
	addGuest(t, node, ns, "vethone", "10.244.1.20/24")
	addGuest(t, node, other, "vethtwo", "10.244.1.21/24")
	if err := ns.IP("link add dummy9 type bridge", "address add 10.244.1.30/24 dev dummy9"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, netns, ifname, addr string
		found                     bool
	}{
		{"a namespace that is gone", "/run/netns/nosuch", "eth0", "10.244.1.20", false},
		{"no namespace at all", "", "eth0", "10.244.1.20", false},
		{"the node's own", node.Path(), "vethone", "10.244.1.20", false},
		{"another interface", ns.Path(), "eth1", "10.244.1.20", false},
		{"no veth", ns.Path(), "dummy9", "10.244.1.30", false},
		{"another pod's namespace", other.Path(), "eth0", "10.244.1.20", false},
		{"the pod's", ns.Path(), "eth0", "10.244.1.20", true},
		{"again", ns.Path(), "eth0", "10.244.1.20", false},
	} {
		in(t, node, func() error {
			if found, err := DetachGuest(tt.netns, tt.ifname, addrs(tt.addr)); found != tt.found || err != nil {
				t.Errorf("%s: %t, %v, want %t", tt.name, found, err, tt.found)
			}
			return nil
		})
	}
	if b := readBridge(t, node); len(b.Guests) != 1 || b.Guests[0].HostName != "vethtwo" {
		t.Errorf("left on the bridge: %v, want the other pod", b.Guests)
	}
	if text := output(t, ns, "ip -br link"); !strings.Contains(text, "dummy9") {
		t.Errorf("left in the pod:\n%s", text)
	}
}

func TestCheckGuest(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	ensure(t, node, testBridge())
	addGuest(t, node, ns, "vethone", "10.244.1.20/24")
	if err := ns.IP("route add default via 10.244.1.1"); err != nil {
		t.Fatal(err)
	}
	a := Attachment{Container: "c", IfName: "eth0", Netns: ns.Path(), Addrs: prefixes("10.244.1.20/24"), Gateways: addrs("10.244.1.1"), Hairpin: true}
	check := func() (err error) {
		in(t, node, func() error { err = CheckGuest(a, "cni0"); return nil })
		return err
	}
	if err := check(); err != nil {
		t.Errorf("as it should be: %v", err)
	}
	for _, tt := range []struct{ spoil, undo, want string }{
		{"ip link set vethone nomaster", "ip link set vethone master cni0", "no port to a pod with [10.244.1.20]"},
		{"ip link set cni0 name cni9", "ip link set cni9 name cni0", "bridge cni0: there is none"},
	} {
		output(t, node, tt.spoil)
		if err := check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want …%s…", tt.spoil, err, tt.want)
		}
		output(t, node, tt.undo)
	}
	output(t, ns, "ip route del default")
	if err := check(); err == nil || !strings.Contains(err.Error(), "lacks the default route via 10.244.1.1") {
		t.Errorf("without its route: %v", err)
	}
}

// TestBridgeKeepsTheMACThatPodsKnow: nothing that Ensure does changes the MAC of
// a bridge that was there before, and pods to come get it as their gateway's.
func TestBridgeKeepsTheMACThatPodsKnow(t *testing.T) {
	node, old, ns := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	mac, _ := net.ParseMAC("9a:0b:11:22:33:44")
	if err := node.IP("link add cni0 type bridge", "link set cni0 address "+mac.String()+" mtu 1450 up", "address add 10.244.1.1/24 dev cni0"); err != nil {
		t.Fatal(err)
	}
	addGuest(t, node, old, "vethone", "10.244.1.20/24")
	b := testBridge()
	b.Hardware = mac
	in(t, node, func() error {
		got, err := AdoptBridge("cni0")
		if err == nil && got.String() != mac.String() {
			err = fmt.Errorf("adopted with MAC %s, want %s", got, mac)
		}
		return err
	})
	for range 2 {
		if e := ensure(t, node, b); e.MAC.String() != mac.String() {
			t.Errorf("says MAC %s, want %s", e.MAC, mac)
		}
	}
	a := testAttachment(ns, 7)
	attach(t, node, a, ensure(t, node, b))
	if got := readBridge(t, node).MAC; got.String() != mac.String() {
		t.Errorf("MAC is %s, want %s as before", got, mac)
	}
	if text := output(t, ns, "ip neigh show 10.244.1.1"); !strings.Contains(text, mac.String()) || !strings.Contains(text, "PERMANENT") {
		t.Errorf("a new pod knows its gateway as %q, want %s", text, mac)
	}
	// Somebody changes it, or deletes the bridge: it comes back as it was.
	output(t, node, "ip link set cni0 address 02:00:00:00:00:01")
	ensure(t, node, b)
	if got := readBridge(t, node).MAC; got.String() != mac.String() {
		t.Errorf("after a change MAC is %s, want %s", got, mac)
	}
	output(t, node, "ip link del cni0")
	ensure(t, node, b)
	if got := readBridge(t, node).MAC; got.String() != mac.String() {
		t.Errorf("after a deletion MAC is %s, want %s", got, mac)
	}
}
