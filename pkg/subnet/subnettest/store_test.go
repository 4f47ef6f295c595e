package subnettest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

func fixture(s *Store) Fixture {
	return Fixture{
		Manager: func(*testing.T) subnet.Manager { return s.Manager() },
		Expire:  func(_ *testing.T, node string) { s.Expire(node) },
		PutRaw:  func(_ *testing.T, key string, val []byte) { s.Put(key, val) },
		Delete:  func(_ *testing.T, key string) { s.Delete(key) },
		Outage:  func(_ *testing.T, on bool) { s.Outage(on) },
		Restart: func(*testing.T) { s.Outage(true); s.Outage(false) },
	}
}

func TestStoreConforms(t *testing.T) {
	Conformance(t, func(_ *testing.T, cfg subnet.Config) Fixture { return fixture(NewStore(cfg)) })
}

func newStore(t *testing.T, text string) *Store {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return NewStore(cfg)
}

// TestStoreRevisions: what CAS and the rule of age stand on.
func TestStoreRevisions(t *testing.T) {
	s := newStore(t, config4)
	one := acquire(t, s.Manager(), request(1))
	two := acquire(t, s.Manager(), request(2))
	want := request(1)
	want.MTU = 1400
	changed := acquire(t, s.Manager(), want)
	if one.Created != 1 || one.Revision != 1 || two.Created != 2 || changed.Created != 1 || changed.Revision != 3 {
		t.Errorf("created and revision: %d %d, %d %d, then %d %d", one.Created, one.Revision, two.Created, two.Revision, changed.Created, changed.Revision)
	}
	s.Delete("absent") // is no write
	s.Expire("nobody")
	s.Expire("node-1")
	if again := acquire(t, s.Manager(), request(1)); again.Created != 5 {
		t.Errorf("created again at %d, want 5", again.Created)
	}
	keys := []string{}
	for _, r := range s.Records() {
		keys = append(keys, r.Key)
	}
	if len(keys) != 2 || !slices.IsSorted(keys) {
		t.Errorf("records %q", keys)
	}
}

// TestStoreKeepsItsBytes: what was put is not what the caller does to it later.
func TestStoreKeepsItsBytes(t *testing.T) {
	s := newStore(t, config4)
	data := []byte(`{"PublicIP":"192.0.2.7","BackendType":"host-gw"}`)
	s.Put("10.244.9.0-24", data)
	copy(data, "garbage")
	if r := s.Records()[0]; r.Err != nil || r.Lease.Backend != "host-gw" {
		t.Errorf("got %+v", r)
	}
}

// TestStoreMovesTwins: a node that has two records ends with one.
func TestStoreMovesTwins(t *testing.T) {
	s := newStore(t, config4)
	want := request(1)
	first := acquire(t, s.Manager(), want)
	data, err := subnet.EncodeRecord(first)
	if err != nil {
		t.Fatal(err)
	}
	s.Put("10.244.9.0-24", data)
	if l := acquire(t, s.Manager(), want); !slices.Equal(l.Subnets, first.Subnets) {
		t.Errorf("got %s, want the older %s", l.Subnets, first.Subnets)
	}
	if n := len(s.Records()); n != 1 {
		t.Errorf("%d records left, want 1", n)
	}
}

func TestStoreRefuses(t *testing.T) {
	s := newStore(t, config4)
	m := s.Manager()
	want := request(1)
	want.Node = ""
	if l, err := m.Acquire(t.Context(), want); err == nil {
		t.Errorf("without a node: %+v", l)
	}
	want = request(1)
	want.VTEPs[0].MAC = subnet.MAC{}
	if l, err := m.Acquire(t.Context(), want); err == nil || len(s.Records()) != 0 {
		t.Errorf("without a MAC: %+v, %v, %v", l, err, s.Records())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if cfg, err := m.Config(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %+v, %v", cfg, err)
	}
}
