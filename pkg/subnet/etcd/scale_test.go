package etcd

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

const (
	many = 10_000

	// What a node of a network of that size may spend: targets of this project,
	// measured on two cores. The time has room for a busy machine in the test.
	manyHeld = 15 << 20 // bytes
)

// manyRecords is etcd's answer with the records of that many nodes.
func manyRecords(tb testing.TB) (subnet.Config, []*mvccpb.KeyValue) {
	tb.Helper()
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.0.0.0/8","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00::/40"}`))
	if err != nil {
		tb.Fatal(err)
	}
	kvs := make([]*mvccpb.KeyValue, many)
	for i := range kvs {
		node := fmt.Sprintf("node-%d.cluster.example", i)
		l := subnet.Lease{
			Node: node, Backend: "vxlan", MTU: 1450, Since: time.Unix(int64(1e9+i), 0),
			Subnets: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: byte(1 + i>>8), 7: byte(i)}), 64),
			},
			VTEPs: []subnet.VTEP{{Underlay: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), MAC: subnet.VTEPMAC(node, true), VNI: 1}},
		}
		value, err := subnet.EncodeRecord(l)
		if err != nil {
			tb.Fatal(err)
		}
		kvs[i] = &mvccpb.KeyValue{Key: []byte("/p/subnets/" + subnet.Key(l.Subnets)), Value: value, ModRevision: int64(i + 2), CreateRevision: int64(i + 2), Lease: int64(i + 1)}
	}
	return cfg, kvs
}

// first is what a keeper makes of the first answer.
func first(cfg subnet.Config, kvs []*mvccpb.KeyValue) (*book, subnet.Snapshot) {
	b := newBook("/p/subnets/")
	b.replace(kvs)
	return b, subnet.Sort(cfg, "node-0.cluster.example", b.records())
}

// held returns the bytes that book and snapshot take on the heap, the answer that
// they were made of not counted.
func held(tb testing.TB, cfg subnet.Config, kvs []*mvccpb.KeyValue) uint64 {
	tb.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	b, snap := first(cfg, kvs)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(b.entries) != many || len(snap.Peers) != many-1 || len(snap.Ignored) != 0 {
		tb.Fatalf("%d records, %d peers, ignored %v", len(b.entries), len(snap.Peers), snap.Ignored)
	}
	runtime.KeepAlive(kvs)
	runtime.KeepAlive(b)
	runtime.KeepAlive(snap.Peers)
	return after.HeapAlloc - before.HeapAlloc
}

func TestTenThousandRecordsFitInMemory(t *testing.T) {
	cfg, kvs := manyRecords(t)
	began := time.Now()
	size := held(t, cfg, kvs)
	t.Logf("%d records: %.1f MB held, %s with two collections", many, float64(size)/(1<<20), time.Since(began).Round(time.Millisecond))
	if size > manyHeld {
		t.Errorf("%d bytes held, want at most %d", size, manyHeld)
	}
}

func BenchmarkFirstSnapshotOf10000(b *testing.B) {
	cfg, kvs := manyRecords(b)
	size := held(b, cfg, kvs)
	for b.Loop() {
		first(cfg, kvs)
	}
	b.ReportMetric(float64(size)/(1<<20), "MB-held")
}
