package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// askAtOnce is how many requests Expiries has on their way together.
const askAtOnce = 16

// Release deletes the records of another node, such as one that was drained, if
// they are at the given revision; 0 is any. The node may be given by its id, or,
// for a record of flannel's, by its underlay address. subnet.ErrNoLease,
// subnet.ErrChanged and subnet.ErrReserved say why nothing was deleted: somebody
// has made a reservation by hand, and is to end it so. A node that still runs takes
// its lease again. It makes one attempt: who asks is there to ask again.
//
// The etcd lease is left to end by itself, for what else hangs on it is not
// known.
func (m *Manager) Release(ctx context.Context, node string, revision int64) error {
	if err := m.release(ctx, node, revision); err != nil {
		return fmt.Errorf("release the lease of %s: %w", node, err)
	}
	return nil
}

func (m *Manager) release(ctx context.Context, node string, revision int64) error {
	resp, err := m.list(ctx, m.subnetsPrefix())
	if err != nil {
		return err
	}
	var when []clientv3.Cmp
	var then []clientv3.Op
	var at int64
	for _, kv := range resp.Kvs {
		r := newEntry(m.subnetsPrefix(), kv).record
		if r.Err != nil || !isOf(r.Lease, node) {
			continue
		}
		if at = kv.ModRevision; revision != 0 && revision != at {
			continue
		}
		if r.Lease.Reserved {
			return fmt.Errorf("%w: the key %s hangs on no etcd lease; if nobody wants it any more, delete that key (etcdctl del)", subnet.ErrReserved, kv.Key)
		}
		when = append(when, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
		then = append(then, clientv3.OpDelete(string(kv.Key)))
	}
	switch {
	case at == 0:
		return subnet.ErrNoLease
	case len(then) == 0:
		return fmt.Errorf("%w: it is at revision %d, not %d", subnet.ErrChanged, at, revision)
	}
	done, err := m.txn(ctx, when, then...)
	if err == nil && !done.Succeeded {
		err = subnet.ErrChanged
	}
	return err
}

// isOf says whether a lease is called by this name. Records of flannel's name no
// node.
func isOf(l subnet.Lease, node string) bool {
	if l.Node != "" {
		return l.Node == node
	}
	return slices.ContainsFunc(l.VTEPs, func(v subnet.VTEP) bool { return v.Underlay.String() == node })
}

// Expiries asks etcd when each lease ends, by its first subnet; reservations are
// not in it. It costs a request for each lease: it is for people who ask, not
// for every snapshot.
func (m *Manager) Expiries(ctx context.Context) (map[netip.Prefix]time.Time, error) {
	resp, err := m.list(ctx, m.subnetsPrefix()) // with keys only, etcd 3.7 does not say the etcd lease
	if err != nil {
		return nil, fmt.Errorf("ask for the end of leases: %w", err)
	}
	todo := make(chan entry, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		e := newEntry(m.subnetsPrefix(), kv)
		if e.lease != 0 && len(e.record.Lease.Subnets) > 0 {
			todo <- e
		}
	}
	close(todo)
	var (
		mu   sync.Mutex
		ends = make(map[netip.Prefix]time.Time, len(todo))
		wg   sync.WaitGroup
	)
	for range askAtOnce {
		wg.Go(func() {
			for e := range todo {
				ttl, cause := m.timeToLive(ctx, e.lease)
				mu.Lock()
				switch {
				case cause != nil:
					err = cause
				case ttl >= 0:
					ends[e.record.Lease.Subnets[0]] = expiry(ttl)
				}
				stop := err != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if err != nil {
		return nil, fmt.Errorf("ask for the end of leases: %w", err)
	}
	return ends, nil
}

// timeToLive asks how many seconds an etcd lease still has. It is negative if
// the lease is no more.
func (m *Manager) timeToLive(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	err = m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.TimeToLive(ctx, id)
		if err == nil {
			ttl = resp.TTL
		}
		return err
	})
	return ttl, err
}
