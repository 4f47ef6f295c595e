package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
	"github.com/vxlan-cni/vxlan-cni/test/etcdtest"
)

// peers accepts a snapshot with the own subnets and peers of these nodes.
func peers(own subnet.Lease, nodes ...string) func(subnet.Snapshot) bool {
	return func(s subnet.Snapshot) bool {
		var got []string
		for _, p := range s.Peers {
			got = append(got, p.Node)
		}
		slices.Sort(got)
		return slices.Equal(s.Own.Subnets, own.Subnets) && slices.Equal(got, nodes)
	}
}

func TestEtcdRestartsDuringRun(t *testing.T) {
	s := newStore(t, network)
	var log journal
	m := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	before := s.state(t)
	s.server.Stop()
	log.has(t, "WARN", "etcd not reachable", s.server.Endpoint(), "refused")
	s.start(t)
	log.has(t, "INFO", "no longer: etcd not reachable")
	if after := s.state(t); after != before {
		t.Errorf("after the restart %s, before it %s", after, before)
	}
	acquire(t, s.manager(t, nil), request("node-2"))
	r.wait(t, "node-2", peers(own, "node-2"))
}

// TestDefect13CompactionWhileDisconnected: flannel's watch never comes back.
func TestDefect13CompactionWhileDisconnected(t *testing.T) {
	s := newStore(t, network)
	proxy := s.server.NewProxy(t)
	var log journal
	m := newManager(t, proxy.Endpoint(), func(o *etcd.Options) { o.Log = log.logger() })
	own := acquire(t, m, request("node-1"))
	acquire(t, s.manager(t, nil), request("node-2"))
	r := run(t, m)
	r.wait(t, "node-2", peers(own, "node-2"))

	proxy.Cut()
	log.has(t, "WARN", "etcd not reachable")
	acquire(t, s.manager(t, nil), request("node-3"))
	s.delete(t, s.recordOf(t, "node-2"))
	acquire(t, s.manager(t, nil), request("node-4"))
	resp, err := s.client.Get(within(t), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(within(t), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	proxy.Heal()
	r.wait(t, "node-3 and node-4", peers(own, "node-3", "node-4"))
	log.has(t, "reading all leases again", "compacted")
}

func TestUnreachableAtStart(t *testing.T) {
	s := newStore(t, network)
	s.server.Stop()
	var log journal
	m := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
	done := make(chan error, 1)
	go func() {
		_, err := m.Acquire(within(t), request("node-1"))
		done <- err
	}()
	log.has(t, "WARN", "etcd not reachable", s.server.Endpoint(), "refused", "for=0s")
	s.start(t)
	if err := <-done; err != nil {
		t.Errorf("acquire that outlasted the outage: %v", err)
	}
	log.has(t, "INFO", "no longer: etcd not reachable")
	run(t, m)
}

func TestContextEndsDuringOutage(t *testing.T) {
	s := newStore(t, network)
	m := s.manager(t, nil)
	acquire(t, m, request("node-1"))
	r := run(t, m)
	s.server.Stop()
	r.stop() // checks that Run returns nil
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Acquire(ctx, request("node-1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquire: %v, want %v", err, context.DeadlineExceeded)
	}
	if _, err := m.Config(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("config: %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestDefect10LostRecord: however the record goes, the node gets the same subnet, and
// no etcd lease is left over.
func TestDefect10LostRecord(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *store, string){
		"deleted": func(t *testing.T, s *store, key string) { s.delete(t, key) },
		"revoked": func(t *testing.T, s *store, key string) { s.revoke(t, s.etcdLease(t, key)) },
		"changed": func(t *testing.T, s *store, key string) {
			lease := s.records(t)[key].Lease
			lease.MTU = 9999
			value, err := subnet.EncodeRecord(lease)
			if err != nil {
				t.Fatal(err)
			}
			s.put(t, key, string(value), clientv3.WithIgnoreLease())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, network)
			m, watcher := s.manager(t, nil), s.manager(t, nil)
			own := acquire(t, m, request("node-1"))
			other := acquire(t, watcher, request("node-2"))
			r, seen := run(t, m), run(t, watcher)
			lose(t, s, s.recordOf(t, "node-1"))
			snap := r.wait(t, "the own lease again", func(s subnet.Snapshot) bool {
				return s.Own.Revision > own.Revision && s.Own.MTU == 1450 && slices.Equal(s.Own.Subnets, own.Subnets)
			})
			if snap.Own.Expiry.Before(time.Now().Add(time.Hour)) {
				t.Errorf("own lease ends at %s", snap.Own.Expiry)
			}
			seen.wait(t, "node-1 again", peers(other, "node-1"))
			if n := s.leases(t); n != 2 {
				t.Errorf("%d etcd leases, want 2", n)
			}
		})
	}
}

// TestDefect09SubnetTakenMeanwhile: if another node holds the subnet when etcd is back,
// that one keeps it.
func TestDefect09SubnetTakenMeanwhile(t *testing.T) {
	s := newStore(t, network)
	proxy := s.server.NewProxy(t)
	m := newManager(t, proxy.Endpoint(), nil)
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	proxy.Cut()
	s.revoke(t, s.etcdLease(t, s.recordOf(t, "node-1")))
	other := acquire(t, s.manager(t, nil), request("node-2", own.Subnets[0].String()))
	if !slices.Equal(other.Subnets, own.Subnets) {
		t.Fatalf("node-2 got %s, want the free %s", other.Subnets, own.Subnets)
	}
	proxy.Heal()
	snap := r.wait(t, "another own subnet", func(s subnet.Snapshot) bool {
		return len(s.Own.Subnets) == 1 && s.Own.Subnets[0] != own.Subnets[0] && len(s.Peers) == 1
	})
	if p := snap.Peers[0]; !slices.Equal(p.Subnets, own.Subnets) || p.Node != "node-2" || p.Revision != other.Revision {
		t.Errorf("peers %+v, want node-2 with %s, written once", snap.Peers, own.Subnets)
	}
}

// TestNoSubnetLeft: if there is none, Run goes on, says so, and takes the first
// that comes free.
func TestNoSubnetLeft(t *testing.T) {
	s := newStore(t, `{"Network":"10.244.0.0/22","SubnetMin":"10.244.1.0","SubnetMax":"10.244.1.0"}`)
	proxy := s.server.NewProxy(t)
	var log journal
	m := newManager(t, proxy.Endpoint(), func(o *etcd.Options) { o.Log = log.logger() })
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	proxy.Cut()
	s.revoke(t, s.etcdLease(t, s.recordOf(t, "node-1")))
	acquire(t, s.manager(t, nil), request("node-2"))
	proxy.Heal()
	log.has(t, "ERROR", "own lease lost", "10.244.1.0/24")
	// The node goes on with what it had.
	r.wait(t, "the last own lease", func(s subnet.Snapshot) bool { return slices.Equal(s.Own.Subnets, own.Subnets) })
	s.delete(t, s.recordOf(t, "node-2"))
	eventually(t, func() error {
		for key, rec := range s.records(t) {
			if rec.Lease.Node == "node-1" && key == subnets+subnet.Key(own.Subnets) {
				return nil
			}
		}
		return fmt.Errorf("records %v, want node-1's", s.records(t))
	})
}

func TestWipedEtcd(t *testing.T) {
	for name, later := range map[string]int{"younger": 0, "older": 200} { // revision than before
		t.Run(name, func(t *testing.T) {
			s := newStore(t, network)
			for range 50 {
				s.put(t, "/else", "")
			}
			var log journal
			m1 := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
			m2 := s.manager(t, nil)
			one, two := acquire(t, m1, request("node-1")), acquire(t, m2, request("node-2"))
			r1, r2 := run(t, m1), run(t, m2)
			r1.wait(t, "node-2", peers(one, "node-2"))
			s.wipe(t)
			log.has(t, "etcd not reachable")
			s.start(t)
			for range later {
				s.put(t, "/else", "")
			}
			back := func(s subnet.Snapshot, own subnet.Lease) bool {
				return len(s.Peers) == 1 && slices.Equal(s.Own.Subnets, own.Subnets)
			}
			eventually(t, func() error {
				if records := s.records(t); len(records) != 2 {
					return fmt.Errorf("records %v, want both nodes'", records)
				}
				return nil
			})
			r1.wait(t, "node-2 again", func(s subnet.Snapshot) bool { return back(s, one) })
			r2.wait(t, "node-1 again", func(s subnet.Snapshot) bool { return back(s, two) })
			if n := s.leases(t); n != 2 {
				t.Errorf("%d etcd leases, want 2", n)
			}
			// And changes are seen as before.
			s.put(t, config, network)
			acquire(t, s.manager(t, nil), request("node-3"))
			r1.wait(t, "node-3", peers(one, "node-2", "node-3"))
		})
	}
}

// TestTwoNodesWithOneID: they overwrite each other's record, by mistake of
// whoever named them, but not as fast as they can.
func TestTwoNodesWithOneID(t *testing.T) {
	t.Parallel()
	s := newStore(t, network)
	var log journal
	one, two := request("node-1"), request("node-1")
	two.MTU = 1400
	m1 := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
	m2 := s.manager(t, nil)
	before := acquire(t, m1, one).Revision
	acquire(t, m2, two)
	r := run(t, m1)
	run(t, m2)
	log.has(t, "WARN", "own lease was lost or changed")
	began := time.Now()
	r.wait(t, "ten writes or three seconds", func(s subnet.Snapshot) bool {
		return s.Revision > before+10 || time.Since(began) > 3*time.Second
	})
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("ten writes in %s", took)
	}
}

func TestLeaseIsRenewed(t *testing.T) {
	t.Parallel()
	s := newStore(t, network)
	m := s.manager(t, func(o *etcd.Options) { o.LeaseTTL = etcd.MinLeaseTTL })
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	before := s.state(t)
	r.wait(t, "a later end", func(s subnet.Snapshot) bool { return s.Own.Expiry.After(own.Expiry.Add(2 * time.Second)) })
	if after := s.state(t); after != before {
		t.Errorf("after a renewal %s, before it %s", after, before)
	}
	ttl, err := s.client.TimeToLive(within(t), s.etcdLease(t, s.recordOf(t, "node-1")))
	if err != nil || ttl.TTL < 8 {
		t.Errorf("etcd lease: %+v, %v; want about 10 s left", ttl, err)
	}
}

func TestChangedConfigurationIsReported(t *testing.T) {
	s := newStore(t, network)
	var log journal
	m := s.manager(t, func(o *etcd.Options) { o.Log = log.logger() })
	acquire(t, m, request("node-1"))
	run(t, m)
	s.put(t, config, `{"Network":"10.99.0.0/16"}`)
	log.has(t, "WARN", "restart", config)
}

func TestTLS(t *testing.T) {
	ca := etcdtest.NewCA(t)
	cert, key := ca.Issue(t, "server")
	s := &store{server: etcdtest.Run(t, etcdtest.Config{Dir: t.TempDir(), CAFile: ca.File, CertFile: cert, KeyFile: key})}
	s.client = s.server.NewClient(t)
	s.put(t, config, network)
	cert, key = ca.Issue(t, "client")
	own := acquire(t, s.manager(t, func(o *etcd.Options) { o.CAFile, o.CertFile, o.KeyFile = ca.File, cert, key }), request("node-1"))
	if s.recordOf(t, "node-1") != subnets+subnet.Key(own.Subnets) {
		t.Errorf("got %s, stored is %s", own.Subnets, s.recordOf(t, "node-1"))
	}

	for name, change := range map[string]func(*etcd.Options){
		"unknown authority": func(o *etcd.Options) { o.CAFile, o.CertFile, o.KeyFile = etcdtest.NewCA(t).File, cert, key },
		"no certificate":    func(o *etcd.Options) { o.CAFile = ca.File },
	} {
		t.Run(name, func(t *testing.T) { s.isKeptOut(t, "etcd not reachable", change) })
	}
}

// TestTenThousandLeases: the time is for the log; the bound only tells linear
// from worse.
func TestTenThousandLeases(t *testing.T) {
	const n = 10_000
	s := newStore(t, `{"Network":"10.0.0.0/8"}`)
	id := s.grant(t, etcd.DefaultLeaseTTL)
	var ops []clientv3.Op
	for i := range n {
		node := fmt.Sprintf("peer-%d", i)
		value, err := subnet.EncodeRecord(subnet.Lease{Node: node, Backend: "vxlan", MTU: 1450, VTEPs: []subnet.VTEP{{
			Underlay: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), MAC: subnet.VTEPMAC(node, true), VNI: 1,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		key := subnets + subnet.Key([]netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24)})
		if ops = append(ops, clientv3.OpPut(key, string(value), clientv3.WithLease(id))); len(ops) == 100 {
			if _, err := s.client.Txn(within(t)).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
	m := s.manager(t, nil)
	began := time.Now()
	acquire(t, m, request("node-1"))
	acquired := time.Now()
	r := run(t, m)
	took := time.Since(acquired)
	r.wait(t, "all peers", func(s subnet.Snapshot) bool { return len(s.Peers) == n })
	t.Logf("%d leases: Acquire %s, from Run to the first snapshot %s", n, acquired.Sub(began).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 10*time.Second {
		t.Errorf("first snapshot after %s", took)
	}

	acquired = time.Now()
	acquire(t, s.manager(t, nil), request("node-2"))
	written := time.Now()
	r.wait(t, "one more", func(s subnet.Snapshot) bool { return len(s.Peers) == n+1 })
	t.Logf("one more: acquired in %s, seen %s after that", written.Sub(acquired).Round(time.Millisecond), time.Since(written).Round(time.Millisecond))
}
