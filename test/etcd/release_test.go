package etcd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

func TestReleaseOfADeadNode(t *testing.T) {
	s := newStore(t, `{"Network":"10.244.0.0/22","SubnetMin":"10.244.1.0","SubnetMax":"10.244.1.0"}`)
	dead := acquire(t, s.manager(t, nil), request("node-1"))
	m := s.manager(t, nil)
	if _, err := m.Acquire(within(t), request("node-2")); !errors.Is(err, subnet.ErrNoSubnet) {
		t.Fatalf("node-2: %v, want %v", err, subnet.ErrNoSubnet)
	}
	before := s.state(t)
	for want, release := range map[error]func() error{
		subnet.ErrNoLease: func() error { return m.Release(within(t), "node-3", 0) },
		subnet.ErrChanged: func() error { return m.Release(within(t), "node-1", dead.Revision+1) },
	} {
		if err := release(); !errors.Is(err, want) || !strings.Contains(err.Error(), "node-") {
			t.Errorf("%v, want %v and the node", err, want)
		}
	}
	if after := s.state(t); after != before {
		t.Errorf("%s, before %s: want nothing written", after, before)
	}
	if err := m.Release(within(t), "node-1", dead.Revision); err != nil {
		t.Fatal(err)
	}
	if l := acquire(t, m, request("node-2")); !slices.Equal(l.Subnets, dead.Subnets) {
		t.Errorf("node-2 got %s, want the released %s", l.Subnets, dead.Subnets)
	}
}

// TestReleaseOfALivingNode: it takes the same subnet again.
func TestReleaseOfALivingNode(t *testing.T) {
	s := newStore(t, network)
	m := s.manager(t, nil)
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	if err := s.manager(t, nil).Release(within(t), "node-1", own.Revision); err != nil {
		t.Fatal(err)
	}
	again := r.wait(t, "the lease anew", func(s subnet.Snapshot) bool { return s.Own.Created > own.Created }).Own
	if !slices.Equal(again.Subnets, own.Subnets) || !again.Since.Equal(own.Since) {
		t.Errorf("taken again as %+v, was %+v", again, own)
	}
	if n := s.leases(t); n != 1 {
		t.Errorf("%d etcd leases, want 1", n)
	}
}

func TestReleaseOfFlannelsLease(t *testing.T) {
	s := newStore(t, network)
	s.put(t, subnets+"10.244.9.0-24", flannelsRecord("node-1"), clientv3.WithLease(s.grant(t, time.Hour)))
	s.put(t, subnets+"10.244.10.0-24", flannelsRecord("node-2"))
	if err := s.manager(t, nil).Release(within(t), request("node-1").VTEPs[0].Underlay.String(), 0); err != nil {
		t.Fatal(err)
	}
	if records := s.records(t); len(records) != 1 || records[subnets+"10.244.10.0-24"].Err != nil {
		t.Errorf("records %v, want node-2's alone", records)
	}
}

// TestReleaseOfAReservation: somebody made it by hand, to last.
func TestReleaseOfAReservation(t *testing.T) {
	s := newStore(t, network)
	const key = subnets + "10.244.9.0-24"
	s.put(t, key, flannelsRecord("node-1"))
	before := s.state(t)
	err := s.manager(t, nil).Release(within(t), request("node-1").VTEPs[0].Underlay.String(), 0)
	if !errors.Is(err, subnet.ErrReserved) || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "etcdctl del") {
		t.Errorf("%v, want %v, the key and what to do", err, subnet.ErrReserved)
	}
	if after := s.state(t); after != before {
		t.Errorf("%s, before %s: want nothing written", after, before)
	}
}

func TestReleaseWithoutEtcdSaysSo(t *testing.T) {
	s := newStore(t, network)
	s.server.Stop()
	m := s.manager(t, nil)
	if err := m.Release(within(t), "node-1", 0); err == nil || !strings.Contains(err.Error(), "etcd not reachable") {
		t.Errorf("%v, want that etcd is not reachable", err)
	}
	if _, err := m.Expiries(within(t)); err == nil || !strings.Contains(err.Error(), "etcd not reachable") {
		t.Errorf("%v, want that etcd is not reachable", err)
	}
}

func TestExpiries(t *testing.T) {
	s := newStore(t, network)
	ttl := map[netip.Prefix]time.Duration{}
	var m *etcd.Manager
	for i := range 40 {
		length := time.Duration(1+i) * time.Hour
		m = s.manager(t, func(o *etcd.Options) { o.LeaseTTL = length })
		want := request("node")
		want.Node = fmt.Sprintf("node-%d", i)
		want.VTEPs = []subnet.VTEP{{Underlay: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), MAC: subnet.VTEPMAC(want.Node, true), VNI: 1}}
		ttl[acquire(t, m, want).Subnets[0]] = length
	}
	s.put(t, subnets+"10.244.250.0-24", flannelsRecord("node-1")) // a reservation
	s.put(t, subnets+"nonsense", "{}", clientv3.WithLease(s.grant(t, time.Hour)))
	ends, err := m.Expiries(within(t))
	if err != nil || len(ends) != len(ttl) {
		t.Fatalf("%d ends, %v; want %d", len(ends), err, len(ttl))
	}
	for p, length := range ttl {
		if left := time.Until(ends[p]); left > length || left < length-time.Minute {
			t.Errorf("%s ends in %s, want %s", p, left, length)
		}
	}
}

// TestSince: the record says since when the node has its subnets, whatever
// happens to the record; another subnet is another time.
func TestSince(t *testing.T) {
	s := newStore(t, network)
	m := s.manager(t, nil)
	own := acquire(t, m, request("node-1"))
	if age := time.Since(own.Since); age < 0 || age > time.Minute {
		t.Errorf("just acquired, but held since %s", own.Since)
	}
	// A record that is a year old, as if written then.
	old := own
	old.Since = own.Since.AddDate(-1, 0, 0)
	value, err := subnet.EncodeRecord(old)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, s.recordOf(t, "node-1"), string(value), clientv3.WithIgnoreLease())
	before := s.state(t)
	m = s.manager(t, nil)
	if l := acquire(t, m, request("node-1")); !l.Since.Equal(old.Since) || s.state(t) != before {
		t.Errorf("after a restart %s, want %s and nothing written", l.Since, old.Since)
	}
	want := request("node-1")
	want.MTU = 1400
	if l := acquire(t, m, want); !l.Since.Equal(old.Since) || !s.records(t)[s.recordOf(t, "node-1")].Lease.Since.Equal(old.Since) {
		t.Errorf("after an update %s, want %s", l.Since, old.Since)
	}
	r := run(t, m)
	s.deleteAll(t)
	snap := r.wait(t, "the lease anew", func(s subnet.Snapshot) bool { return s.Own.Created > own.Created })
	if !snap.Own.Since.Equal(old.Since) {
		t.Errorf("after a loss %s, want %s", snap.Own.Since, old.Since)
	}
}
