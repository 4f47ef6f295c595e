package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// A keeper is what Run knows. One goroutine uses it, but for conn.
type keeper struct {
	m       *Manager
	fn      func(subnet.Snapshot)
	network network
	book    *book
	rev     int64         // etcd revision that book is of
	conn    chan struct{} // something about the connection has changed

	dirty   bool      // book has changes that fn has not seen
	emitAt  time.Time // not before
	checkAt time.Time
	renewAt time.Time
	failed  int  // checks and renewals in a row
	suspect bool // the last check saw another own record than the book

	broken    bool          // the own record is not as it was written
	repairAt  time.Time     // not before
	repairGap time.Duration // what the next pause will be
}

// read fills the book.
func (k *keeper) read(ctx context.Context) error {
	seen := max(k.rev, k.m.holding().lease.Revision)
	resp, err := k.m.list(ctx, k.m.opts.Prefix+"/")
	if err != nil {
		return err
	}
	if resp.Header.Revision < seen {
		k.m.opts.Log.Warn("etcd was wiped, or restored from a backup", "revision", resp.Header.Revision, "before", seen)
		k.broken = true
	}
	k.book.replace(resp.Kvs)
	k.rev, k.dirty = resp.Header.Revision, true
	for _, kv := range resp.Kvs {
		if string(kv.Key) == k.m.configKey() {
			k.compareConfig(kv.Value)
		}
	}
	k.suspect = false
	k.checkAt = time.Now().Add(k.m.opts.CheckEvery)
	return nil
}

// compareConfig warns, once for each new one, of a configuration that is not
// the one in use.
func (k *keeper) compareConfig(raw []byte) {
	if bytes.Equal(raw, k.network.raw) {
		return
	}
	k.network.raw = bytes.Clone(raw)
	k.m.opts.Log.Warn("the network configuration has changed, restart to use it", "key", k.m.configKey())
}

// watch follows etcd from the book's revision on, and returns why it cannot
// go on. Then the book has to be read anew.
func (k *keeper) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	opening, err := k.openWatch(ctx)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel()
		<-opening // closed when its goroutine ends
	}()
	var changes clientv3.WatchChan // nil until etcd has answered
	opened := opening
	limit := time.NewTimer(watchTimeout)
	defer limit.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(k.due()))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case changes = <-opened:
			opened = nil
			limit.Stop()
			continue
		case <-limit.C:
			return fmt.Errorf("no watch within %s", watchTimeout)
		case resp, ok := <-changes:
			if err := k.apply(resp, ok); err != nil {
				return err
			}
			continue // what else is there comes first; the timer has its own case
		case <-k.conn:
			k.checkAt = time.Now()
		case <-timer.C:
		}
		if err := k.tick(ctx); err != nil {
			return err
		}
	}
}

// openWatch asks for all changes after the book's revision. A watch without a
// leader would be silent, hence WithRequireLeader. Watch blocks until etcd has
// answered, so it has a goroutine, which ends with ctx at the latest.
func (k *keeper) openWatch(ctx context.Context) (<-chan clientv3.WatchChan, error) {
	c, err := k.m.connect(ctx)
	if err != nil {
		return nil, err
	}
	opened := make(chan clientv3.WatchChan, 1)
	rev := k.rev + 1
	go func() {
		defer close(opened)
		opened <- c.Watch(clientv3.WithRequireLeader(ctx), k.m.opts.Prefix+"/",
			clientv3.WithPrefix(), clientv3.WithRev(rev), clientv3.WithFragment())
	}()
	return opened, nil
}

// apply enters a batch of changes.
func (k *keeper) apply(resp clientv3.WatchResponse, ok bool) error {
	if !ok {
		return errors.New("the watch has ended")
	}
	if err := resp.Err(); err != nil {
		return fmt.Errorf("the watch has ended: %w", err)
	}
	for _, ev := range resp.Events {
		k.rev = max(k.rev, ev.Kv.ModRevision)
		switch {
		case k.book.apply(ev):
			k.dirty = true
		case string(ev.Kv.Key) == k.m.configKey() && ev.Type != clientv3.EventTypeDelete:
			k.compareConfig(ev.Kv.Value)
		}
	}
	return nil
}

// due is when tick has something to do.
func (k *keeper) due() time.Time {
	at := []time.Time{k.checkAt, k.renewAt}
	if k.mayEmit() {
		at = append(at, k.emitAt)
	}
	if k.isBroken() {
		at = append(at, k.repairAt)
	}
	return slices.MinFunc(at, time.Time.Compare)
}

// tick does what is due. An error means that the book has to be read anew.
func (k *keeper) tick(ctx context.Context) error {
	now := time.Now()
	if !now.Before(k.renewAt) {
		k.renew(ctx)
	}
	if !now.Before(k.checkAt) {
		if err := k.check(ctx); err != nil {
			return err
		}
	}
	if k.isBroken() && !now.Before(k.repairAt) {
		k.repair(ctx)
	}
	if k.mayEmit() && !now.Before(k.emitAt) && ctx.Err() == nil {
		k.emit()
	}
	return nil
}

// check asks etcd for the own record. It finds a watch that misses changes
// without knowing, as after a wipe.
func (k *keeper) check(ctx context.Context) error {
	held := k.m.holding()
	resp, err := k.m.get(ctx, k.m.subnetsPrefix()+held.key, clientv3.WithKeysOnly())
	if err != nil {
		k.checkAt = k.later(err)
		return nil
	}
	k.served()
	k.checkAt = time.Now().Add(k.m.opts.CheckEvery)
	if resp.Header.Revision < k.rev {
		return fmt.Errorf("revision is %d after %d", resp.Header.Revision, k.rev)
	}
	var there, known int64
	if len(resp.Kvs) > 0 {
		there = resp.Kvs[0].ModRevision
	}
	if e, ok := k.book.entries[held.key]; ok {
		known = e.record.Lease.Revision
	}
	switch {
	case there == known:
		k.suspect = false
	case k.suspect:
		return fmt.Errorf("the watch missed that the own record's revision is %d, not %d", there, known)
	default: // the change may be on its way
		k.suspect = true
		k.checkAt = time.Now().Add(time.Second)
	}
	return nil
}

// renew makes the own etcd lease last on.
func (k *keeper) renew(ctx context.Context) {
	held := k.m.holding()
	if held.id == 0 {
		k.scheduleRenewal(held.lease)
		return
	}
	ttl, err := k.m.renew(ctx, held.id)
	if err != nil {
		k.renewAt = k.later(err)
		return
	}
	k.served()
	if ttl == 0 {
		k.broken = true
		k.renewAt = time.Now().Add(repairMax) // repair sets it right
		return
	}
	k.scheduleRenewal(k.m.setExpiry(held.id, expiry(ttl)))
	k.dirty = true
}

// scheduleRenewal sets renewAt to when a third of the lease's time is over.
func (k *keeper) scheduleRenewal(l subnet.Lease) {
	third := k.m.opts.LeaseTTL / 3
	k.renewAt = time.Now().Add(third)
	if !l.Reserved && !l.Expiry.IsZero() {
		k.renewAt = l.Expiry.Add(-2 * third)
	}
}

// later reports a request that was not served, and says when to try again.
func (k *keeper) later(err error) time.Time {
	if wait, ok := errors.AsType[*outage.Wait](err); ok {
		k.m.outage.Report(wait)
	}
	k.failed++
	return time.Now().Add(outage.Pause(k.failed - 1))
}

func (k *keeper) served() {
	k.failed = 0
	k.m.outage.Over()
}

// isBroken says whether the own record is not as this Manager wrote it. While
// the book is older than the last write, it cannot tell.
func (k *keeper) isBroken() bool {
	held := k.m.holding()
	own, ok := k.book.entries[held.key]
	right := ok && own.record.Lease.Revision == held.lease.Revision
	k.broken = k.broken || (!right && k.rev >= held.lease.Revision)
	return k.broken
}

// repair makes one attempt to get the own record back.
func (k *keeper) repair(ctx context.Context) {
	before, lease, err := k.m.acquireAgain(ctx, k.network.cfg)
	now := time.Now()
	var wait *outage.Wait
	switch {
	case ctx.Err() != nil:
		return
	case errors.As(err, &wait):
		k.repairAt = k.later(err)
		return
	case err != nil:
		k.m.opts.Log.Error("own lease lost, and not to be had again", "subnets", before.Subnets, "error", err)
	default:
		k.served()
		k.broken, k.dirty = false, true
		k.scheduleRenewal(lease)
		if lease.Revision == before.Revision {
			return // it was Acquire's write
		}
		k.m.opts.Log.Warn("own lease was lost or changed, acquired again", "before", before.Subnets, "now", lease.Subnets)
	}
	if now.Sub(k.repairAt) > 2*repairMax {
		k.repairGap = 0
	}
	k.repairGap = min(max(repairMin, 2*k.repairGap), repairMax)
	k.repairAt = now.Add(k.repairGap)
}

// mayEmit says whether there is news. After a write of its own the keeper waits
// for that to come back, so that a snapshot never has an own lease of old.
func (k *keeper) mayEmit() bool {
	return k.dirty && (k.broken || k.rev >= k.m.holding().lease.Revision)
}

// emit passes a snapshot on. While etcd has no own record the one held last
// stands in for it, for the node goes on with that.
func (k *keeper) emit() {
	held := k.m.holding()
	began := time.Now()
	records := k.book.records()
	if !slices.ContainsFunc(records, func(r subnet.Record) bool { return r.Err == nil && r.Lease.Node == held.want.Node }) {
		records = append(records, subnet.Record{Key: held.key, Lease: held.lease})
	}
	snap := subnet.Sort(k.network.cfg, held.want.Node, records)
	snap.Revision = k.rev
	if !snap.Own.Reserved {
		snap.Own.Expiry = held.lease.Expiry
	}
	k.fn(snap)
	k.dirty = false
	k.emitAt = time.Now().Add(max(emitGap, emitRest*time.Since(began)))
}

// watchConnection tells when the connection to etcd was lost or is back, so
// that neither waits for the next check.
func (k *keeper) watchConnection(ctx context.Context) {
	c, err := k.m.connect(ctx)
	if err != nil {
		return
	}
	conn := c.ActiveConnection()
	for state := conn.GetState(); conn.WaitForStateChange(ctx, state); {
		next := conn.GetState()
		if state == connectivity.Ready || next == connectivity.Ready {
			select {
			case k.conn <- struct{}{}:
			default: // one is waiting already
			}
		}
		state = next
	}
}
