package kube

import (
	"context"
	"errors"
	"fmt"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// Release takes the lease off another Node, such as one that was drained: its
// annotations go, and its network is said to be unavailable. The subnets stay
// the Node's, until it is deleted. revision is that of the lease in a Snapshot,
// which reports of the Node's health do not move on; 0 is any.
// subnet.ErrNoLease and subnet.ErrChanged say why nothing was done. A daemon
// that still runs there takes its lease again. It makes one attempt.
func (m *Manager) Release(ctx context.Context, name string, revision int64) error {
	if err := m.release(ctx, name, revision); err != nil {
		return fmt.Errorf("release the lease of %s: %w", name, err)
	}
	return nil
}

func (m *Manager) release(ctx context.Context, name string, revision int64) error {
	cfg, err := m.config(ctx)
	if err != nil {
		return err
	}
	n, err := m.client.get(ctx, name)
	var wait *outage.Wait
	if errors.As(err, &wait) && wait.State == stateNoNode {
		return subnet.ErrNoLease
	}
	if err != nil {
		return err
	}
	r, ok := m.notes.decode(cfg, n)
	if !ok {
		return subnet.ErrNoLease
	}
	if at := m.revisionOf(r); revision != 0 && at != revision {
		return fmt.Errorf("%w: it is at revision %d, not %d", subnet.ErrChanged, at, revision)
	}
	none := map[string]*string{}
	for _, w := range written() {
		none[m.notes.prefix+w] = nil
	}
	n, err = m.client.annotate(ctx, n, changes(n.Annotations, none))
	if errors.Is(err, errConflict) {
		return subnet.ErrChanged
	}
	if err != nil {
		return err
	}
	return m.setCondition(ctx, n, false)
}

// revisionOf is the revision at which a lease became what it is, as far as Run
// has seen, and else that of its Node.
func (m *Manager) revisionOf(r subnet.Record) int64 {
	m.mu.Lock()
	b := m.book
	m.mu.Unlock()
	if b == nil {
		return r.Lease.Revision
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if seen, ok := b.records[r.Lease.Node]; ok && sameRecord(seen, r) {
		return seen.Lease.Revision
	}
	return r.Lease.Revision
}
