package etcd

import (
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// An entry is a record with the etcd lease that it hangs on.
type entry struct {
	record subnet.Record
	lease  clientv3.LeaseID // 0: a reservation
}

func newEntry(prefix string, kv *mvccpb.KeyValue) entry {
	r := subnet.ParseRecord(strings.TrimPrefix(string(kv.Key), prefix), kv.Value)
	r.Lease.Reserved = kv.Lease == 0
	r.Lease.Revision, r.Lease.Created = kv.ModRevision, kv.CreateRevision
	return entry{record: r, lease: clientv3.LeaseID(kv.Lease)}
}

// A book has every record as of one revision. A record is decoded when it
// changes, not for each snapshot.
type book struct {
	prefix  string           // of the records' keys in etcd
	entries map[string]entry // by key less prefix
}

func newBook(prefix string) *book { return &book{prefix: prefix, entries: map[string]entry{}} }

// replace makes the book hold exactly these records; keys with another prefix
// are none. It decodes all of them: after a wipe even the same key and revision
// may stand for something else.
func (b *book) replace(kvs []*mvccpb.KeyValue) {
	b.entries = make(map[string]entry, len(kvs))
	for _, kv := range kvs {
		if key, ok := strings.CutPrefix(string(kv.Key), b.prefix); ok {
			b.entries[key] = newEntry(b.prefix, kv)
		}
	}
}

// apply enters one change, and returns whether it concerns a record.
func (b *book) apply(ev *clientv3.Event) bool {
	key, ok := strings.CutPrefix(string(ev.Kv.Key), b.prefix)
	if !ok {
		return false
	}
	if ev.Type == mvccpb.Event_DELETE {
		delete(b.entries, key)
	} else {
		b.entries[key] = newEntry(b.prefix, ev.Kv)
	}
	return true
}

func (b *book) records() []subnet.Record {
	list := make([]subnet.Record, 0, len(b.entries))
	for _, e := range b.entries {
		list = append(list, e.record)
	}
	return list
}
