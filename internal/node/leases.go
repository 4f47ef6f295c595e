package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A Releaser is a Manager that can end another node's lease, if it is at the
// given revision of the store; 0 is any.
type Releaser interface {
	Release(ctx context.Context, node string, revision int64) error
}

// An Expirer is a Manager that can ask its store when each lease ends, by the
// lease's first subnet.
type Expirer interface {
	Expiries(ctx context.Context) (map[netip.Prefix]time.Time, error)
}

const (
	// storeWithin bounds an answer for which the store is asked.
	storeWithin = 10 * time.Second

	// A node that runs takes a lease that it lost again within moments. It is
	// watched for so long.
	takenBackWithin = 2 * time.Second
	takenBackPoll   = 20 * time.Millisecond
)

// refused is a request that cannot be carried out as things are.
type refused struct{ text string }

func (r *refused) Error() string { return r.text }

func (n *node) answerLeases(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("expiry") == "1" {
		answerIn(storeWithin, n.leasesWithExpiry)(w, r)
		return
	}
	answer(n.leases)(w, r)
}

// leases are the records that are believed, by subnet, and then those that are
// not, by key.
func (n *node) leases(ctx context.Context) (views []api.Lease, err error) {
	var ignored []subnet.Ignored
	ok := n.do(ctx, func(l *loop) {
		views = []api.Lease{}
		if len(l.snapshot.Own.Subnets) > 0 {
			views = append(views, leaseView(l.snapshot.Own, true))
		}
		for _, p := range l.snapshot.Peers {
			views = append(views, leaseView(p, false))
		}
		ignored = l.snapshot.Ignored
	})
	if !ok {
		return nil, errBusy
	}
	slices.SortFunc(views, func(a, b api.Lease) int { return a.Subnets[0].Compare(b.Subnets[0]) })
	for _, i := range ignored {
		subnets, _ := subnet.ParseKey(i.Key) // the reason says so if there are none
		views = append(views, api.Lease{Subnets: subnets, VTEPs: []api.VTEP{}, Key: i.Key, Ignored: i.Reason, Conflict: i.Conflict})
	}
	return views, nil
}

func leaseView(l subnet.Lease, own bool) api.Lease {
	v := api.Lease{
		Node: nodeName(l), Subnets: l.Subnets, VTEPs: []api.VTEP{}, MTU: l.MTU, Own: own,
		Reserved: l.Reserved, Since: l.Since, Expiry: l.Expiry, Revision: l.Revision,
	}
	for _, t := range l.VTEPs {
		end := api.VTEP{Underlay: t.Underlay, VNI: t.VNI}
		if t.MAC != (subnet.MAC{}) { // a gateway has none
			end.MAC = t.MAC.String()
		}
		v.VTEPs = append(v.VTEPs, end)
	}
	return v
}

// leasesWithExpiry asks the store, if it is one where leases end.
func (n *node) leasesWithExpiry(ctx context.Context) ([]api.Lease, error) {
	views, err := n.leases(ctx)
	e, ok := n.manager.(Expirer)
	if err != nil || !ok {
		return views, err
	}
	ends, err := e.Expiries(ctx)
	if err != nil {
		return nil, err
	}
	for i, v := range views {
		if end, ok := ends[firstOf(v.Subnets)]; ok && v.Ignored == "" && !v.Own { // of its own the node knows better
			views[i].Expiry = end
		}
	}
	return views, nil
}

func firstOf(subnets []netip.Prefix) netip.Prefix {
	if len(subnets) == 0 {
		return netip.Prefix{}
	}
	return subnets[0]
}

func (n *node) answerRelease(w http.ResponseWriter, r *http.Request) {
	var want api.Release
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&want); err != nil || want.Node == "" {
		http.Error(w, `want {"node":"…","revision":…}`, http.StatusBadRequest)
		return
	}
	answerIn(storeWithin, func(ctx context.Context) (api.Released, error) { return n.release(ctx, want) })(w, r)
}

// release ends another node's lease, and watches whether that node takes it
// again: the store does not know which daemons run, so that is how it shows.
func (n *node) release(ctx context.Context, want api.Release) (api.Released, error) {
	r, ok := n.manager.(Releaser)
	switch {
	case !ok:
		return api.Released{}, &refused{fmt.Sprintf("leases cannot be released in a store of kind %q", n.cfg.Store)}
	case want.Node == n.cfg.Node:
		return api.Released{}, &refused{want.Node + " is this node, and its overlayd runs: it would take its lease again; stop it, and release the lease from another node"}
	}
	before, err := n.newest(ctx, want.Node)
	if err != nil {
		return api.Released{}, err
	}
	err = r.Release(ctx, want.Node, want.Revision)
	if errors.Is(err, subnet.ErrNoLease) || errors.Is(err, subnet.ErrChanged) || errors.Is(err, subnet.ErrReserved) {
		return api.Released{}, &refused{err.Error()}
	}
	if err != nil {
		return api.Released{}, err
	}
	n.log.Info("lease released", "node", want.Node, "revision", want.Revision)
	n.journal.event("lease", "released the lease of "+want.Node+", as asked")
	return api.Released{TakenBack: n.takenBack(ctx, want.Node, max(before, want.Revision))}, nil
}

// takenBack watches for a lease of a node that is newer than a revision.
func (n *node) takenBack(ctx context.Context, node string, revision int64) bool {
	ctx, cancel := context.WithTimeout(ctx, takenBackWithin)
	defer cancel()
	poll := time.NewTicker(takenBackPoll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
		if now, err := n.newest(ctx, node); err == nil && now > revision {
			return true
		}
	}
}

// newest is the revision of a node's lease, 0 if it has none.
func (n *node) newest(ctx context.Context, node string) (revision int64, err error) {
	ok := n.do(ctx, func(l *loop) {
		for _, p := range l.snapshot.Peers {
			if nodeName(p) == node {
				revision = max(revision, p.Revision)
			}
		}
	})
	if !ok {
		return 0, errBusy
	}
	return revision, nil
}
