package etcd

import (
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

// flannelsRecord is what flannel writes on the node of request(node).
func flannelsRecord(node string) string {
	return `{"PublicIP":"` + request(node).VTEPs[0].Underlay.String() +
		`","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`
}

func TestTakeOverMovesFlannelsKeyToOurEtcdLease(t *testing.T) {
	s := newStore(t, network)
	theirs := s.grant(t, etcd.DefaultLeaseTTL) // the same time as ours: not by that is it told apart
	const key = subnets + "10.244.9.0-24"
	s.put(t, key, flannelsRecord("node-1"), clientv3.WithLease(theirs))
	s.put(t, "/elsewhere", "of the same etcd lease", clientv3.WithLease(theirs))

	m := s.manager(t, nil)
	l := acquire(t, m, request("node-1"))
	if subnet.Key(l.Subnets) != "10.244.9.0-24" || l.Reserved || time.Until(l.Expiry) < time.Hour {
		t.Fatalf("got %+v, want flannel's subnet", l)
	}
	record := s.records(t)[subnets+"10.244.9.0-24"]
	if record.Lease.Node != "node-1" || record.Lease.MTU != request("node-1").MTU || !slices.Equal(record.Lease.VTEPs, request("node-1").VTEPs) {
		t.Errorf("record %+v, want node, MTU and endpoint of ours", record)
	}
	if id := s.etcdLease(t, key); id == theirs || id == 0 {
		t.Errorf("hangs on etcd lease %x, want one of ours, flannel's is %x", id, theirs)
	}
	// What else hangs on flannel's etcd lease is not ours to end.
	if id := s.etcdLease(t, "/elsewhere"); id != theirs {
		t.Errorf("the other key of flannel's etcd lease hangs on %x, want %x", id, theirs)
	}
	s.revoke(t, theirs)
	if again := acquire(t, s.manager(t, nil), request("node-1")); again.Revision != l.Revision {
		t.Errorf("after the end of flannel's etcd lease %+v, before it %+v", again, l)
	}
}

func TestTakeOverOfAReservationKeepsIt(t *testing.T) {
	s := newStore(t, network)
	s.put(t, subnets+"10.244.9.0-24", flannelsRecord("node-1"))
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if subnet.Key(l.Subnets) != "10.244.9.0-24" || !l.Reserved {
		t.Errorf("got %+v, want the reservation", l)
	}
	if id := s.etcdLease(t, subnets+"10.244.9.0-24"); id != 0 || s.leases(t) != 0 {
		t.Errorf("the reservation hangs on etcd lease %x, and there are %d; want none", id, s.leases(t))
	}
}

func TestTakeOverKeepsTheKeyThatItWasReadFrom(t *testing.T) {
	s := newStore(t, `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`)
	const key = "10.244.9.0-24&fd00-244-0-9---64" // the same subnets by another name
	s.put(t, subnets+key, flannelsRecord("node-1"), clientv3.WithLease(s.grant(t, time.Hour)))
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if want := "10.244.9.0-24&fd00:244:0:9::-64"; subnet.Key(l.Subnets) != want {
		t.Errorf("got %s, want %s", l.Subnets, want)
	}
	if r := s.records(t); len(r) != 1 || r[subnets+key].Lease.Node != "node-1" {
		t.Errorf("records %+v, want one, under %s", r, key)
	}
}

func TestNothingToTakeOverOutsideTheNetwork(t *testing.T) {
	s := newStore(t, network)
	s.put(t, subnets+"10.99.9.0-24", flannelsRecord("node-1"))
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if subnet.Key(l.Subnets) == "10.99.9.0-24" {
		t.Errorf("got %s", l.Subnets)
	}
	if r := s.records(t)[subnets+"10.99.9.0-24"]; r.Lease.Node != "" {
		t.Errorf("the record outside of the network is %+v, want it left alone", r)
	}
}

// TestFlannelThatStillRuns: a flanneld that was forgotten renews its lease by an
// unconditional put. The node takes it back each time.
func TestFlannelThatStillRuns(t *testing.T) {
	s := newStore(t, network)
	const key = subnets + "10.244.9.0-24"
	s.put(t, key, flannelsRecord("node-1"), clientv3.WithLease(s.grant(t, time.Hour)))
	m := s.manager(t, nil)
	l := acquire(t, m, request("node-1"))
	r := run(t, m)
	r.wait(t, "the own lease", func(sn subnet.Snapshot) bool { return sn.Own.Revision == l.Revision })
	for before := l.Revision; before < l.Revision+4; before += 2 { // its write and ours
		s.put(t, key, flannelsRecord("node-1"), clientv3.WithLease(s.grant(t, time.Hour)))
		snap := r.wait(t, "the own lease, taken back", func(sn subnet.Snapshot) bool { return sn.Own.Revision >= before+2 })
		if !slices.Equal(snap.Own.Subnets, l.Subnets) || s.records(t)[subnets+"10.244.9.0-24"].Lease.Node != "node-1" {
			t.Fatalf("taken back as %+v", snap.Own)
		}
	}
}
