package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// What etcd is waited for, as it stands in the log.
const (
	stateAway    = "etcd not reachable"
	stateRefused = "etcd refuses"
	stateEmpty   = "etcd holds no network configuration"
)

// A Manager holds one node's lease in etcd. Its methods may be called from
// several goroutines; Acquire also while Run runs, to update the record.
type Manager struct {
	opts   Options
	tls    *tls.Config
	dialer outage.Dialer
	outage *outage.Reporter

	// acquiring has room for one token: who holds it may write the record, and
	// spare and ttl.
	acquiring chan struct{}
	spare     clientv3.LeaseID // granted, and no record hangs on it yet
	ttl       int64            // seconds that etcd grants a lease for

	// connecting has room for one token: who holds it may make the client.
	connecting chan struct{}

	mu      sync.Mutex // guards what follows
	client  *clientv3.Client
	closed  bool
	network network
	held    holding
}

// network is the configuration as last read.
type network struct {
	raw []byte // as stored; nil: not read yet
	cfg subnet.Config
}

var _ subnet.Manager = (*Manager)(nil)

// New returns a Manager that talks to etcd when it is first used: etcd need
// not be reachable yet. Errors name the option.
func New(o Options) (*Manager, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	t, err := o.tls()
	if err != nil {
		return nil, err
	}
	return &Manager{
		opts:       o,
		tls:        t,
		outage:     outage.NewReporter(o.Log.With("endpoints", strings.Join(o.Endpoints, ","))),
		ttl:        o.ttl(),
		acquiring:  make(chan struct{}, 1),
		connecting: make(chan struct{}, 1),
	}, nil
}

// Close ends the connection. The record stays in etcd until its lease ends.
// Call it after the other methods have returned.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.client == nil {
		return nil
	}
	err := m.client.Close()
	m.client = nil
	if errors.Is(err, context.Canceled) {
		return nil // what etcd's client says of a proper end
	}
	return err
}

// Reconnect ends the connections to etcd, which hang on an address that the node may
// have lost. Requests under way are made again.
func (m *Manager) Reconnect() { m.dialer.Cut() }

// Config reads the network's configuration. While etcd cannot be reached or
// holds none it waits, until ctx ends. One that makes no sense is an error at
// once, which names the key.
func (m *Manager) Config(ctx context.Context) (subnet.Config, error) {
	var n network
	err := m.outage.Retry(ctx, func(ctx context.Context) (err error) {
		n, err = m.readConfig(ctx)
		return err
	})
	if err != nil {
		return subnet.Config{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.network = n
	return n.cfg, nil
}

func (m *Manager) readConfig(ctx context.Context) (network, error) {
	resp, err := m.get(ctx, m.configKey())
	if err != nil {
		return network{}, err
	}
	if len(resp.Kvs) == 0 {
		return network{}, &outage.Wait{State: stateEmpty, Err: fmt.Errorf("key %s: missing, want the network configuration", m.configKey())}
	}
	raw := resp.Kvs[0].Value
	cfg, err := subnet.ParseConfig(raw)
	if err != nil {
		return network{}, fmt.Errorf("etcd key %s: %w", m.configKey(), err)
	}
	return network{raw: bytes.Clone(raw), cfg: cfg}, nil
}

// config returns the configuration as last read, and reads it if it was not.
func (m *Manager) config(ctx context.Context) (subnet.Config, error) {
	if n := m.networkRead(); n.raw != nil {
		return n.cfg, nil
	}
	return m.Config(ctx)
}

func (m *Manager) networkRead() network {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.network
}

func (m *Manager) configKey() string     { return m.opts.Prefix + "/config" }
func (m *Manager) subnetsPrefix() string { return m.opts.Prefix + "/subnets/" }

// take waits for a token.
func take(ctx context.Context, token chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
