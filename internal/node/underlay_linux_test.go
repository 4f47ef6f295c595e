package node

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// underlay6 gives the namespace's interface an IPv6 address too.
func underlay6(t *testing.T) {
	t.Helper()
	underlay(t)
	ip(t, "ip addr add 2001:db8::10/64 dev eth0 nodad")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "overlay-v6.1").Run() })
}

// on6 gives a lease an endpoint over IPv6.
func on6(l subnet.Lease, addr string, mac byte) subnet.Lease {
	l.VTEPs = append(slices.Clone(l.VTEPs), lease("x", "fd00::/64", addr, mac).VTEPs...)
	return l
}

// routesAre waits until the kernel's routes of ours are those, in any order.
func (r *running) routesAre(want ...string) {
	r.t.Helper()
	eventually(r.t, "routes", func() error {
		out := ip(r.t, "ip -4 route show proto 77") + ip(r.t, "ip -6 route show proto 77")
		var have []string
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			short := strings.Join(words[:5], " ")
			if slices.Contains(words, "onlink") {
				short += " onlink"
			}
			have = append(have, short)
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			return fmt.Errorf("routes are\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
}

// With both underlay families each pod family rides its own, as with flannel; a
// peer that has one of them alone is reached by that.
func TestTwoUnderlayFamilies(t *testing.T) {
	underlay6(t)
	store := subnettest.NewStore(network(t))
	put(t, store, on6(lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77), "2001:db8::77", 78))
	put(t, store, lease("b", "10.244.78.0/24 fd00:0:0:78::/64", "192.0.2.78", 79))
	put(t, store, lease("c", "10.244.79.0/24 fd00:0:0:79::/64", "2001:db8::79", 80))
	dir := t.TempDir()
	change := func(c *Config) { c.RunDir = dir }
	r := start(t, store, change)
	s := r.ready()
	r.inSync(3)
	want := []string{
		"10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink", "fd00:0:0:77::/64 via fd00:0:0:77:: dev overlay-v6.1 onlink",
		"10.244.78.0/24 via 10.244.78.0 dev overlay.1 onlink", "fd00:0:0:78::/64 via fd00:0:0:78:: dev overlay.1 onlink",
		"10.244.79.0/24 via 10.244.79.0 dev overlay-v6.1 onlink", "fd00:0:0:79::/64 via fd00:0:0:79:: dev overlay-v6.1 onlink",
	}
	r.routesAre(want...)
	if len(s.Devices) != 2 || s.PodMTU != 1430 || len(s.Lease.VTEPs) != 2 || s.Lease.VTEPs[0].MAC == s.Lease.VTEPs[1].MAC {
		t.Errorf("status %+v", s)
	}
	if fdb := ip(t, "bridge fdb show dev overlay-v6.1"); !strings.Contains(fdb, "dst 2001:db8::77") || !strings.Contains(fdb, "dst 2001:db8::79") || strings.Contains(fdb, "192.0.2") {
		t.Errorf("FDB of the IPv6 tunnel:\n%s", fdb)
	}
	for name, addr := range map[string]string{"overlay.1": s.Lease.Subnets[0].Addr().String() + "/32", "overlay-v6.1": s.Lease.Subnets[1].Addr().String() + "/128"} {
		if have := ip(t, "ip -br addr show dev "+name); !strings.Contains(have, addr) || strings.Count(have, "/") != 1 {
			t.Errorf("addresses of %s: %s, want %s", name, have, addr)
		}
	}
	events, err := r.client.Events(t.Context())
	if err != nil || strings.Contains(fmt.Sprint(events), "foreign") {
		t.Errorf("our own changes are told as others': %v, %v", events, err)
	}
	look := func() string {
		_, text, _ := strings.Cut(ip(t, "ip -o link show overlay-v6.1"), ": ") // without its index
		return text
	}
	link := look()
	for _, line := range []string{
		"ip link set overlay-v6.1 down", "ip link del overlay-v6.1", "ip -6 route flush dev overlay-v6.1", "bridge fdb flush dev overlay-v6.1",
		"ip addr flush dev overlay-v6.1", "ip link set overlay-v6.1 mtu 1400",
	} {
		ip(t, line)
		r.routesAre(want...)
		r.inSync(3)
		eventually(t, "device as before", func() error {
			if now := look(); now != link {
				return fmt.Errorf("%s: is\n%s, was\n%s", line, now, link)
			}
			return nil
		})
	}
	r.end()
	second := start(t, store, change)
	if s := second.ready(); s.Kernel.Operations != 0 {
		t.Errorf("a restart made %d operations", s.Kernel.Operations)
	}
	// The IPv6 address goes, and its device's peers move over; it comes back.
	ip(t, "ip addr del 2001:db8::10/64 dev eth0")
	second.routesAre(
		"10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink", "fd00:0:0:77::/64 via fd00:0:0:77:: dev overlay.1 onlink",
		"10.244.78.0/24 via 10.244.78.0 dev overlay.1 onlink", "fd00:0:0:78::/64 via fd00:0:0:78:: dev overlay.1 onlink")
	ip(t, "ip addr add 2001:db8::10/64 dev eth0 nodad")
	second.routesAre(want...)
	eventually(t, "lease has both endpoints again", func() error {
		if s := second.status(); len(s.Lease.VTEPs) != 2 {
			return fmt.Errorf("endpoints %v", s.Lease.VTEPs)
		}
		return nil
	})
}

// The device over IPv6 of an earlier start is removed where it is not wanted.
func TestUnwantedDeviceIsRemovedAtTheStart(t *testing.T) {
	underlay6(t)
	store := subnettest.NewStore(network(t))
	dir := t.TempDir()
	change := func(c *Config) { c.RunDir = dir }
	first := start(t, store, change)
	first.ready()
	first.end()
	ip(t, "ip link show overlay-v6.1")
	ip(t, "ip addr del 2001:db8::10/64 dev eth0")
	second := start(t, store, change)
	second.ready()
	if out, err := try("ip link show overlay-v6.1"); err == nil {
		t.Errorf("left is %s", out)
	}
}

// The underlay's address and MTU change under a running node: subnet and tables
// stay, lease and sizes follow.
func TestUnderlayIsFollowed(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77))
	r := start(t, store, nil)
	before := r.ready()
	r.inSync(1)
	index, _, _ := strings.Cut(ip(t, "ip -o link show overlay.1"), ":")
	for _, line := range []string{"ip addr add 192.0.2.99/24 dev eth0", "ip addr del 192.0.2.10/24 dev eth0", "ip addr add 192.0.2.99/24 dev eth0", "ip route replace default via 192.0.2.1"} {
		_, _ = try(line) // deleting the first takes the second along, or not: a sysctl says
	}
	eventually(t, "address followed", func() error {
		s := r.status()
		out := ip(t, "ip -d link show overlay.1")
		if fmt.Sprint(s.Underlay.Addresses) != "[192.0.2.99]" || !strings.Contains(out, "local 192.0.2.99") ||
			len(s.Lease.VTEPs) != 1 || s.Lease.VTEPs[0].Underlay.String() != "192.0.2.99" {
			return fmt.Errorf("underlay %+v, lease %+v, device %s", s.Underlay, s.Lease, out)
		}
		return nil
	})
	s := r.status()
	if fmt.Sprint(s.Lease.Subnets) != fmt.Sprint(before.Lease.Subnets) {
		t.Errorf("subnets were %v and are %v", before.Lease.Subnets, s.Lease.Subnets)
	}
	if now, _, _ := strings.Cut(ip(t, "ip -o link show overlay.1"), ":"); now != index {
		t.Errorf("the device was made anew")
	}
	for _, mtu := range []int{1400, 9000} {
		ip(t, fmt.Sprintf("ip link set eth0 mtu %d", mtu))
		eventually(t, "MTU followed", func() error {
			f, err := subnet.ReadNodeFile(r.cfg.RunDir)
			if err != nil {
				return err
			}
			links := ip(t, "ip link show overlay.1") + ip(t, "ip link show overlay-br0")
			if f.MTU != mtu-50 || strings.Count(links, fmt.Sprintf("mtu %d ", mtu-50)) != 2 || r.status().Lease.MTU != mtu-50 {
				return fmt.Errorf("node file %d, lease %d, links %s", f.MTU, r.status().Lease.MTU, links)
			}
			return nil
		})
	}
	// No address at all: everything stays, and it is said.
	ip(t, "ip addr flush dev eth0")
	eventually(t, "loss told", func() error {
		if s := r.status(); s.Underlay.Lost == "" {
			return fmt.Errorf("%+v", s.Underlay)
		}
		return nil
	})
	r.inSync(1)
	events, err := r.client.Events(t.Context())
	if text := fmt.Sprint(events); err != nil || !strings.Contains(text, "lost: ") || !strings.Contains(text, "is [192.0.2.99] on eth0") {
		t.Errorf("events: %v %v", events, err)
	}
}

// With DirectRouting the routing table decides, and decides anew when it changes.
func TestDirectRouting(t *testing.T) {
	underlay6(t)
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","DirectRouting":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	store := subnettest.NewStore(cfg)
	put(t, store, on6(lease("near", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77), "2001:db8::77", 78))
	put(t, store, lease("far", "10.244.78.0/24 fd00:0:0:78::/64", "198.51.100.78", 79))
	r := start(t, store, nil)
	r.ready()
	r.inSync(2)
	near := []string{"10.244.77.0/24 via 192.0.2.77 dev eth0", "fd00:0:0:77::/64 via 2001:db8::77 dev eth0"}
	far := []string{"10.244.78.0/24 via 10.244.78.0 dev overlay.1 onlink", "fd00:0:0:78::/64 via fd00:0:0:78:: dev overlay.1 onlink"}
	r.routesAre(slices.Concat(near, far)...)
	peers, err := r.client.Peers(t.Context())
	if err != nil || !slices.ContainsFunc(peers, func(p api.Peer) bool { return p.Node == "near" && len(p.Direct) == 2 }) || slices.ContainsFunc(peers, func(p api.Peer) bool { return p.Node == "far" && len(p.Direct) > 0 }) {
		t.Errorf("peers %+v, %v", peers, err)
	}
	ip(t, "ip route add 192.0.2.77/32 via 192.0.2.1") // behind a router now
	r.routesAre(slices.Concat([]string{"10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink", near[1]}, far)...)
	ip(t, "ip route del 192.0.2.77/32 via 192.0.2.1")
	r.routesAre(slices.Concat(near, far)...)
	ip(t, "ip route add 198.51.100.0/24 dev eth0")
	r.routesAre(slices.Concat(near, []string{"10.244.78.0/24 via 198.51.100.78 dev eth0", far[1]})...)
	ip(t, "ip route flush proto 77")
	r.routesAre(slices.Concat(near, []string{"10.244.78.0/24 via 198.51.100.78 dev eth0", far[1]})...)
	ip(t, "ip link set eth0 down")
	ip(t, "ip link set eth0 up")
	ip(t, "ip addr add 2001:db8::10/64 dev eth0 nodad")
	r.routesAre(slices.Concat(near, far)...)
}

// With host-gw there is no device: peers on the same link have plain routes, and
// others none, which is said.
func TestHostGateway(t *testing.T) {
	underlay6(t)
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"host-gw"}}`))
	if err != nil {
		t.Fatal(err)
	}
	gateway := func(name, subnets string, addrs ...string) subnet.Lease {
		l := lease(name, subnets, addrs[0], 1)
		l.Backend, l.VTEPs = subnet.TypeHostGW, nil
		for _, a := range addrs {
			l.VTEPs = append(l.VTEPs, subnet.VTEP{Underlay: netip.MustParseAddr(a)})
		}
		return l
	}
	tunnelled := subnettest.NewStore(network(t))
	dir := t.TempDir()
	change := func(c *Config) { c.RunDir = dir }
	before := start(t, tunnelled, change) // the node was one with a tunnel
	before.ready()
	before.end()
	store := subnettest.NewStore(cfg)
	put(t, store, gateway("near", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", "2001:db8::77"))
	put(t, store, gateway("four", "10.244.78.0/24 fd00:0:0:78::/64", "192.0.2.78"))
	put(t, store, gateway("far", "10.244.79.0/24", "198.51.100.79"))
	r := start(t, store, change)
	s := r.ready()
	r.routesAre("10.244.77.0/24 via 192.0.2.77 dev eth0", "fd00:0:0:77::/64 via 2001:db8::77 dev eth0", "10.244.78.0/24 via 192.0.2.78 dev eth0")
	if len(s.Devices) != 0 || s.Backend != "host-gw" || s.PodMTU != 1500 || s.Lease.MTU != 1500 {
		t.Errorf("status %+v", s)
	}
	if out := ip(t, "ip -d link show type vxlan"); out != "" {
		t.Errorf("left of the tunnel: %s", out)
	}
	if out := ip(t, "nft list ruleset"); strings.Contains(out, "8472") || !strings.Contains(out, "masquerade") {
		t.Errorf("rules:\n%s", out)
	}
	peers, err := r.client.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if want := map[string]string{"near": "[]", "four": "[an underlay address of fd00:0:0:78::/64's family, as host-gw needs it]", "far": "[a link that both nodes are on, as host-gw needs it]"}[p.Node]; fmt.Sprint(p.Missing) != want {
			t.Errorf("%s misses %v, want %s", p.Node, p.Missing, want)
		}
	}
	ip(t, "ip route flush proto 77")
	r.routesAre("10.244.77.0/24 via 192.0.2.77 dev eth0", "fd00:0:0:77::/64 via 2001:db8::77 dev eth0", "10.244.78.0/24 via 192.0.2.78 dev eth0")
	r.end()
	if s := start(t, store, change).ready(); s.Kernel.Operations != 0 {
		t.Errorf("a restart made %d operations", s.Kernel.Operations)
	}
}
