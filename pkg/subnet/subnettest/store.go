package subnettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A Store is a lease store in memory that several Managers share. Records are
// kept as the bytes that a real store would hold.
type Store struct {
	mu       sync.Mutex
	cfg      subnet.Config
	values   map[string]value // by subnet.Key
	revision int64            // of the last write
	outage   bool
	changed  chan struct{} // closed, and replaced, at each change
}

type value struct {
	data              []byte
	created, modified int64 // revisions
}

// NewStore makes an empty store with a network configuration.
func NewStore(cfg subnet.Config) *Store {
	return &Store{cfg: cfg, values: map[string]value{}, changed: make(chan struct{})}
}

// Manager makes a Manager on the store, as a node that starts would.
func (s *Store) Manager() subnet.Manager { return &manager{store: s} }

// Put writes any record, believable or not.
func (s *Store) Put(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(key, data)
}

// Delete removes a record. The absent is no error.
func (s *Store) Delete(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delete(key)
}

// Empty removes all records at once, as an operator does by mistake.
func (s *Store) Empty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.values {
		s.delete(key)
	}
}

// Expire removes a node's records, as a store does when its lease runs out.
func (s *Store) Expire(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records() {
		if r.Err == nil && r.Lease.Node == node {
			s.delete(r.Key)
		}
	}
}

// Outage takes the store out of every Manager's reach, or brings it back.
func (s *Store) Outage(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = on
	s.notify()
}

// Records returns what is stored, sorted by key.
func (s *Store) Records() []subnet.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records()
}

// The methods below want mu held.

func (s *Store) put(key string, data []byte) {
	s.revision++
	v, ok := s.values[key]
	if !ok {
		v.created = s.revision
	}
	v.data, v.modified = slices.Clone(data), s.revision
	s.values[key] = v
	s.notify()
}

func (s *Store) delete(key string) {
	if _, ok := s.values[key]; !ok {
		return
	}
	s.revision++
	delete(s.values, key)
	s.notify()
}

func (s *Store) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) records() []subnet.Record {
	list := make([]subnet.Record, 0, len(s.values))
	for key := range s.values {
		list = append(list, s.record(key))
	}
	slices.SortFunc(list, func(a, b subnet.Record) int { return bytes.Compare([]byte(a.Key), []byte(b.Key)) })
	return list
}

func (s *Store) record(key string) subnet.Record {
	v := s.values[key]
	r := subnet.ParseRecord(key, v.data)
	r.Lease.Created, r.Lease.Revision = v.created, v.modified
	return r
}

// reach waits until the store can be reached, then calls fn with mu held.
func (s *Store) reach(ctx context.Context, fn func() error) error {
	for {
		s.mu.Lock()
		if err := ctx.Err(); err != nil {
			s.mu.Unlock()
			return err
		}
		if !s.outage {
			err := fn()
			s.mu.Unlock()
			return err
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// acquire is what a Manager's Acquire does while nobody else writes.
func (s *Store) acquire(want subnet.Request) (subnet.Lease, error) {
	records := s.records()
	own := subnet.Sort(s.cfg, want.Node, records).Own
	if len(own.Subnets) == 0 {
		s.inherit(want, records)
		records = s.records()
		own = subnet.Sort(s.cfg, want.Node, records).Own
	}
	taken := subnet.Taken(s.cfg, want.Node, records)
	subnets, err := subnet.Allocate(s.cfg, want.Node, slices.Concat(own.Subnets, want.Want), taken)
	if err != nil {
		return subnet.Lease{}, err
	}
	data, err := subnet.EncodeRecord(subnet.Lease{
		Node: want.Node, Subnets: subnets, VTEPs: want.VTEPs, Backend: s.cfg.Backend.Type, MTU: want.MTU,
	})
	if err != nil {
		return subnet.Lease{}, err
	}
	key := subnet.Key(subnets)
	for _, r := range records {
		if r.Err == nil && r.Lease.Node == want.Node && r.Key != key {
			s.delete(r.Key)
		}
	}
	if !bytes.Equal(s.values[key].data, data) {
		s.put(key, data)
	}
	return s.record(key).Lease, nil
}

// inherit writes what flannel leased on this node anew, as the node's own and
// under the same key.
func (s *Store) inherit(want subnet.Request, records []subnet.Record) {
	for _, r := range want.Inheritance(records) {
		l := subnet.Lease{Node: want.Node, Subnets: r.Lease.Subnets, VTEPs: want.VTEPs, Backend: s.cfg.Backend.Type, MTU: want.MTU}
		if data, err := subnet.EncodeRecord(l); err == nil && s.cfg.Check(l) == nil && len(l.Subnets) == len(s.cfg.Ranges) {
			s.put(r.Key, data)
			return
		}
	}
}

// manager is one node's Manager on a Store.
type manager struct {
	store *Store
	want  subnet.Request // of the last Acquire, Want being what it got; under store.mu
}

func (m *manager) Config(ctx context.Context) (cfg subnet.Config, err error) {
	err = m.store.reach(ctx, func() error {
		cfg = m.store.cfg
		return nil
	})
	return cfg, err
}

func (m *manager) Acquire(ctx context.Context, want subnet.Request) (lease subnet.Lease, err error) {
	if want.Node == "" {
		return subnet.Lease{}, errors.New("acquire: node: missing, want the node id")
	}
	err = m.store.reach(ctx, func() error {
		lease, err = m.acquire(want)
		return err
	})
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("acquire for %s: %w", want.Node, err)
	}
	return lease, nil
}

// Withdraw takes a node's records out of the store.
func (m *manager) Withdraw(ctx context.Context, node string) error {
	return m.store.reach(ctx, func() error {
		for _, r := range m.store.records() {
			if r.Err == nil && node != "" && r.Lease.Node == node {
				m.store.delete(r.Key)
			}
		}
		return nil
	})
}

// acquire wants store.mu held.
func (m *manager) acquire(want subnet.Request) (subnet.Lease, error) {
	lease, err := m.store.acquire(want)
	if err == nil {
		m.want = want
		m.want.Want = lease.Subnets
	}
	return lease, err
}

func (m *manager) Run(ctx context.Context, fn func(subnet.Snapshot)) error {
	for {
		var snap subnet.Snapshot
		var changed chan struct{}
		err := m.store.reach(ctx, func() error {
			if m.want.Node == "" {
				return errors.New("run: no lease, want Acquire first")
			}
			snap = m.snapshot()
			if len(snap.Own.Subnets) == 0 { // lost
				if _, err := m.acquire(m.want); err == nil {
					snap = m.snapshot()
				}
				// Else nothing is free: the next change may free something.
			}
			changed = m.store.changed
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		fn(snap)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// snapshot wants store.mu held.
func (m *manager) snapshot() subnet.Snapshot {
	snap := subnet.Sort(m.store.cfg, m.want.Node, m.store.records())
	snap.Revision = m.store.revision
	return snap
}
