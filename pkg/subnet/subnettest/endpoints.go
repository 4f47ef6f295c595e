package subnettest

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// both is what node i asks for where both families have an underlay.
func both(i int) subnet.Request {
	want := request(i)
	want.VTEPs = append(want.VTEPs, subnet.VTEP{
		Underlay: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(i >> 8), 15: byte(i)}),
		MAC:      subnet.VTEPMAC(want.Node, false),
		VNI:      1,
	})
	return want
}

// testTwoUnderlays: what changes in one family alone reaches peers and the node
// itself, and leaves the other as it is (flannel wants a change of both); so
// does an endpoint that goes, or comes back.
func testTwoUnderlays(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one, two := acquire(t, m1, both(1)), acquire(t, m2, both(2))
	r1, r2 := run(t, m1), run(t, m2)
	r1.wait(t, "both leases", sees(one, two))
	r2.wait(t, "both leases", sees(two, one))
	change := func(what string, change func(v []subnet.VTEP) []subnet.VTEP) {
		want := both(1)
		want.VTEPs = change(want.VTEPs)
		now := acquire(t, m1, want)
		if !slices.Equal(now.Subnets, one.Subnets) || now.Created != one.Created {
			t.Errorf("%s: %+v\nbefore it %+v", what, now, one)
		}
		r2.wait(t, "node-1's "+what, sees(two, now))
		r1.wait(t, "the own "+what, sees(now, two))
	}
	at := func(i int, address string) func([]subnet.VTEP) []subnet.VTEP {
		return func(v []subnet.VTEP) []subnet.VTEP {
			v[i].Underlay = netip.MustParseAddr(address)
			return v
		}
	}
	as := func(i int) func([]subnet.VTEP) []subnet.VTEP {
		return func(v []subnet.VTEP) []subnet.VTEP {
			v[i].MAC = subnet.VTEPMAC("another", i == 0)
			return v
		}
	}
	change("IPv4 address", at(0, "192.0.2.99"))
	change("IPv6 address", at(1, "2001:db8::99"))
	change("IPv4 MAC", as(0))
	change("IPv6 MAC", as(1))
	change("IPv6 endpoint, gone", func(v []subnet.VTEP) []subnet.VTEP { return v[:1] })
	change("IPv6 endpoint, back", func(v []subnet.VTEP) []subnet.VTEP { return v })
	change("IPv4 endpoint, gone", func(v []subnet.VTEP) []subnet.VTEP { return v[1:] })
	change("IPv4 endpoint instead", func(v []subnet.VTEP) []subnet.VTEP { return v[:1] })
	if again := acquire(t, f.Manager(t), both(1)); !slices.Equal(again.Subnets, one.Subnets) {
		t.Errorf("after a restart with both underlays %s, held %s", again.Subnets, one.Subnets)
	}
}

// testInheritedDual: a node knows flannel's lease by the address of either
// family, and flannel's changes of one family are seen.
func testInheritedDual(t *testing.T, f Fixture) {
	if f.PutRaw == nil {
		return
	}
	const key1, key2 = "10.244.77.0-24&fd00:244:0:77::-64", "10.244.78.0-24&fd00:244:0:78::-64"
	one, two, far := both(1).VTEPs, both(2).VTEPs, both(3).VTEPs
	f.PutRaw(t, key1, flannelsDual(one[0].Underlay, far[1].Underlay, 1))
	f.PutRaw(t, key2, flannelsDual(far[0].Underlay, two[1].Underlay, 2))
	m := f.Manager(t)
	lease := acquire(t, m, both(1))
	if subnet.Key(lease.Subnets) != key1 {
		t.Fatalf("node-1 got %s, want %s, which flannel leased there", lease.Subnets, key1)
	}
	r := run(t, m)
	for _, v := range [][]subnet.VTEP{far, {two[0], far[1]}, {far[0], two[1]}} {
		f.PutRaw(t, key2, flannelsDual(v[0].Underlay, v[1].Underlay, 2))
		r.wait(t, "flannel's other node at "+v[0].Underlay.String()+" and "+v[1].Underlay.String(), func(s subnet.Snapshot) bool {
			return same(s.Own, lease) && len(s.Peers) == 1 && len(s.Peers[0].VTEPs) == 2 &&
				s.Peers[0].VTEPs[0].Underlay == v[0].Underlay && s.Peers[0].VTEPs[1].Underlay == v[1].Underlay
		})
	}
	second := acquire(t, f.Manager(t), both(2))
	if subnet.Key(second.Subnets) != key2 {
		t.Fatalf("node-2 got %s, want %s, which flannel leased there", second.Subnets, key2)
	}
	r.wait(t, "node-2's lease alone", sees(lease, second))
}

// gateway is what node i asks for where nothing is encapsulated.
func gateway(i int) subnet.Request {
	want := request(i)
	want.VTEPs = []subnet.VTEP{{Underlay: want.VTEPs[0].Underlay}}
	return want
}

// testGateways: with host-gw an endpoint is an address and no more, and what is
// leased for a tunnel is nobody's peer.
func testGateways(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one, two := acquire(t, m1, gateway(1)), acquire(t, m2, gateway(2))
	if one.Backend != subnet.TypeHostGW {
		t.Errorf("node-1's lease is for %q, want %q", one.Backend, subnet.TypeHostGW)
	}
	r := run(t, m1)
	r.wait(t, "node-2's gateway", sees(one, two))

	want := gateway(2)
	want.VTEPs[0].Underlay = netip.MustParseAddr("198.51.100.7")
	two = acquire(t, m2, want)
	r.wait(t, "node-2's new gateway", sees(one, two))
	if again := acquire(t, f.Manager(t), want); !same(again, two) || again.Created != two.Created {
		t.Errorf("after the restart %+v\nbefore it %+v", again, two)
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	if l, err := f.Manager(t).Acquire(ctx, request(2)); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), subnet.TypeHostGW) {
		t.Errorf("acquire with the endpoint of a tunnel: %+v, %v; want an error about it", l, err)
	}
	r.wait(t, "node-2's lease as it was", sees(one, two))

	if f.PutRaw == nil {
		return
	}
	f.PutRaw(t, "10.244.240.0-24", []byte(`{"PublicIP":"192.0.2.240","PublicIPv6":null,"BackendType":"host-gw"}`))
	f.PutRaw(t, "10.244.241.0-24", flannels(netip.MustParseAddr("192.0.2.241")))
	snap := r.wait(t, "flannel's two leases", func(s subnet.Snapshot) bool { return len(s.Peers) == 2 && len(s.Ignored) == 1 })
	if !slices.ContainsFunc(snap.Peers, func(l subnet.Lease) bool {
		return l.Node == "" && slices.Equal(l.VTEPs, []subnet.VTEP{{Underlay: netip.MustParseAddr("192.0.2.240")}})
	}) {
		t.Errorf("flannel's host-gw lease reads %+v", snap.Peers)
	}
	if why := snap.Ignored[0].Reason; !strings.Contains(why, `"vxlan": want "host-gw"`) {
		t.Errorf("flannel's vxlan lease is ignored for %q, want its type named", why)
	}
}
