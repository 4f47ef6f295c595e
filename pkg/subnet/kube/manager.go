package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// A Manager holds one node's lease in the annotations of its Node. Its methods
// may be called from several goroutines; Acquire also while Run runs, to update
// the annotations.
type Manager struct {
	opts   Options
	client *client
	notes  annotations
	dialer *outage.Dialer
	outage *outage.Reporter
	events *events
	news   chan struct{} // has room for one: held or announced has changed

	// acquiring has room for one token: who holds it may write the annotations.
	acquiring chan struct{}

	mu        sync.Mutex // guards what follows
	cfg       *subnet.Config
	held      holding
	announced bool  // Announce said last that the node is ready
	book      *book // what Run sees; nil before it
}

// A holding is what this node has.
type holding struct {
	want        subnet.Request     // what it was acquired for
	lease       subnet.Lease       // Revision is that of the last write
	uid         types.UID          // of the Node
	annotations map[string]*string // what the Node's must be
}

var _ subnet.Manager = (*Manager)(nil)

// errConflict says that the Node has changed since it was read.
var errConflict = errors.New("conflict")

// New returns a Manager that talks to the API server when it is first used: the
// server need not be reachable yet. Errors name the option.
func New(o Options) (*Manager, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	dialer := &outage.Dialer{}
	rest, params, err := o.connect(dialer)
	if err != nil {
		return nil, err
	}
	notes := annotations{o.AnnotationPrefix}
	c := &client{rest: rest, params: params, notes: notes}
	return &Manager{
		opts:      o,
		client:    c,
		events:    newEvents(c, o.Log),
		notes:     notes,
		dialer:    dialer,
		outage:    outage.NewReporter(o.Log),
		news:      make(chan struct{}, 1),
		acquiring: make(chan struct{}, 1),
	}, nil
}

// Close waits a moment for Events that were reported last, and ends idle
// connections. The annotations stay. Call it after the other methods have
// returned.
func (m *Manager) Close() error {
	m.events.close()
	m.client.rest.Client.CloseIdleConnections()
	return nil
}

// Reconnect ends the connections to the API server, which hang on an address that the
// node may have lost. Requests under way are made again.
func (m *Manager) Reconnect() { m.dialer.Cut() }

// Config reads the network's configuration from its file. While that is not
// there it waits, until ctx ends. One that makes no sense is an error at once,
// which names the key. A later change of the file needs a restart.
func (m *Manager) Config(ctx context.Context) (subnet.Config, error) {
	var cfg subnet.Config
	err := m.outage.Retry(ctx, func(context.Context) error {
		data, err := os.ReadFile(m.opts.ConfigPath)
		if errors.Is(err, fs.ErrNotExist) {
			return &outage.Wait{State: stateNoConfig, Err: err}
		}
		if err == nil {
			cfg, err = subnet.ParseConfig(data)
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
		return subnet.Config{}, ctx.Err()
	case err != nil:
		return subnet.Config{}, fmt.Errorf("file %s: %w", m.opts.ConfigPath, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cfg = &cfg
	return cfg, nil
}

// config returns the configuration as last read, and reads it if it was not.
func (m *Manager) config(ctx context.Context) (subnet.Config, error) {
	m.mu.Lock()
	cfg := m.cfg
	m.mu.Unlock()
	if cfg != nil {
		return *cfg, nil
	}
	return m.Config(ctx)
}

// Acquire takes the subnets that Kubernetes has assigned to the Node of this
// name, and writes the node's endpoints to its annotations if they are not
// there already. It waits while the API server cannot be reached, the Node is
// not registered, or has no podCIDRs, until ctx ends. podCIDRs that do not fit
// the network configuration are an error at once. Want.Want is not heard.
func (m *Manager) Acquire(ctx context.Context, want subnet.Request) (subnet.Lease, error) {
	if want.Node == "" {
		return subnet.Lease{}, errors.New("acquire: Node: missing, want the name of the Node")
	}
	want.VTEPs = slices.Clone(want.VTEPs)
	cfg, err := m.config(ctx)
	if err != nil {
		return subnet.Lease{}, err
	}
	if err := m.lock(ctx); err != nil {
		return subnet.Lease{}, err
	}
	defer m.unlock()
	var l subnet.Lease
	told := false
	err = m.outage.Retry(ctx, func(ctx context.Context) error {
		l, _, err = m.acquire(ctx, cfg, want)
		var wait *outage.Wait
		if errors.As(err, &wait) && wait.State == stateUnassigned && !told {
			told = true
			m.Report(want.Node, true, eventNoPodCIDR, "pods cannot start: "+wait.Err.Error())
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
		return subnet.Lease{}, ctx.Err()
	case err != nil:
		return subnet.Lease{}, fmt.Errorf("acquire for %s: %w", want.Node, err)
	}
	return l, nil
}

// lock waits for the acquiring token.
func (m *Manager) lock(ctx context.Context) error {
	select {
	case m.acquiring <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Manager) unlock() { <-m.acquiring }

// acquire makes one attempt, repeated only while others write to the Node at
// the same time. It says whether it wrote. The caller has the acquiring token.
func (m *Manager) acquire(ctx context.Context, cfg subnet.Config, want subnet.Request) (subnet.Lease, bool, error) {
	for n := 0; ; n++ {
		h, wrote, err := m.tryAcquire(ctx, cfg, want)
		if errors.Is(err, errConflict) && n < 10 {
			continue // the next look sees what they did
		}
		if errors.Is(err, errConflict) {
			err = &outage.Wait{State: stateRefused, Err: named(want.Node, err)}
		}
		if err != nil {
			return subnet.Lease{}, false, err
		}
		m.mu.Lock()
		m.held = h
		m.mu.Unlock()
		m.wake()
		return h.lease, wrote, nil
	}
}

func (m *Manager) tryAcquire(ctx context.Context, cfg subnet.Config, want subnet.Request) (holding, bool, error) {
	n, err := m.client.get(ctx, want.Node)
	if err != nil {
		return holding{}, false, err
	}
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR == "" {
		return holding{}, false, &outage.Wait{State: stateUnassigned, Err: named(n.Name,
			errors.New("spec.podCIDRs: none, want the controller-manager to assign some (--allocate-node-cidrs)"))}
	}
	h := holding{want: want, uid: n.UID, lease: subnet.Lease{Node: want.Node, Backend: cfg.Backend.Type, MTU: want.MTU}}
	if h.lease.Subnets, err = assigned(cfg, n); err != nil {
		return holding{}, false, named(n.Name, err)
	}
	if h.lease.VTEPs, err = m.notes.overwrite(n, want.VTEPs); err != nil {
		return holding{}, false, named(n.Name, err)
	}
	if err := cfg.Check(h.lease); err != nil {
		return holding{}, false, named(n.Name, err)
	}
	if h.annotations, err = m.notes.encode(h.lease); err != nil {
		return holding{}, false, err
	}
	diff := changes(n.Annotations, h.annotations)
	if len(diff) > 0 {
		if n, err = m.client.annotate(ctx, n, diff); err != nil {
			return holding{}, false, err
		}
	}
	h.lease.Revision, h.lease.Created = revision(n.ResourceVersion), n.CreationTimestamp.Unix()
	h.lease.Since = since(n)
	return h, len(diff) > 0, nil
}

func (m *Manager) holding() holding {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// wake makes Run look again.
func (m *Manager) wake() {
	select {
	case m.news <- struct{}{}:
	default: // one is waiting already
	}
}

func revisionOf(n *node) int64 { return revision(n.ResourceVersion) }
