package subnettest

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

func testPreferred(t *testing.T, f Fixture) {
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.244.77.0/24")}
	if l := acquire(t, f.Manager(t), want); l.Subnets[0] != want.Want[1] {
		t.Errorf("got %s, want %s, the first of %s that fits", l.Subnets[0], want.Want[1], want.Want)
	}
	// Once held, what another node prefers is not given.
	want2 := request(2)
	want2.Want = want.Want
	if l := acquire(t, f.Manager(t), want2); l.Subnets[0] == want.Want[1] {
		t.Errorf("node-2 got %s, which node-1 holds", l.Subnets[0])
	}
}

// testRival: a new address, and another node that comes in between, do not
// part a node from its subnet, for it is known by its id.
func testRival(t *testing.T, f Fixture) {
	first := acquire(t, f.Manager(t), request(1))
	moved := request(1)
	moved.VTEPs = request(3).VTEPs
	rival := request(2)
	rival.VTEPs[0].Underlay = request(1).VTEPs[0].Underlay
	if l := acquire(t, f.Manager(t), rival); l.Subnets[0].Overlaps(first.Subnets[0]) {
		t.Errorf("node-2, at node-1's old address, got %s, which node-1 holds", l.Subnets[0])
	}
	if l := acquire(t, f.Manager(t), moved); l.Subnets[0] != first.Subnets[0] {
		t.Errorf("node-1 at a new address got %s, held %s", l.Subnets[0], first.Subnets[0])
	}
}

func testDualStack(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one, two := acquire(t, m1, request(1)), acquire(t, m2, request(2))
	for _, l := range []subnet.Lease{one, two} {
		if len(l.Subnets) != 2 || !l.Subnets[0].Addr().Is4() || !l.Subnets[1].Addr().Is6() {
			t.Fatalf("%s got %s, want an IPv4 and an IPv6 subnet", l.Node, l.Subnets)
		}
	}
	if one.Subnets[0].Overlaps(two.Subnets[0]) || one.Subnets[1].Overlaps(two.Subnets[1]) {
		t.Errorf("%s overlaps %s", one.Subnets, two.Subnets)
	}
	run(t, m2).wait(t, "node-1's lease", sees(two, one))
}

func testIPv6Only(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one, two := acquire(t, m1, request(1)), acquire(t, m2, request(2))
	if len(one.Subnets) != 1 || !one.Subnets[0].Addr().Is6() || one.Subnets[0].Overlaps(two.Subnets[0]) {
		t.Fatalf("got %s and %s, want one IPv6 subnet each", one.Subnets, two.Subnets)
	}
	run(t, m1).wait(t, "node-2's lease", sees(one, two))
}

// testRace: 60 nodes and 64 subnets; flannel fails for a good quarter.
func testRace(t *testing.T, f Fixture) {
	const nodes = 60
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience(t))
	defer cancel()
	managers := make([]subnet.Manager, nodes)
	for i := range managers {
		managers[i] = f.Manager(t)
	}
	leases := make([]subnet.Lease, nodes)
	errs := make([]error, nodes)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, m := range managers {
		wg.Go(func() {
			<-start
			leases[i], errs[i] = m.Acquire(ctx, request(i))
		})
	}
	close(start)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("%d nodes for 64 subnets: %v", nodes, err)
	}
	holder := map[netip.Prefix]string{}
	for _, l := range leases {
		s := l.Subnets[0]
		if before, dup := holder[s]; dup {
			t.Errorf("%s leased to %s and %s", s, before, l.Node)
		}
		holder[s] = l.Node
	}
	run(t, managers[0]).wait(t, "all leases", sees(leases[0], leases[1:]...))
}

func testExhaustion(t *testing.T, f Fixture) {
	for i := range 3 {
		acquire(t, f.Manager(t), request(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	if l, err := f.Manager(t).Acquire(ctx, request(3)); !errors.Is(err, subnet.ErrNoSubnet) {
		t.Errorf("the fourth node for three subnets: %+v, %v; want %v", l, err, subnet.ErrNoSubnet)
	}
	acquire(t, f.Manager(t), request(2)) // who holds one keeps it
}
