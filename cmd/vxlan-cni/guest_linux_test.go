package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
)

// guest makes a pod as the bridge plugin with host-local does, and imports its
// addresses as `overlayctl migrate` does. The node has cni0 already.
func (n testNode) guest(container, v4, v6 string) *netlab.Namespace {
	n.Helper()
	p := netlab.TestNamespace(n)
	n.sh("ip link add vg" + container + " mtu 1450 master cni0 up type veth peer name eth0 mtu 1450 netns " + p.Name)
	if err := p.IP("link set eth0 up", "address add "+v4+"/24 dev eth0", "address add "+v6+"/64 dev eth0 nodad", "route add default via 10.244.1.1"); err != nil {
		n.Fatal(err)
	}
	pool, err := ipam.Open(n.dir, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")})
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	var list []ipam.Request
	for _, a := range []string{v4, v6} {
		list = append(list, ipam.Request{Key: ipam.Key{Container: container, IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr(a)}})
	}
	if _, err := pool.Import(n.Context(), list); err != nil {
		n.Fatal(err)
	}
	return p
}

// flannelsNode is a node with the bridge of the reference plugin.
func flannelsNode(t *testing.T) testNode {
	n := newNode(t)
	n.sh("ip link add cni0 mtu 1450 up type bridge")
	n.sh("ip addr add 10.244.1.1/24 dev cni0")
	return n
}

// chainResult is what flannel's chain left with the runtime.
func chainResult(p *netlab.Namespace, v4 string) string {
	return fmt.Sprintf(`"prevResult": {"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"vgx"},{"name":"eth0","sandbox":%q}],
		"ips":[{"interface":2,"address":"%s/24","gateway":"10.244.1.1"}],
		"routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]}`, p.Path(), v4)
}

func TestDelOfAPodThatFlannelAttached(t *testing.T) {
	for name, test := range map[string]struct {
		netns func(*netlab.Namespace) string
		gone  bool // the interface goes at once
	}{
		"with its namespace":    {func(p *netlab.Namespace) string { return p.Path() }, true},
		"without":               {func(*netlab.Namespace) string { return "" }, false},
		"with one that is gone": {func(*netlab.Namespace) string { return "/run/netns/nosuch" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := flannelsNode(t)
			p, other := n.guest("old", "10.244.1.7", "fd00:1::9"), n.guest("other", "10.244.1.8", "fd00:1::8")
			e := env{verb: "DEL", container: "old", ifname: "eth0", netns: test.netns(p)}
			for range 2 {
				n.ok(e, n.conf("1.0.0"))
			}
			if left := n.holds(); strings.Contains(left, "old") || strings.Count(left, "slot other") != 1 {
				t.Errorf("left behind:\n%s\nwant the other pod's slot", left)
			}
			if gone := !strings.Contains(n.sh("ip -br link"), "vgold"); gone != test.gone {
				t.Errorf("interface gone: %t, want %t", gone, test.gone)
			}
			if text := output(t, other, "ip -br link show eth0"); !strings.Contains(text, "UP") {
				t.Errorf("the other pod has %s", text)
			}
		})
	}
}

// TestDelOfPodsThatShareSlots: host-local crossed their addresses. A DEL removes
// its pod and no slot, for the other one may use an address of it.
func TestDelOfPodsThatShareSlots(t *testing.T) {
	n := flannelsNode(t)
	p, q := n.guest("one", "10.244.1.5", "fd00:1::9"), n.guest("two", "10.244.1.9", "fd00:1::5")
	n.ok(env{verb: "CHECK", container: "one", ifname: "eth0", netns: p.Path()}, n.conf("1.0.0", chainResult(p, "10.244.1.5")))
	n.ok(env{verb: "DEL", container: "unknown", ifname: "eth0", netns: p.Path()}, n.conf("1.0.0"))
	for _, tt := range []struct {
		container string
		netns     *netlab.Namespace
		links     string // that are left
	}{{"one", p, "vgtwo"}, {"two", q, ""}} {
		if links := n.sh("ip -br link"); !strings.Contains(links, "vg"+tt.container) {
			t.Fatalf("before the DEL of %s:\n%s", tt.container, links)
		}
		for range 2 {
			n.ok(env{verb: "DEL", container: tt.container, ifname: "eth0", netns: tt.netns.Path()}, n.conf("1.0.0"))
		}
		links := n.sh("ip -br link")
		if strings.Contains(links, "vg"+tt.container) || !strings.Contains(links, tt.links) {
			t.Errorf("after the DEL of %s:\n%s", tt.container, links)
		}
		slots, err := ipam.List(t.Context(), n.dir)
		if err != nil || len(slots) != 2 {
			t.Errorf("after the DEL of %s: %v, %v, want both slots held", tt.container, slots, err)
		}
		n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": []`))
		want := 2
		if tt.links == "" {
			want = 0 // no port of the bridge can be either's
		}
		if slots, err := ipam.List(t.Context(), n.dir); err != nil || len(slots) != want {
			t.Errorf("after GC: %v, %v, want %d slots", slots, err, want)
		}
	}
}

// TestDelTouchesNoInterfaceThatIsNotInTheSlot: an unknown container's namespace
// is somebody else's.
func TestDelTouchesNoInterfaceThatIsNotInTheSlot(t *testing.T) {
	n := flannelsNode(t)
	p := n.guest("old", "10.244.1.7", "fd00:1::7")
	n.ok(env{verb: "DEL", container: "unknown", ifname: "eth0", netns: p.Path()}, n.conf("1.0.0"))
	if text := n.sh("ip -br link"); !strings.Contains(text, "vgold") {
		t.Errorf("the pod's link is gone:\n%s", text)
	}
}

func TestCheckOfAPodThatFlannelAttached(t *testing.T) {
	n := flannelsNode(t)
	p := n.guest("old", "10.244.1.7", "fd00:1::9")
	e := env{verb: "CHECK", container: "old", ifname: "eth0", netns: p.Path()}
	n.ok(e, n.conf("1.0.0", chainResult(p, "10.244.1.7")))
	n.fails(e, n.conf("1.0.0", chainResult(p, "10.244.1.8")), 5, "no slot is held for it")
	n.sh("ip link set vgold nomaster")
	n.fails(e, n.conf("1.0.0", chainResult(p, "10.244.1.7")), 5, "no port to a pod with")
}

// TestGCKeepsPodsThatFlannelAttached: the runtime lists them under flannel's
// network, if at all. Those that are gone are freed.
func TestGCKeepsPodsThatFlannelAttached(t *testing.T) {
	n := flannelsNode(t)
	n.guest("old", "10.244.1.7", "fd00:1::9")
	n.guest("gone", "10.244.1.8", "fd00:1::8")
	n.sh("ip link del vggone")
	collect := func() {
		n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": []`))
	}
	file := filepath.Join(n.dir, "node.json")
	hidden := file + ".hidden"
	if err := os.Rename(file, hidden); err != nil {
		t.Fatal(err)
	}
	collect() // does not know the bridge
	if left := n.holds(); !strings.Contains(left, "slot old") || !strings.Contains(left, "slot gone") {
		t.Errorf("without a node file held\n%s\nwant both", left)
	}
	if err := os.Rename(hidden, file); err != nil {
		t.Fatal(err)
	}
	collect()
	if left := n.holds(); strings.Count(left, "slot old") != 2 || strings.Contains(left, "slot gone") {
		t.Errorf("held\n%s\nwant the two slots of the pod that lives", left)
	}
}
