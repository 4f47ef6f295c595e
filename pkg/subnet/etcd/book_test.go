package etcd

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

const testPrefix = "/net/subnets/"

// A fakeEtcd is a store that makes the events that etcd would.
type fakeEtcd struct {
	rev int64
	kvs map[string]*mvccpb.KeyValue
}

func (f *fakeEtcd) put(key, value string, lease int64) *clientv3.Event {
	f.rev++
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), Lease: lease, CreateRevision: f.rev, ModRevision: f.rev}
	if old := f.kvs[key]; old != nil {
		kv.CreateRevision = old.CreateRevision
	}
	f.kvs[key] = kv
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv}
}

func (f *fakeEtcd) delete(key string) *clientv3.Event {
	f.rev++
	delete(f.kvs, key)
	return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: f.rev}}
}

func (f *fakeEtcd) list() []*mvccpb.KeyValue { return slices.Collect(maps.Values(f.kvs)) }

func sorted(records []subnet.Record) []subnet.Record {
	return slices.SortedFunc(slices.Values(records), func(a, b subnet.Record) int { return cmp.Compare(a.Key, b.Key) })
}

// TestBookFollows: whatever happens, and whether it came as events or by
// reading anew, the book holds what a fresh one would.
func TestBookFollows(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	etcd := &fakeEtcd{kvs: map[string]*mvccpb.KeyValue{}}
	b := newBook(testPrefix)
	for step := range 3000 {
		key := fmt.Sprintf("%s10.244.%d.0-24", testPrefix, random.IntN(20))
		if random.IntN(10) == 0 {
			key = "/net/config"
		}
		value := fmt.Sprintf(`{"PublicIP":"192.0.2.%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:0%d"}}`, random.IntN(200)+1, random.IntN(10))
		if random.IntN(8) == 0 {
			value = "garbage"
		}
		var ev *clientv3.Event
		if random.IntN(3) == 0 {
			ev = etcd.delete(key)
		} else {
			ev = etcd.put(key, value, int64(random.IntN(2)))
		}
		switch random.IntN(10) {
		case 0: // the event is lost
			b.replace(etcd.list())
		default:
			if is := b.apply(ev); is != (key != "/net/config") {
				t.Fatalf("step %d: change of %s concerns a record: %v", step, key, is)
			}
		}
		fresh := newBook(testPrefix)
		fresh.replace(etcd.list())
		if got, want := sorted(b.records()), sorted(fresh.records()); !reflect.DeepEqual(got, want) {
			t.Fatalf("step %d:\ngot  %+v\nwant %+v", step, got, want)
		}
	}
}

func TestEntry(t *testing.T) {
	e := newEntry(testPrefix, &mvccpb.KeyValue{
		Key:   []byte(testPrefix + "10.244.7.0-24"),
		Value: []byte(`{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"},"Node":"n7","Schema":1}`),
		Lease: 99, CreateRevision: 3, ModRevision: 8,
	})
	l := e.record.Lease
	if e.record.Err != nil || e.record.Key != "10.244.7.0-24" || l.Node != "n7" || l.Reserved || l.Created != 3 || l.Revision != 8 || e.lease != 99 {
		t.Errorf("got %+v", e)
	}
	if e := newEntry(testPrefix, &mvccpb.KeyValue{Key: []byte(testPrefix + "10.244.7.0-24")}); !e.record.Lease.Reserved || e.record.Err == nil || len(e.record.Lease.Subnets) != 1 {
		t.Errorf("an empty value without lease: %+v; want a reservation with an error and its subnet", e)
	}
}

// TestBookAfterWipe: the same key and revisions, and another record.
func TestBookAfterWipe(t *testing.T) {
	b := newBook(testPrefix)
	for _, mtu := range []int{1400, 1500} {
		etcd := &fakeEtcd{kvs: map[string]*mvccpb.KeyValue{}}
		etcd.put(testPrefix+"10.244.1.0-24", fmt.Sprintf(`{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"},"MTU":%d}`, mtu), 1)
		b.replace(etcd.list())
		if got := b.records()[0]; got.Err != nil || got.Lease.MTU != mtu {
			t.Errorf("MTU %d reads %+v", mtu, got)
		}
	}
}
