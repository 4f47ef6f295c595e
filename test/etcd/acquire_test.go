package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

func TestRestartOfTheNodeWritesNothing(t *testing.T) {
	s := newStore(t, network)
	m := s.manager(t, nil)
	first := acquire(t, m, request("node-1"))
	r := run(t, m)
	r.stop()
	before := s.state(t)
	for range 3 {
		m := s.manager(t, nil)
		l := acquire(t, m, request("node-1"))
		if l.Revision != first.Revision || !slices.Equal(l.Subnets, first.Subnets) {
			t.Errorf("after a restart %+v, before it %+v", l, first)
		}
		if d := time.Until(l.Expiry); d < etcd.DefaultLeaseTTL-time.Minute || d > etcd.DefaultLeaseTTL {
			t.Errorf("lease ends in %s, want about %s", d, etcd.DefaultLeaseTTL)
		}
		run(t, m).stop()
	}
	if after := s.state(t); after != before {
		t.Errorf("after three restarts %s, before them %s", after, before)
	}
}

func TestUpdateKeepsTheEtcdLease(t *testing.T) {
	s := newStore(t, network)
	first := acquire(t, s.manager(t, nil), request("node-1"))
	id := s.etcdLease(t, s.recordOf(t, "node-1"))
	want := request("node-1")
	want.MTU = 1400
	second := acquire(t, s.manager(t, nil), want)
	if second.Revision <= first.Revision || second.Created != first.Created || second.MTU != 1400 {
		t.Errorf("update %+v of %+v", second, first)
	}
	if now := s.etcdLease(t, s.recordOf(t, "node-1")); now != id || s.leases(t) != 1 {
		t.Errorf("etcd lease %x of %d, want %x alone", now, s.leases(t), id)
	}
}

func TestNewLeaseTTLMovesTheRecord(t *testing.T) {
	s := newStore(t, network)
	first := acquire(t, s.manager(t, nil), request("node-1"))
	l := acquire(t, s.manager(t, func(o *etcd.Options) { o.LeaseTTL = time.Hour }), request("node-1"))
	if !slices.Equal(l.Subnets, first.Subnets) || l.Created != first.Created {
		t.Errorf("with another TTL %+v, before %+v", l, first)
	}
	ttl, err := s.client.TimeToLive(within(t), s.etcdLease(t, s.recordOf(t, "node-1")))
	if err != nil || ttl.GrantedTTL != 3600 {
		t.Errorf("etcd lease of %+v, %v; want 3600 s", ttl, err)
	}
	if n := s.leases(t); n != 1 {
		t.Errorf("%d etcd leases, want 1: the old one is revoked", n)
	}
}

// TestDefect14ReservationStaysOne: flannel makes it a lease of 24 hours.
func TestDefect14ReservationStaysOne(t *testing.T) {
	s := newStore(t, network)
	value, err := subnet.EncodeRecord(subnet.Lease{Node: "node-1", Backend: "vxlan", MTU: 1450, VTEPs: request("node-1").VTEPs})
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, subnets+"10.244.9.0-24", string(value))
	before := s.state(t)
	m := s.manager(t, nil)
	l := acquire(t, m, request("node-1"))
	if !l.Reserved || !l.Expiry.IsZero() || subnet.Key(l.Subnets) != "10.244.9.0-24" {
		t.Errorf("got %+v, want the reserved 10.244.9.0/24", l)
	}
	if after := s.state(t); after != before {
		t.Errorf("%s, before %s", after, before)
	}
	want := request("node-1")
	want.MTU = 1400
	if l := acquire(t, m, want); !l.Reserved || l.MTU != 1400 {
		t.Errorf("updated: %+v", l)
	}
	if id := s.etcdLease(t, subnets+"10.244.9.0-24"); id != 0 || s.leases(t) != 0 {
		t.Errorf("reservation hangs on etcd lease %x, %d exist", id, s.leases(t))
	}
	if own := run(t, m).wait(t, "the update", func(s subnet.Snapshot) bool { return s.Own.MTU == 1400 }).Own; !own.Reserved {
		t.Errorf("own %+v, want it reserved", own)
	}
}

func TestLeaseBecomesReservationDuringRun(t *testing.T) {
	s := newStore(t, network)
	m := s.manager(t, nil)
	acquire(t, m, request("node-1"))
	r := run(t, m)
	key := s.recordOf(t, "node-1")
	if _, err := s.client.Put(within(t), key, "", clientv3.WithIgnoreValue()); err != nil { // takes it off its etcd lease
		t.Fatal(err)
	}
	r.wait(t, "a reservation", func(s subnet.Snapshot) bool { return s.Own.Reserved && s.Own.Expiry.IsZero() })
	eventually(t, func() error {
		if n := s.leases(t); n != 0 {
			return fmt.Errorf("%d etcd leases, want none: nothing hangs on it", n)
		}
		return nil
	})
	if id := s.etcdLease(t, key); id != 0 {
		t.Errorf("etcd lease %x, want none", id)
	}
}

// TestOverlapUnderOtherKeys: subnets of different length have different keys,
// so the compare-and-swap of one does not see the other.
func TestOverlapUnderOtherKeys(t *testing.T) {
	for round := range 15 {
		s := newStore(t, `{"Network":"10.244.0.0/16","SubnetLen":24}`)
		ms := []*etcd.Manager{s.manager(t, nil), s.manager(t, nil), s.manager(t, nil)}
		requests := []subnet.Request{
			request("node-1", "10.244.16.0/24"), request("node-2", "10.244.16.0/20"), request("node-3", "10.244.16.0/22"),
		}
		for i, length := range []string{"24", "20", "22"} {
			s.put(t, config, `{"Network":"10.244.0.0/16","SubnetLen":`+length+`}`)
			if _, err := ms[i].Config(within(t)); err != nil {
				t.Fatal(err)
			}
		}
		leases := make([]subnet.Lease, len(ms))
		var wg sync.WaitGroup
		for i, m := range ms {
			wg.Go(func() { leases[i] = acquire(t, m, requests[i]) })
		}
		wg.Wait()
		for i, a := range leases {
			for _, b := range leases[:i] {
				if a.Subnets[0].Overlaps(b.Subnets[0]) {
					t.Fatalf("round %d: %s and %s overlap", round, a.Subnets, b.Subnets)
				}
			}
		}
		if n := len(s.records(t)); n != len(ms) {
			t.Fatalf("round %d: %d records, want %d", round, n, len(ms))
		}
		if n := s.leases(t); n != len(ms) {
			t.Fatalf("round %d: %d etcd leases, want %d", round, n, len(ms))
		}
		s.server.Stop()
	}
}

// TestOwnRecordUnderOlderOne: what a crash between the two halves of create
// leaves. The older record stays, ours moves.
func TestOwnRecordUnderOlderOne(t *testing.T) {
	s := newStore(t, network)
	encode := func(node string) string {
		value, err := subnet.EncodeRecord(subnet.Lease{Node: node, Backend: "vxlan", MTU: 1450, VTEPs: request(node).VTEPs})
		if err != nil {
			t.Fatal(err)
		}
		return string(value)
	}
	s.put(t, subnets+"10.244.16.0-20", encode("node-2"))
	s.put(t, subnets+"10.244.17.0-24", encode("node-1"), clientv3.WithLease(s.grant(t, etcd.DefaultLeaseTTL)))
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if l.Subnets[0].Overlaps(netip.MustParsePrefix("10.244.16.0/20")) {
		t.Errorf("got %s, which node-2 held before", l.Subnets)
	}
	if key := s.recordOf(t, "node-1"); key != subnets+subnet.Key(l.Subnets) || s.leases(t) != 1 {
		t.Errorf("record %s, %d etcd leases; want %s and one", key, s.leases(t), subnet.Key(l.Subnets))
	}
}

// TestSecondFamily: a lease that lacks a family that the network now has gets
// one, and keeps what it has.
func TestSecondFamily(t *testing.T) {
	s := newStore(t, network)
	first := acquire(t, s.manager(t, nil), request("node-1"))
	s.put(t, config, `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`)
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if len(l.Subnets) != 2 || l.Subnets[0] != first.Subnets[0] {
		t.Errorf("got %s, want %s and an IPv6 subnet", l.Subnets, first.Subnets[0])
	}
	if key := s.recordOf(t, "node-1"); key != subnets+subnet.Key(l.Subnets) || s.leases(t) != 1 {
		t.Errorf("record %s, %d etcd leases; want %s and one", key, s.leases(t), subnet.Key(l.Subnets))
	}
}

func TestNetworkMoved(t *testing.T) {
	s := newStore(t, network)
	acquire(t, s.manager(t, nil), request("node-1"))
	s.put(t, config, `{"Network":"10.99.0.0/16"}`)
	l := acquire(t, s.manager(t, nil), request("node-1"))
	if !netip.MustParsePrefix("10.99.0.0/16").Overlaps(l.Subnets[0]) || s.recordOf(t, "node-1") != subnets+subnet.Key(l.Subnets) {
		t.Errorf("got %s, want one in 10.99.0.0/16 and the old record gone", l.Subnets)
	}
}

func TestBadRequests(t *testing.T) {
	s := newStore(t, network)
	before := s.state(t)
	for _, c := range []struct {
		word   string
		change func(*subnet.Request)
	}{
		{"Node", func(r *subnet.Request) { r.Node = "" }},
		{"VTEP", func(r *subnet.Request) { r.VTEPs = nil }},
		{"MTU", func(r *subnet.Request) { r.MTU = -1 }},
		{"pod network", func(r *subnet.Request) { r.VTEPs[0].Underlay = netip.MustParseAddr("10.244.3.4") }},
		{"VNI", func(r *subnet.Request) { r.VTEPs[0].VNI = 9 }},
	} {
		want := request("node-1")
		c.change(&want)
		_, err := s.manager(t, nil).Acquire(within(t), want)
		if err == nil || !strings.Contains(err.Error(), c.word) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v: %v, want an error about %s", want, err, c.word)
		}
	}
	if after := s.state(t); after != before {
		t.Errorf("%s, before %s: want nothing written", after, before)
	}
}

func TestExhaustionLeavesNoEtcdLease(t *testing.T) {
	s := newStore(t, `{"Network":"10.244.0.0/22"}`)
	for i := range 3 {
		acquire(t, s.manager(t, nil), request(fmt.Sprintf("node-%d", i)))
	}
	_, err := s.manager(t, nil).Acquire(within(t), request("node-9"))
	if !errors.Is(err, subnet.ErrNoSubnet) || !strings.Contains(err.Error(), "node-9") {
		t.Errorf("%v, want %v for node-9", err, subnet.ErrNoSubnet)
	}
	if n := s.leases(t); n != 3 {
		t.Errorf("%d etcd leases, want 3", n)
	}
}

func TestConfig(t *testing.T) {
	s := newStore(t, `{"Network":"10.244.0.0/16","Netwrok":1}`)
	_, err := s.manager(t, nil).Config(within(t))
	if err == nil || !strings.Contains(err.Error(), config) || !strings.Contains(err.Error(), "Netwrok") {
		t.Errorf("unknown key: %v, want an error that names %s and Netwrok", err, config)
	}

	s.delete(t, config)
	var log journal
	m := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
	done := make(chan error, 1)
	go func() {
		_, err := m.Acquire(within(t), request("node-1"))
		done <- err
	}()
	log.has(t, "WARN", "etcd holds no network configuration", config, s.server.Endpoint())
	s.put(t, config, network)
	if err := <-done; err != nil {
		t.Errorf("acquire after the configuration came: %v", err)
	}
}
