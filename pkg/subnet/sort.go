package subnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Sort splits stored records into the node's own lease, peers and what is not
// believed. Reasons name the record that they conflict with.
//
// Own is the record of the given node, of several the oldest. It beats
// everybody: a record that overlaps it, or bears its MAC or underlay address,
// is ignored. Among the others the older (Created) wins, for the younger should
// have seen it. Snapshot.Revision is for the caller to set. Time is n log n: 10,000
// records take some tens of milliseconds.
func Sort(cfg Config, node string, records []Record) Snapshot {
	byAge := make([]*Record, len(records)) // pointers, for records are large
	for i := range records {
		byAge[i] = &records[i]
	}
	slices.SortFunc(byAge, func(a, b *Record) int {
		if c := cmp.Compare(a.Lease.Created, b.Lease.Created); c != 0 {
			return c
		}
		return cmp.Compare(a.Key, b.Key)
	})
	var snap Snapshot
	ignore := func(key string, err error, conflict bool) {
		snap.Ignored = append(snap.Ignored, Ignored{Key: key, Reason: err.Error(), Conflict: conflict})
	}

	var own *Record
	others := make([]*Record, 0, len(records))
	for _, r := range byAge {
		switch err := believable(cfg, node, r); {
		case err != nil:
			ignore(r.Key, err, false)
		case !r.of(node):
			others = append(others, r)
		case own == nil:
			own = r
		default:
			ignore(r.Key, fmt.Errorf("node %s: has the older lease %s already, want one", node, own.Key), true)
		}
	}

	held := newClaims(byAge)
	if own != nil {
		snap.Own = own.Lease
		who := "this node's lease " + own.Key
		held.add(own, who)
		for _, v := range own.Lease.VTEPs {
			held.underlay[v.Underlay] = who
		}
	}
	peers := others[:0]
	for _, r := range others {
		if err := held.conflict(&r.Lease); err != nil {
			ignore(r.Key, err, true)
			continue
		}
		held.add(r, "the older lease "+r.Key)
		peers = append(peers, r)
	}
	slices.SortFunc(peers, func(a, b *Record) int { return a.Lease.Subnets[0].Compare(b.Lease.Subnets[0]) })
	if len(peers) > 0 {
		snap.Peers = make([]Lease, len(peers))
	}
	for i, r := range peers {
		snap.Peers[i] = r.Lease
	}
	slices.SortFunc(snap.Ignored, func(a, b Ignored) int { return cmp.Compare(a.Key, b.Key) })
	return snap
}

// of says whether a record is the node's own.
func (r *Record) of(node string) bool { return node != "" && r.Lease.Node == node }

// believable checks a record by itself. The node's own need only fit the
// network: its endpoints may be out of date, and are about to be written anew.
func believable(cfg Config, node string, r *Record) error {
	switch {
	case r.Err != nil:
		return r.Err
	case r.of(node):
		return cfg.checkSubnets(r.Lease.Subnets)
	}
	return cfg.Check(r.Lease)
}

// claims is who holds what.
type claims struct {
	parent   map[netip.Prefix]netip.Prefix // the next shorter subnet that a record names
	holder   map[netip.Prefix]string       // who holds exactly this
	within   map[netip.Prefix]string       // who holds a part of it
	mac      map[MAC]string
	underlay map[netip.Addr]string // this node's only: others may share one
}

// newClaims knows the subnets of all records, none of them held. Two prefixes
// overlap only if one contains the other, and in sorted order the one that
// contains comes first; so a stack finds each one's parent.
func newClaims(records []*Record) *claims {
	c := &claims{
		parent:   map[netip.Prefix]netip.Prefix{},
		holder:   make(map[netip.Prefix]string, len(records)),
		within:   map[netip.Prefix]string{},
		mac:      make(map[MAC]string, len(records)),
		underlay: map[netip.Addr]string{},
	}
	all := make([]netip.Prefix, 0, len(records))
	for _, r := range records {
		all = append(all, r.Lease.Subnets...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	var stack []netip.Prefix
	for _, p := range slices.Compact(all) {
		for len(stack) > 0 && !stack[len(stack)-1].Overlaps(p) {
			stack = stack[:len(stack)-1]
		}
		if len(stack) > 0 {
			c.parent[p] = stack[len(stack)-1]
		}
		stack = append(stack, p)
	}
	return c
}

// add enters what a record holds. Of several that hold a part of the same
// subnet the first is named: that is this node, if it is one of them.
func (c *claims) add(r *Record, who string) {
	for _, s := range r.Lease.Subnets {
		c.holder[s] = who
		for p, ok := c.parent[s]; ok; p, ok = c.parent[p] {
			if _, named := c.within[p]; !named {
				c.within[p] = who
			}
		}
	}
	for _, v := range r.Lease.VTEPs {
		if v.MAC != (MAC{}) { // a gateway has none
			c.mac[v.MAC] = who
		}
	}
}

// conflict says what of a lease somebody else holds.
func (c *claims) conflict(l *Lease) error {
	for _, s := range l.Subnets {
		if who, taken := c.overlap(s); taken {
			return fmt.Errorf("subnet %s: overlaps %s", s, who)
		}
	}
	for _, v := range l.VTEPs {
		if who, taken := c.underlay[v.Underlay]; taken {
			return fmt.Errorf("underlay address %s: is that of %s", v.Underlay, who)
		}
		if who, taken := c.mac[v.MAC]; taken {
			return fmt.Errorf("VTEP MAC %s: is that of %s", v.MAC, who)
		}
	}
	return nil
}

// overlap returns who holds a part of s, or all of it, or more.
func (c *claims) overlap(s netip.Prefix) (who string, taken bool) {
	if who, taken = c.within[s]; taken {
		return who, taken
	}
	for p, ok := s, true; ok; p, ok = c.parent[p] {
		if who, taken = c.holder[p]; taken {
			return who, taken
		}
	}
	return "", false
}

// Taken returns the subnets in records that the node must not be given: all
// that are inside the pod networks and not its own. Records that Sort ignores
// count too, for their owner may use the subnet, or it may be a reservation;
// but not one for a whole network, which nobody can hold.
func Taken(cfg Config, node string, records []Record) []netip.Prefix {
	var taken []netip.Prefix
	for i := range records {
		r := &records[i]
		if r.Err == nil && r.of(node) {
			continue
		}
		for _, s := range r.Lease.Subnets {
			if n, ok := cfg.network(s.Addr().Is4()); ok && s.Bits() > n.Bits() && n.Contains(s.Addr()) {
				taken = append(taken, s.Masked())
			}
		}
	}
	return taken
}
