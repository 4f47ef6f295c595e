package subnettest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// flannels is a record as flannel writes it on the node that has the address.
func flannels(address netip.Addr) []byte {
	return fmt.Appendf(nil, `{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"}}`, address)
}

// flannelsDual is the same on a node with underlays of both families.
func flannelsDual(address4, address6 netip.Addr, n byte) []byte {
	return fmt.Appendf(nil, `{"PublicIP":"%s","PublicIPv6":"%s","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:04:%02x"},`+
		`"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:06:%02x"}}`, address4, address6, n, n)
}

// testInherited: on a node that ran flannel the lease of flannel becomes the
// node's own, with its subnet, and there is one record of it afterwards.
func testInherited(t *testing.T, f Fixture) {
	if f.PutRaw == nil {
		return
	}
	f.PutRaw(t, "10.244.77.0-24", flannels(request(1).VTEPs[0].Underlay))
	f.PutRaw(t, "10.244.78.0-24", flannels(request(2).VTEPs[0].Underlay))
	m := f.Manager(t)
	two := acquire(t, m, request(2))
	if two.Subnets[0] != netip.MustParsePrefix("10.244.78.0/24") {
		t.Fatalf("node-2 got %s, want 10.244.78.0/24, which flannel leased there", two.Subnets)
	}
	r := run(t, m)
	before := r.wait(t, "flannel's other lease", func(s subnet.Snapshot) bool { return same(s.Own, two) && len(s.Peers) == 1 && len(s.Ignored) == 0 })
	if p := before.Peers[0]; p.Node != "" {
		t.Errorf("node-1's lease is taken over before it asks: %+v", p)
	}
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.244.99.0/24")} // counts less than where the pods are
	one := acquire(t, f.Manager(t), want)
	if one.Subnets[0] != netip.MustParsePrefix("10.244.77.0/24") {
		t.Fatalf("node-1 got %s, want 10.244.77.0/24, which flannel leased there", one.Subnets)
	}
	r.wait(t, "node-1's lease alone", sees(two, one))
	if again := acquire(t, f.Manager(t), request(1)); !same(again, one) || again.Revision != one.Revision {
		t.Errorf("after the restart %+v\nbefore it %+v", again, one)
	}
	if three := acquire(t, f.Manager(t), request(3)); slices.Contains([]netip.Prefix{one.Subnets[0], two.Subnets[0]}, three.Subnets[0]) {
		t.Errorf("node-3 got %s, which is held", three.Subnets)
	}
}

// testHeirs: of nodes that claim one record of flannel's, by the same address,
// one gets it. Nobody's is overwritten.
func testHeirs(t *testing.T, f Fixture) {
	if f.PutRaw == nil {
		return
	}
	const heirs = 8
	f.PutRaw(t, "10.244.77.0-24", flannels(request(1).VTEPs[0].Underlay))
	var mu sync.Mutex
	owner := map[netip.Prefix]string{}
	var all sync.WaitGroup
	for i := range heirs {
		want, m := request(i), f.Manager(t)
		want.VTEPs[0].Underlay = request(1).VTEPs[0].Underlay
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience(t))
			defer cancel()
			l, err := m.Acquire(ctx, want)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				t.Errorf("%s: %v", want.Node, err)
			case owner[l.Subnets[0]] != "":
				t.Errorf("%s got %s, and so did %s", want.Node, l.Subnets[0], owner[l.Subnets[0]])
			default:
				owner[l.Subnets[0]] = want.Node
			}
		})
	}
	all.Wait()
	if heir := owner[netip.MustParsePrefix("10.244.77.0/24")]; heir == "" {
		t.Errorf("%d nodes have %v; none has flannel's subnet", heirs, owner)
	}
}
