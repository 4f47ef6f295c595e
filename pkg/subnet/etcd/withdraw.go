package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// Withdraw takes the node's own records out of etcd, each at the revision that it
// was read at, for a node that is no more to be part of the network. A
// reservation stays one, for the node's addresses, but peers no longer send
// there. That there is nothing to take is a success. It waits while etcd cannot
// be reached, until ctx ends. A Run would take the lease again: end it first.
//
// The etcd lease is left to end by itself, for what else hangs on it is not
// known.
func (m *Manager) Withdraw(ctx context.Context, node string) error {
	err := m.outage.RetryAndTell(ctx, func(ctx context.Context) error { return m.withdraw(ctx, node) })
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", node, err)
	}
	return nil
}

func (m *Manager) withdraw(ctx context.Context, node string) error {
	if err := take(ctx, m.acquiring); err != nil {
		return err
	}
	defer func() { <-m.acquiring }()
	for {
		resp, err := m.list(ctx, m.subnetsPrefix())
		if err != nil {
			return err
		}
		_, own := m.read(resp.Kvs, node)
		var when []clientv3.Cmp
		var then []clientv3.Op
		for _, s := range own {
			key := m.subnetsPrefix() + s.record.Key
			when = append(when, clientv3.Compare(clientv3.ModRevision(key), "=", s.record.Lease.Revision))
			if s.lease != 0 {
				then = append(then, clientv3.OpDelete(key))
				continue
			}
			value, err := subnet.EncodeReservation(s.record.Lease.VTEPs)
			if err != nil {
				return err
			}
			then = append(then, clientv3.OpPut(key, string(value)))
		}
		if len(then) == 0 {
			m.setHolding(holding{})
			return nil
		}
		// Once more even if it is done: another record may have come meanwhile.
		if _, err := m.txn(ctx, when, then...); err != nil {
			return err
		}
	}
}
