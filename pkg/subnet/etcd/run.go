package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

const (
	// Snapshots keep a distance of emitGap, and of emitRest times what the last
	// one cost: a burst of changes comes as few snapshots.
	emitGap  = 20 * time.Millisecond
	emitRest = 4

	// A record that is changed or deleted again and again, as by a second node
	// with the same id, is written again at once and then after repairMin,
	// twice as long each time, up to repairMax.
	repairMin = time.Second
	repairMax = 30 * time.Second

	// watchTimeout is how long etcd may take to set up a watch.
	watchTimeout = 10 * time.Second
)

// Run keeps the acquired lease alive and calls fn with the whole picture now
// and after each change. Nothing that happens to etcd or to the record ends it;
// it returns nil when ctx ends, and an error if nothing was acquired.
//
// It renews the etcd lease by itself, three times in a lease's time:
// clientv3.KeepAlive would wake the process up three times a second.
func (m *Manager) Run(ctx context.Context, fn func(subnet.Snapshot)) error {
	if m.holding().lease.Node == "" {
		return errors.New("etcd: Run: no lease to keep, want Acquire first")
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	k := &keeper{
		m: m, fn: fn,
		network: m.networkRead(),
		book:    newBook(m.subnetsPrefix()),
		conn:    make(chan struct{}, 1),
		checkAt: time.Now().Add(m.opts.CheckEvery),
	}
	k.scheduleRenewal(m.holding().lease)
	wg.Go(func() { k.watchConnection(ctx) })
	for failed := 0; ctx.Err() == nil; failed++ {
		began := time.Now()
		err := m.outage.Retry(ctx, k.read)
		if err == nil {
			err = k.tick(ctx)
		}
		if err == nil {
			err = k.watch(ctx)
		}
		if ctx.Err() != nil {
			break
		}
		m.opts.Log.Info("reading all leases again", "because", err)
		if time.Since(began) > repairMax {
			failed = 0
		}
		if failed > 0 && !outage.Sleep(ctx, outage.Pause(failed)) {
			break
		}
	}
	return nil
}
