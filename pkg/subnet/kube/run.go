package kube

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

const (
	// Snapshots keep a distance of emitGap, and of emitRest times what the last
	// one cost: a burst of changes comes as few snapshots.
	emitGap  = 20 * time.Millisecond
	emitRest = 4

	// Annotations that are changed again and again, as by a flannel that still
	// runs on this node, are written again at once and then after repairMin,
	// twice as long each time, up to repairMax.
	repairMin = time.Second
	repairMax = 30 * time.Second
)

// Run watches all Nodes and calls fn with the whole picture now and after each
// change. Nothing that happens to the API server or the Node ends it; it
// returns nil when ctx ends, and an error if nothing was acquired.
//
// While the own Node, its podCIDRs or annotations are gone, what was held last
// stands in for them.
func (m *Manager) Run(ctx context.Context, fn func(subnet.Snapshot)) error {
	held := m.holding()
	if held.want.Node == "" {
		return errors.New("kube: Run: no lease to keep, want Acquire first")
	}
	cfg, err := m.config(ctx)
	if err != nil {
		return nil // Acquire has read it, so it is ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	k := &keeper{m: m, fn: fn, cfg: cfg, book: &book{
		cfg: cfg, notes: m.notes, own: held.want.Node, log: m.opts.Log, news: m.wake,
		records: map[string]subnet.Record{},
	}}
	m.mu.Lock()
	m.book = k.book
	m.mu.Unlock()
	wg.Go(func() { m.reflect(ctx, k.book) })
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.news:
			k.dirty = true
		case <-timer.C:
		}
		timer.Reset(time.Until(k.tick(ctx)))
	}
}

// reflect fills the book until ctx ends. It uses client-go's Reflector, which
// reads everything anew where a watch cannot go on.
func (m *Manager) reflect(ctx context.Context, b *book) {
	logger := logr.FromSlogHandler(m.opts.Log.Handler())
	r := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return m.client.list(ctx, m.outage, b.own, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents == nil {
				if err := m.continues(ctx, b, o.ResourceVersion); err != nil {
					return nil, err
				}
			}
			return m.client.watch(ctx, m.outage, b.own, o)
		},
	}, &node{}, b, cache.ReflectorOptions{
		Name: "nodes", Logger: &logger,
		Backoff: &wait.Backoff{Duration: outage.PauseMin, Cap: outage.PauseMax, Steps: 10, Factor: 2, Jitter: 1},
	})
	r.RunWithContext(klog.NewContext(ctx, logger))
}

// continues looks whether a watch that goes on at a revision would miss
// something: after a wipe, or a restore from a backup, the API server counts
// again, and would send nothing until it comes to that revision. Then the error
// makes the Reflector read everything anew.
func (m *Manager) continues(ctx context.Context, b *book, resourceVersion string) error {
	var rev int64
	var own *node
	err := m.outage.Retry(ctx, func(ctx context.Context) (err error) {
		if rev, err = m.client.revision(ctx); err == nil {
			own, err = m.client.get(ctx, b.own)
		}
		var wait *outage.Wait
		if errors.As(err, &wait) && wait.State == stateNoNode {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	known := b.view().own
	if rev < revision(resourceVersion) || (own == nil) != (known == nil) || own != nil && own.UID != known.UID {
		return apierrors.NewResourceExpired("the API server is another than before, or the own Node is")
	}
	return nil
}

// A keeper is what Run knows. One goroutine uses it, but for the book.
type keeper struct {
	m    *Manager
	fn   func(subnet.Snapshot)
	cfg  subnet.Config
	book *book

	dirty     bool      // there may be news that fn has not seen
	emitAt    time.Time // not before
	repairAt  time.Time // not before
	repairGap time.Duration
	gone      bool // the own Node's absence was told
	back      int  // view.back as of the last tick
}

// tick does what is due, and says when something will be.
func (k *keeper) tick(ctx context.Context) time.Time {
	next := time.Now().Add(time.Hour)
	v := k.book.view()
	if !v.listed {
		return next
	}
	if v.back != k.back {
		k.back = v.back
		k.m.forgetRevision()
	}
	if k.isBroken(v) {
		if wait := time.Until(k.repairAt); wait <= 0 {
			k.repair(ctx)
		}
		next = k.repairAt
	}
	if k.dirty && ctx.Err() == nil {
		if time.Now().Before(k.emitAt) {
			return earlier(next, k.emitAt)
		}
		k.emit()
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// isBroken says whether the own Node is not as this Manager wrote it, and can
// be set right. While the book is older than the last write, it cannot tell.
func (k *keeper) isBroken(v view) bool {
	held, announced := k.m.state()
	if v.own == nil || len(v.own.Spec.PodCIDRs) == 0 && v.own.Spec.PodCIDR == "" {
		if !k.gone && v.rev >= held.lease.Revision {
			k.gone = true
			k.m.opts.Log.Warn("own Node or its podCIDRs are gone, the subnets stay in use here", "node", held.want.Node, "subnets", held.lease.Subnets)
		}
		return false // its return is news
	}
	k.gone = false
	if v.own.UID == held.uid && revisionOf(v.own) < held.lease.Revision {
		return false
	}
	return v.own.UID != held.uid || len(changes(v.own.Annotations, held.annotations)) > 0 || announced && !k.m.told(v.own)
}

// forgetRevision is for when the API server has forgotten it too.
func (m *Manager) forgetRevision() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held.lease.Revision = 0
}

func (m *Manager) state() (holding, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held, m.announced
}

// repair makes one attempt to set the own Node right.
func (k *keeper) repair(ctx context.Context) {
	now := time.Now()
	if now.Sub(k.repairAt) > 2*repairMax {
		k.repairGap = 0
	}
	k.repairGap = min(max(repairMin, 2*k.repairGap), repairMax)
	defer func() { k.repairAt = time.Now().Add(k.repairGap) }()

	before, lease, wrote, err := k.acquireAgain(ctx)
	var wait *outage.Wait
	switch {
	case ctx.Err() != nil:
		return
	case errors.As(err, &wait):
		k.m.outage.Report(wait)
		return
	case err != nil:
		k.m.opts.Log.Error("own Node cannot be set right", "subnets", before.Subnets, "error", err)
		return
	}
	k.m.outage.Over()
	if wrote {
		k.m.opts.Log.Warn("own Node's annotations were changed by somebody else, written again", "before", before.Subnets, "now", lease.Subnets)
		k.m.Report(lease.Node, true, eventAnnotations, "somebody else changed the annotations that say where this node is reached, and they were written again")
	}
	if held, announced := k.m.state(); announced {
		if err := k.m.announce(ctx, held.want.Node, true); err != nil && ctx.Err() == nil {
			k.m.opts.Log.Warn("the node's readiness cannot be announced again", "error", err)
		}
	}
}

// acquireAgain returns what was held before and what is held now.
func (k *keeper) acquireAgain(ctx context.Context) (before, now subnet.Lease, wrote bool, err error) {
	if err := k.m.lock(ctx); err != nil {
		return subnet.Lease{}, subnet.Lease{}, false, err
	}
	defer k.m.unlock()
	h := k.m.holding()
	now, wrote, err = k.m.acquire(ctx, k.cfg, h.want)
	return h.lease, now, wrote, err
}

// emit passes a snapshot on. The own record in it is always what is held.
func (k *keeper) emit() {
	began := time.Now()
	v, held := k.book.view(), k.m.holding()
	k.dirty = false
	own := subnet.Record{Key: key(held.want.Node), Lease: held.lease}
	snap := subnet.Sort(k.cfg, held.want.Node, append(v.records, own))
	snap.Revision = v.rev
	k.fn(snap)
	k.emitAt = time.Now().Add(max(emitGap, emitRest*time.Since(began)))
}
