package kube

import (
	"log/slog"
	"reflect"
	"sync"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A book has the record of every Node that has a lease, and the own Node. It is
// a Reflector's store. A record is decoded when its Node changes, and what is
// not in the record is not kept.
type book struct {
	cfg   subnet.Config
	notes annotations
	own   string
	log   *slog.Logger
	news  func() // something has changed that matters

	mu      sync.Mutex // guards what follows
	records map[string]subnet.Record
	node    *node // the own; nil if there is none
	listed  bool  // all that was there at the start is in
	rev     int64 // newest revision seen
	back    int   // how often revisions went back
}

// Add enters a Node. Most changes of a Node are kubelet's reports of its health
// and no news.
func (b *book) Add(obj any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.enter(obj.(*node)) {
		b.news()
	}
	return nil
}

// Update is Add.
func (b *book) Update(obj any) error { return b.Add(obj) }

// Delete removes a Node.
func (b *book) Delete(obj any) error {
	n := obj.(*node)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen(n.ResourceVersion)
	_, had := b.records[n.Name]
	delete(b.records, n.Name)
	if n.Name == b.own {
		b.node, had = nil, true
	}
	if had {
		b.news()
	}
	return nil
}

// Replace enters all Nodes there are.
func (b *book) Replace(list []any, resourceVersion string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	rev := revision(resourceVersion)
	if rev < b.rev {
		b.log.Warn("the Kubernetes API went back in time, as from a backup", "revision", rev, "before", b.rev)
		b.back++
	}
	old := b.records
	b.records, b.node, b.listed, b.rev = make(map[string]subnet.Record, len(list)), nil, true, rev
	for _, obj := range list {
		n := obj.(*node)
		if r, ok := old[n.Name]; ok {
			b.records[n.Name] = r // so that what has not changed stays as it is
		}
		b.enter(n)
	}
	b.news()
	return nil
}

// Resync has nothing to do.
func (b *book) Resync() error { return nil }

// Bookmark is told how far the watch is although nothing has changed.
func (b *book) Bookmark(resourceVersion string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen(resourceVersion)
	return nil
}

// enter and seen want mu held.

func (b *book) enter(n *node) (news bool) {
	b.seen(n.ResourceVersion)
	if n.Name == b.own {
		b.node, news = n, true
	}
	r, ok := b.notes.decode(b.cfg, n)
	old, had := b.records[n.Name]
	if !ok {
		delete(b.records, n.Name)
		return news || had
	}
	if had && sameRecord(old, r) {
		return news
	}
	b.records[n.Name] = r
	return true
}

func (b *book) seen(resourceVersion string) { b.rev = max(b.rev, revision(resourceVersion)) }

// sameRecord compares records but for the revision, which any change of the
// Node moves on.
func sameRecord(a, b subnet.Record) bool {
	if (a.Err == nil) != (b.Err == nil) || a.Err != nil && a.Err.Error() != b.Err.Error() {
		return false
	}
	a.Err, b.Err = nil, nil
	a.Lease.Revision, b.Lease.Revision = 0, 0
	return reflect.DeepEqual(a, b)
}

// A view is the book at one moment.
type view struct {
	records []subnet.Record // of the others
	own     *node           // nil if there is none
	rev     int64
	back    int
	listed  bool
}

func (b *book) view() view {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := view{own: b.node, rev: b.rev, back: b.back, listed: b.listed, records: make([]subnet.Record, 0, len(b.records)+1)}
	for name, r := range b.records {
		if name != b.own {
			v.records = append(v.records, r)
		}
	}
	return v
}
