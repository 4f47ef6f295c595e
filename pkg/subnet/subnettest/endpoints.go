package subnettest

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

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
