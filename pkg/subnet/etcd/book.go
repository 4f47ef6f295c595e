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

// A book has every record as of one revision. A record is decoded once, when it
// changes.
type book struct {
	prefix  string           // of the records' keys in etcd
	entries map[string]entry // by key less prefix
}

func newBook(prefix string) *book { return &book{prefix: prefix, entries: map[string]entry{}} }

// replace makes the book hold exactly these records; keys with another prefix
// are none.
func (b *book) replace(kvs []*mvccpb.KeyValue) {
	old := b.entries
	b.entries = make(map[string]entry, len(kvs))
	for _, kv := range kvs {
		key, ok := strings.CutPrefix(string(kv.Key), b.prefix)
		if !ok {
			continue
		}
		// After a wipe etcd counts from 1 again, and a revision may come twice.
		// Created beside it makes a mix-up as good as impossible; reset rules
		// it out.
		if e, known := old[key]; known && e.record.Lease.Revision == kv.ModRevision && e.record.Lease.Created == kv.CreateRevision {
			b.entries[key] = e
			continue
		}
		b.entries[key] = newEntry(b.prefix, kv)
	}
}

// reset forgets everything.
func (b *book) reset() { clear(b.entries) }

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
