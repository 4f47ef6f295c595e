package etcd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// A holding is the record that this node has in etcd.
type holding struct {
	want  subnet.Request   // what it was acquired for
	key   string           // less the prefix
	lease subnet.Lease     // Revision is that of the last write
	id    clientv3.LeaseID // the etcd lease that it hangs on; 0: a reservation
}

// errConflict says that somebody else was quicker. The next try sees what they
// did.
var errConflict = errors.New("conflict")

// Acquire leases subnets to the node, or updates the record that it has. It
// writes nothing if the record is right already. It waits while etcd cannot be
// reached, until ctx ends; subnet.ErrNoSubnet is an error at once.
func (m *Manager) Acquire(ctx context.Context, want subnet.Request) (subnet.Lease, error) {
	if want.Node == "" {
		return subnet.Lease{}, errors.New("acquire: Node: missing, want the node id")
	}
	want.Want, want.VTEPs = slices.Clone(want.Want), slices.Clone(want.VTEPs)
	cfg, err := m.config(ctx)
	if err == nil {
		err = take(ctx, m.acquiring)
	}
	if err != nil {
		return subnet.Lease{}, err
	}
	defer func() { <-m.acquiring }()
	var l subnet.Lease
	err = m.outage.Retry(ctx, func(ctx context.Context) error {
		l, err = m.acquire(ctx, cfg, want)
		return err
	})
	if err != nil {
		m.dropSpare(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return l, ctx.Err()
	case err != nil:
		return l, fmt.Errorf("acquire for %s: %w", want.Node, err)
	}
	return l, nil
}

// acquireAgain makes one attempt to get the record back that etcd lost or
// somebody changed, for what the newest Acquire asked for. It returns what was
// held before and what is held now.
func (m *Manager) acquireAgain(ctx context.Context, cfg subnet.Config) (before, now subnet.Lease, err error) {
	if err := take(ctx, m.acquiring); err != nil {
		return subnet.Lease{}, subnet.Lease{}, err
	}
	defer func() { <-m.acquiring }()
	h := m.holding()
	now, err = m.acquire(ctx, cfg, h.want)
	return h.lease, now, err
}

func (m *Manager) holding() holding {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

func (m *Manager) setHolding(h holding) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = h
}

// setExpiry enters a renewal of an etcd lease, and returns the lease held.
func (m *Manager) setExpiry(id clientv3.LeaseID, at time.Time) subnet.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held.id == id {
		m.held.lease.Expiry = at
	}
	return m.held.lease
}

// acquire tries until nobody interferes. The caller has the acquiring token.
func (m *Manager) acquire(ctx context.Context, cfg subnet.Config, want subnet.Request) (subnet.Lease, error) {
	h, err := m.tryAcquire(ctx, cfg, want)
	for n := 0; errors.Is(err, errConflict); n++ {
		if !outage.Sleep(ctx, rand.N(5*time.Millisecond<<min(n, 5))) {
			return subnet.Lease{}, ctx.Err()
		}
		h, err = m.tryAcquire(ctx, cfg, want)
	}
	if err != nil {
		return subnet.Lease{}, err
	}
	before := m.holding().id
	m.setHolding(h)
	if m.spare == h.id {
		m.spare = 0
	}
	m.dropSpare(ctx)
	if before != 0 && before != h.id {
		m.revoke(ctx, before)
	}
	return h.lease, nil
}

// dropSpare revokes the etcd lease that was granted for nothing, if any, even
// if ctx has ended.
func (m *Manager) dropSpare(ctx context.Context) {
	if m.spare == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	m.revoke(ctx, m.spare)
	m.spare = 0
}

// stored is a record as read, with its value.
type stored struct {
	entry
	value []byte
}

// tryAcquire makes one attempt on what etcd holds now.
func (m *Manager) tryAcquire(ctx context.Context, cfg subnet.Config, want subnet.Request) (holding, error) {
	resp, err := m.list(ctx, m.subnetsPrefix())
	if err != nil {
		return holding{}, err
	}
	records, own := m.read(resp.Kvs, want.Node)
	lease := subnet.Lease{Node: want.Node, VTEPs: want.VTEPs, Backend: cfg.Backend.Type, MTU: want.MTU}
	if _, err := subnet.EncodeRecord(lease); err != nil {
		return holding{}, err // the request makes no sense
	}
	a := attempt{m: m, cfg: cfg, want: want, lease: lease, own: own}
	// What the node has, or had last, comes before what it asks for.
	prefer := want.Want
	if h := m.holding(); h.want.Node == want.Node {
		prefer = slices.Concat(h.lease.Subnets, prefer)
	}
	for _, s := range slices.Concat(own, m.inherited(resp.Kvs, records, want, prefer)) {
		if a.usable(s, records) {
			return a.keep(ctx, s)
		}
	}
	for _, s := range own {
		prefer = slices.Concat(s.record.Lease.Subnets, prefer)
	}
	a.lease.Subnets, err = subnet.Allocate(cfg, want.Node, prefer, subnet.Taken(cfg, want.Node, records))
	if err != nil {
		return holding{}, err
	}
	if err := cfg.Check(a.lease); err != nil {
		return holding{}, err
	}
	return a.create(ctx)
}

// read decodes all records, and picks the node's own, oldest first. A record of
// flannel's names no node; one that bears this node's address could be taken
// over here.
func (m *Manager) read(kvs []*mvccpb.KeyValue, node string) (records []subnet.Record, own []stored) {
	for _, kv := range kvs {
		e := newEntry(m.subnetsPrefix(), kv)
		records = append(records, e.record)
		if e.record.Err == nil && e.record.Lease.Node == node {
			own = append(own, stored{e, kv.Value})
		}
	}
	slices.SortFunc(own, func(a, b stored) int {
		return cmp.Compare(a.record.Lease.Created, b.record.Lease.Created)
	})
	return records, own
}

// inherited picks the leases that flannel took on this node, the best first.
func (m *Manager) inherited(kvs []*mvccpb.KeyValue, records []subnet.Record, want subnet.Request, prefer []netip.Prefix) (list []stored) {
	want.Want = prefer
	for _, r := range want.Inheritance(records) {
		kv := kvs[slices.IndexFunc(records, func(at subnet.Record) bool { return at.Key == r.Key })]
		list = append(list, stored{newEntry(m.subnetsPrefix(), kv), kv.Value})
	}
	return list
}

// An attempt is what tryAcquire's parts share.
type attempt struct {
	m     *Manager
	cfg   subnet.Config
	want  subnet.Request
	lease subnet.Lease // to be; Subnets are known only to create
	own   []stored     // the node's records, oldest first; hardly ever more than one
}

// usable says whether the node may go on with the subnets of a record of its
// own: they fit the network, and nobody held a part of them before.
func (a attempt) usable(own stored, records []subnet.Record) bool {
	l := a.lease
	l.Subnets = own.record.Lease.Subnets
	if len(l.Subnets) != len(a.cfg.Ranges) || a.cfg.Check(l) != nil {
		return false
	}
	for _, r := range records {
		if r.Err == nil && r.Lease.Node != a.want.Node && r.Lease.Created < own.record.Lease.Created &&
			overlap(r.Lease.Subnets, l.Subnets) && a.cfg.Check(r.Lease) == nil {
			return false
		}
	}
	return true
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool { return slices.ContainsFunc(b, x.Overlaps) })
}

// keep goes on with a record of the node's own, or with one of flannel's. If it
// is right and its etcd lease lives, nothing is written. A reservation stays
// one. Flannel's record moves to an etcd lease of ours: its own ends in 24 hours
// at the latest, and is not revoked, for what else hangs on it is not known.
func (a attempt) keep(ctx context.Context, own stored) (holding, error) {
	flannels, last := own.record.Lease.Node == "", own.lease
	if flannels {
		last = a.m.holding().id
	}
	h := holding{want: a.want, key: own.record.Key, lease: a.lease}
	h.lease.Subnets = own.record.Lease.Subnets
	h.lease.Created, h.lease.Revision = own.record.Lease.Created, own.record.Lease.Revision
	h.lease.Since = own.record.Lease.Since
	h.lease.Reserved = own.lease == 0
	if !h.lease.Reserved {
		var err error
		if h.id, err = a.m.liveLease(ctx, last); err != nil {
			return holding{}, err
		}
		h.lease.Expiry = expiry(a.m.ttl)
	}
	value, err := subnet.EncodeRecord(h.lease)
	if err != nil {
		return holding{}, err
	}
	if h.id == own.lease && bytes.Equal(own.value, value) {
		return h, nil
	}
	key := a.m.subnetsPrefix() + h.key
	when := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", own.record.Lease.Revision)}
	resp, err := a.m.write(ctx, when, clientv3.OpPut(key, string(value), clientv3.WithLease(h.id)))
	if err != nil {
		return holding{}, err
	}
	h.lease.Revision = resp.Header.Revision
	switch {
	case flannels:
		a.m.opts.Log.Info("flannel's lease of this node taken over", "key", h.key, "subnets", h.lease.Subnets)
	case own.lease != 0 && own.lease != h.id:
		a.m.revoke(ctx, own.lease)
	}
	return h, nil
}

// create writes a record for subnets that were free, and deletes what the node
// has elsewhere. The same transaction reads all keys: one under another name
// may cover a part of the subnets, and then the older one stays.
func (a attempt) create(ctx context.Context) (holding, error) {
	h := holding{want: a.want, key: subnet.Key(a.lease.Subnets), lease: a.lease}
	h.lease.Since = time.Now().Truncate(time.Second)
	before := a.m.holding()
	if slices.Equal(before.lease.Subnets, h.lease.Subnets) && before.want.Node == a.want.Node {
		h.lease.Since = before.lease.Since // etcd lost the record, not the node its subnets
	}
	value, err := subnet.EncodeRecord(h.lease)
	if err != nil {
		return holding{}, err
	}
	last := before.id
	for _, s := range a.own {
		last = cmp.Or(s.lease, last)
	}
	if h.id, err = a.m.liveLease(ctx, last); err != nil {
		return holding{}, err
	}
	prefix := a.m.subnetsPrefix()
	key := prefix + h.key
	when := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	then := []clientv3.Op{clientv3.OpGet(prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())}
	mine := map[string]bool{key: true}
	for _, s := range a.own {
		old := prefix + s.record.Key
		mine[old] = true
		when = append(when, clientv3.Compare(clientv3.ModRevision(old), "=", s.record.Lease.Revision))
		then = append(then, clientv3.OpDelete(old))
	}
	then = append(then, clientv3.OpPut(key, string(value), clientv3.WithLease(h.id)))
	resp, err := a.m.write(ctx, when, then...)
	if err != nil {
		return holding{}, err
	}
	h.lease.Revision, h.lease.Created = resp.Header.Revision, resp.Header.Revision
	h.lease.Expiry = expiry(a.m.ttl)

	var others []subnet.Record
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		if !mine[string(kv.Key)] {
			others = append(others, newEntry(prefix, kv).record)
		}
	}
	if overlap(a.lease.Subnets, subnet.Taken(a.cfg, a.want.Node, others)) {
		when := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", h.lease.Revision)}
		if _, err := a.m.write(ctx, when, clientv3.OpDelete(key)); err != nil {
			return holding{}, err
		}
		return holding{}, errConflict
	}
	return h, nil
}

// write is a transaction that fails with errConflict if the records are not as
// they were seen, or if the etcd lease has just ended.
func (m *Manager) write(ctx context.Context, when []clientv3.Cmp, then ...clientv3.Op) (*clientv3.TxnResponse, error) {
	resp, err := m.txn(ctx, when, then...)
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		m.spare = 0
		return nil, errConflict
	case err != nil:
		return nil, err
	case !resp.Succeeded:
		return nil, errConflict
	}
	return resp, nil
}

// liveLease renews an etcd lease. If it is no more (or 0), or lasts another
// time than it should, one is granted. So a restart costs no new one.
func (m *Manager) liveLease(ctx context.Context, id clientv3.LeaseID) (clientv3.LeaseID, error) {
	for _, id := range []clientv3.LeaseID{id, m.spare} {
		if id == 0 {
			continue
		}
		ttl, err := m.renew(ctx, id)
		if err != nil {
			return 0, err
		}
		if ttl == m.ttl {
			return id, nil
		}
	}
	id, ttl, err := m.grant(ctx)
	if err != nil {
		return 0, err
	}
	m.spare, m.ttl = id, ttl
	return id, nil
}

// expiry is when an etcd lease that was renewed just now ends.
func expiry(ttl int64) time.Time { return time.Now().Add(time.Duration(ttl) * time.Second) }
