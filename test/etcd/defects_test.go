package etcd

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
	"github.com/vxlan-cni/vxlan-cni/test/etcdtest"
)

// Tests named TestDefectNN are of what flannel does wrong, by the numbers of the
// list that this project began with. Of the others on it, 11 (60 nodes race for
// 64 subnets) and 16 (an update of one family) are cases of the conformance
// suite, which says so in their names.

// TestDefect08ChangedAddressKeepsTheSubnet: whether the node restarts with
// another address or notices while it runs, its record stays where it is.
func TestDefect08ChangedAddressKeepsTheSubnet(t *testing.T) {
	s := newStore(t, network)
	m, watcher := s.manager(t, nil), s.manager(t, nil)
	first := acquire(t, m, request("node-1"))
	acquire(t, watcher, request("node-2"))
	seen := run(t, watcher)
	at := func(address string) subnet.Request {
		want := request("node-1")
		want.VTEPs[0].Underlay = netip.MustParseAddr(address)
		return want
	}
	r := run(t, m)
	running := acquire(t, m, at("198.51.100.1"))
	r.wait(t, "the new own address", func(s subnet.Snapshot) bool { return s.Own.Revision == running.Revision })
	r.stop()
	restarted := acquire(t, s.manager(t, nil), at("198.51.100.2"))
	for _, l := range []subnet.Lease{running, restarted} {
		if !slices.Equal(l.Subnets, first.Subnets) || l.Created != first.Created {
			t.Errorf("at another address %+v, before %+v", l, first)
		}
	}
	seen.wait(t, "node-1's newest address", func(s subnet.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].VTEPs[0].Underlay == netip.MustParseAddr("198.51.100.2") &&
			slices.Equal(s.Peers[0].Subnets, first.Subnets)
	})
}

// TestDefect09RenewNeverOverwrites: the record was given to another node under
// the eyes of its owner, who has to give way, and to renew what is its own.
func TestDefect09RenewNeverOverwrites(t *testing.T) {
	t.Parallel() // waits for a renewal
	s := newStore(t, network)
	m := s.manager(t, func(o *etcd.Options) { o.LeaseTTL = etcd.MinLeaseTTL })
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	key := s.recordOf(t, "node-1")
	value, err := subnet.EncodeRecord(subnet.Lease{Node: "node-2", Backend: "vxlan", MTU: 1450, VTEPs: request("node-2").VTEPs})
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, key, string(value), clientv3.WithLease(s.grant(t, etcd.DefaultLeaseTTL)))
	stolen := s.revisionOf(t, key)
	moved := r.wait(t, "another own subnet", func(s subnet.Snapshot) bool {
		return len(s.Own.Subnets) == 1 && s.Own.Subnets[0] != own.Subnets[0] && len(s.Peers) == 1
	})
	r.wait(t, "a renewal", func(s subnet.Snapshot) bool { return s.Own.Expiry.After(moved.Own.Expiry.Add(2 * time.Second)) })
	if now := s.revisionOf(t, key); now != stolen {
		t.Errorf("node-2's record is at revision %d, want %d as node-2 wrote it", now, stolen)
	}
}

// TestDefect10ExpiryDuringAnOutage: the lease runs out while the node is cut off.
func TestDefect10ExpiryDuringAnOutage(t *testing.T) {
	t.Parallel() // waits for the end of a lease
	s := newStore(t, network)
	proxy := s.server.NewProxy(t)
	m := newManager(t, proxy.Endpoint(), func(o *etcd.Options) { o.LeaseTTL = etcd.MinLeaseTTL })
	own := acquire(t, m, request("node-1", "10.244.77.0/24"))
	r := run(t, m)
	proxy.Cut()
	eventually(t, func() error {
		if records := s.records(t); len(records) > 0 {
			return fmt.Errorf("records %v, want none", records)
		}
		return nil
	})
	proxy.Heal()
	r.wait(t, "the same lease anew", func(s subnet.Snapshot) bool {
		return s.Own.Created > own.Created && slices.Equal(s.Own.Subnets, own.Subnets)
	})
	if n := s.leases(t); n != 1 {
		t.Errorf("%d etcd leases, want 1", n)
	}
}

// TestDefect12DeadLeasesFreeUp: as many nodes as there are subnets came and went.
func TestDefect12DeadLeasesFreeUp(t *testing.T) {
	t.Parallel() // waits for the end of leases
	const dead = 200
	s := newStore(t, `{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.200.0"}`)
	// All but the last at once, for the first would end while the others are
	// acquired on a busy machine.
	id := s.grant(t, etcd.MinLeaseTTL)
	for half := range 2 {
		var ops []clientv3.Op
		for i := half * dead / 2; i < min((half+1)*dead/2, dead-1); i++ { // etcd takes 128 in one
			node := fmt.Sprintf("dead-%d", i)
			value, err := subnet.EncodeRecord(subnet.Lease{Node: node, Backend: "vxlan", MTU: 1450, VTEPs: []subnet.VTEP{{
				Underlay: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), MAC: subnet.VTEPMAC(node, true), VNI: 1,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s10.244.%d.0-24", subnets, i+1), string(value), clientv3.WithLease(id)))
		}
		if _, err := s.client.Txn(within(t)).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, s.manager(t, func(o *etcd.Options) { o.LeaseTTL = etcd.MinLeaseTTL }), request("dead"))
	m := s.manager(t, nil)
	began := time.Now()
	for first := true; ; first = false {
		_, err := m.Acquire(within(t), request("node-1"))
		if err == nil {
			if first {
				t.Error("a subnet was free at once: the test proves nothing")
			}
			break
		}
		if !errors.Is(err, subnet.ErrNoSubnet) || time.Since(began) > 2*etcd.MinLeaseTTL {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	eventually(t, func() error {
		if n := len(s.records(t)); n != 1 {
			return fmt.Errorf("%d records, want node-1's alone", n)
		}
		return nil
	})
}

// TestDefect15OneEtcdLeaseOneRange: what a node asks of etcd does not grow with
// the number of its peers.
func TestDefect15OneEtcdLeaseOneRange(t *testing.T) {
	var count calls
	s := observed(t, network, &count)
	for n, until := range map[string]int{"no peers": 0, "200 peers": 200} {
		for i := range until {
			node := fmt.Sprintf("peer-%d", i)
			value, err := subnet.EncodeRecord(subnet.Lease{Node: node, Backend: "vxlan", MTU: 1450, VTEPs: []subnet.VTEP{{
				Underlay: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), MAC: subnet.VTEPMAC(node, true), VNI: 1,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			s.put(t, fmt.Sprintf("%s10.244.%d.0-24", subnets, i+1), string(value), clientv3.WithLease(s.grant(t, time.Hour)))
		}
		t.Run(n, func(t *testing.T) {
			count.reset()
			m := s.manager(t, nil)
			own := acquire(t, m, request("node-1", "10.244.250.0/24"))
			run(t, m).wait(t, "all peers", func(s subnet.Snapshot) bool { return len(s.Peers) == until && s.Own.Created == own.Created })
			// Ranges: the configuration, and all records for Acquire and for Run.
			want := map[string]int{"KV/Range": 3, "KV/Txn": 1, "Lease/LeaseGrant": 1, "Watch/Watch": 1}
			eventually(t, func() error {
				if got := count.by(); !maps.Equal(got, want) {
					return fmt.Errorf("requests %v, want %v", got, want)
				}
				return nil
			})
			s.delete(t, s.recordOf(t, "node-1"))
		})
		s.deleteAll(t)
		s.put(t, config, network)
	}
}

// calls remembers what clients asked of etcd.
type calls struct {
	mu   sync.Mutex
	list []call
}

type call struct {
	method  string // such as KV/Range
	message any
}

func (c *calls) see(method string, message any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, call{strings.TrimPrefix(method, "/etcdserverpb."), message})
}

func (c *calls) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = nil
}

func (c *calls) all() []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

func (c *calls) by() map[string]int {
	n := map[string]int{}
	for _, call := range c.all() {
		n[call.method]++
	}
	return n
}

// ranges are the keys that a message reads, writes or compares, as [key, end).
func ranges(message any) (list [][2]string) {
	add := func(key, end []byte) { list = append(list, [2]string{string(key), string(end)}) }
	var op func(*etcdserverpb.RequestOp)
	txn := func(r *etcdserverpb.TxnRequest) {
		for _, c := range r.Compare {
			add(c.Key, c.RangeEnd)
		}
		for _, o := range slices.Concat(r.Success, r.Failure) {
			op(o)
		}
	}
	op = func(o *etcdserverpb.RequestOp) {
		if r := o.GetRequestRange(); r != nil {
			add(r.Key, r.RangeEnd)
		}
		if r := o.GetRequestPut(); r != nil {
			add(r.Key, nil)
		}
		if r := o.GetRequestDeleteRange(); r != nil {
			add(r.Key, r.RangeEnd)
		}
		if r := o.GetRequestTxn(); r != nil {
			txn(r)
		}
	}
	switch r := message.(type) {
	case *etcdserverpb.RangeRequest:
		add(r.Key, r.RangeEnd)
	case *etcdserverpb.PutRequest:
		add(r.Key, nil)
	case *etcdserverpb.DeleteRangeRequest:
		add(r.Key, r.RangeEnd)
	case *etcdserverpb.TxnRequest:
		txn(r)
	case *etcdserverpb.WatchRequest:
		if c := r.GetCreateRequest(); c != nil {
			add(c.Key, c.RangeEnd)
		}
	}
	return list
}

// observed is a store whose etcd tells what it is asked.
func observed(t *testing.T, configuration string, c *calls) *store {
	t.Helper()
	s := &store{server: etcdtest.Run(t, etcdtest.Config{Dir: t.TempDir(), TokenTTL: 1, Observe: c.see})}
	s.client = s.server.NewClient(t)
	s.put(t, config, configuration)
	return s
}

// revisionOf is the revision of a key's last write.
func (s *store) revisionOf(t *testing.T, key string) int64 {
	t.Helper()
	resp, err := s.client.Get(within(t), key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("get %s: %v, %v", key, resp, err)
	}
	return resp.Kvs[0].ModRevision
}

// deleteAll empties etcd.
func (s *store) deleteAll(t *testing.T) {
	t.Helper()
	if _, err := s.client.Delete(within(t), "\x00", clientv3.WithFromKey()); err != nil {
		t.Fatal(err)
	}
}

// TestEmptiedEtcdIsRefilled by the nodes that run, with the same subnets,
// however it was emptied.
func TestEmptiedEtcdIsRefilled(t *testing.T) {
	const nodes = 5
	for name, empty := range map[string]func(*testing.T, *store){
		"all keys deleted": func(t *testing.T, s *store) { s.deleteAll(t) },
		"wiped data": func(t *testing.T, s *store) {
			s.wipe(t)
			s.start(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, network)
			var leases []subnet.Lease
			var runs []*runner
			for i := range nodes {
				m := s.manager(t, nil)
				leases = append(leases, acquire(t, m, request(fmt.Sprintf("node-%d", i))))
				runs = append(runs, run(t, m))
			}
			empty(t, s)
			eventually(t, func() error {
				records := s.records(t)
				for _, l := range leases {
					if r := records[subnets+subnet.Key(l.Subnets)]; r.Lease.Node != l.Node {
						return fmt.Errorf("records %v, want %s's lease of %s", records, l.Node, l.Subnets)
					}
				}
				if len(records) != nodes {
					return fmt.Errorf("%d records, want %d", len(records), nodes)
				}
				return nil
			})
			for i, r := range runs {
				r.wait(t, "all nodes again", func(sn subnet.Snapshot) bool {
					return len(sn.Peers) == nodes-1 && len(sn.Ignored) == 0 && slices.Equal(sn.Own.Subnets, leases[i].Subnets)
				})
			}
			if n := s.leases(t); n != nodes {
				t.Errorf("%d etcd leases, want %d", n, nodes)
			}
		})
	}
}
