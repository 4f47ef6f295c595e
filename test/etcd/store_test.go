package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
	"github.com/vxlan-cni/vxlan-cni/test/etcdtest"
)

const (
	config  = etcd.DefaultPrefix + "/config"
	subnets = etcd.DefaultPrefix + "/subnets/"

	network = `{"Network":"10.244.0.0/16"}`

	// patience is how long a test waits for what must come.
	patience = 20 * time.Second
)

// A store is an etcd and a client of the test's own.
type store struct {
	server *etcdtest.Server
	client *clientv3.Client
}

// newStore runs an etcd that holds a network configuration.
func newStore(t *testing.T, configuration string) *store {
	t.Helper()
	s := &store{server: etcdtest.New(t)}
	s.client = s.server.NewClient(t)
	s.put(t, config, configuration)
	return s
}

func (s *store) start(t *testing.T) {
	t.Helper()
	if err := s.server.Start(); err != nil {
		t.Fatal(err)
	}
}

func (s *store) wipe(t *testing.T) {
	t.Helper()
	if err := s.server.Wipe(); err != nil {
		t.Fatal(err)
	}
}

// manager makes a Manager on the store; change may alter its options.
func (s *store) manager(t *testing.T, change func(*etcd.Options)) *etcd.Manager {
	t.Helper()
	return newManager(t, s.server.Endpoint(), change)
}

func newManager(t *testing.T, endpoint string, change func(*etcd.Options)) *etcd.Manager {
	t.Helper()
	o := etcd.Options{Endpoints: []string{endpoint}}
	if change != nil {
		change(&o)
	}
	m, err := etcd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (s *store) put(t *testing.T, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := s.client.Put(within(t), key, value, opts...); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func (s *store) delete(t *testing.T, key string) {
	t.Helper()
	if _, err := s.client.Delete(within(t), key); err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
}

// records returns all records by key.
func (s *store) records(t *testing.T) map[string]subnet.Record {
	t.Helper()
	resp, err := s.client.Get(within(t), subnets, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]subnet.Record{}
	for _, kv := range resp.Kvs {
		records[string(kv.Key)] = subnet.ParseRecord(strings.TrimPrefix(string(kv.Key), subnets), kv.Value)
	}
	return records
}

// recordOf returns the key of a node's one record.
func (s *store) recordOf(t *testing.T, node string) string {
	t.Helper()
	var keys []string
	for key, r := range s.records(t) {
		if r.Lease.Node == node {
			keys = append(keys, key)
		}
	}
	if len(keys) != 1 {
		t.Fatalf("%s has the records %s, want one", node, keys)
	}
	return keys[0]
}

// etcdLease returns the etcd lease that a key hangs on.
func (s *store) etcdLease(t *testing.T, key string) clientv3.LeaseID {
	t.Helper()
	resp, err := s.client.Get(within(t), key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("get %s: %v, %v", key, resp, err)
	}
	return clientv3.LeaseID(resp.Kvs[0].Lease)
}

func (s *store) revoke(t *testing.T, id clientv3.LeaseID) {
	t.Helper()
	if _, err := s.client.Revoke(within(t), id); err != nil {
		t.Fatal(err)
	}
}

func (s *store) grant(t *testing.T, ttl time.Duration) clientv3.LeaseID {
	t.Helper()
	resp, err := s.client.Grant(within(t), int64(ttl/time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return resp.ID
}

// state is what a write or a new etcd lease changes, as text.
func (s *store) state(t *testing.T) string {
	t.Helper()
	kvs, err := s.client.Get(within(t), "/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	leases, err := s.client.Leases(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("revision %d, leases %v", kvs.Header.Revision, leases.Leases)
}

// leases counts the etcd leases.
func (s *store) leases(t *testing.T) int {
	t.Helper()
	resp, err := s.client.Leases(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return len(resp.Leases)
}

func request(node string, want ...string) subnet.Request {
	r := subnet.Request{Node: node, MTU: 1450, VTEPs: []subnet.VTEP{{
		Underlay: netip.AddrFrom4([4]byte{192, 0, 2, node[len(node)-1]}), MAC: subnet.VTEPMAC(node, true), VNI: 1,
	}}}
	for _, w := range want {
		r.Want = append(r.Want, netip.MustParsePrefix(w))
	}
	return r
}

func acquire(t *testing.T, m *etcd.Manager, want subnet.Request) subnet.Lease {
	t.Helper()
	l, err := m.Acquire(within(t), want)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A runner is a Manager's Run, and what came from it.
type runner struct {
	mu   sync.Mutex
	last subnet.Snapshot
	n    int
	stop func()
}

// run starts m.Run, and waits for the first snapshot.
func run(t *testing.T, m *etcd.Manager) *runner {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{}
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx, func(s subnet.Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.last, r.n = s, r.n+1
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v, want nil", err)
			}
		case <-time.After(patience):
			t.Errorf("Run does not return %s after the end of its context", patience)
		}
	})
	t.Cleanup(r.stop)
	r.wait(t, "an own lease", func(s subnet.Snapshot) bool { return s.Own.Node != "" })
	return r
}

func (r *runner) wait(t *testing.T, what string, ok func(subnet.Snapshot) bool) subnet.Snapshot {
	t.Helper()
	var last subnet.Snapshot
	eventually(t, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if last = r.last; ok(last) {
			return nil
		}
		return fmt.Errorf("no snapshot with %s; the last: %+v", what, last)
	})
	return last
}

// eventually polls until there is no error any more.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", patience, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A journal is a log that tests look into.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// has waits for a line with all words.
func (j *journal) has(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, func() error {
		for line := range strings.Lines(j.String()) {
			found := true
			for _, w := range words {
				found = found && strings.Contains(line, w)
			}
			if found {
				return nil
			}
		}
		return errors.New("no line with " + strings.Join(words, ", ") + " in:\n" + j.String())
	})
}
