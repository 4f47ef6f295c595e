package node

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

// sameState says whether two wanted states ask for the same.
func sameState(a, b vxlan.State) bool {
	return maps.Equal(a.FDB, b.FDB) && maps.Equal(a.Neighs, b.Neighs) && maps.Equal(a.Routes, b.Routes)
}

// A retention keeps peers for a time after their lease vanished, so that an
// emptied store stops no traffic.
type retention struct {
	grace time.Duration
	last  []subnet.Lease             // what the previous call returned
	until map[netip.Prefix]time.Time // first subnet → end, of those without a lease
}

// update returns the leases to keep in the kernel: the current ones, and those
// that vanished less than the grace time ago. One that vanished gives way at
// once to a current lease, the node's own included, of an overlapping subnet,
// of the same node or with the same tunnel endpoint.
func (r *retention) update(own subnet.Lease, current []subnet.Lease, now time.Time) []subnet.Lease {
	keep := slices.Clone(current)
	until := map[netip.Prefix]time.Time{}
	all := append(slices.Clone(current), own)
	present := map[netip.Prefix]bool{}
	for _, l := range all {
		for _, s := range l.Subnets {
			present[s] = true
		}
	}
	for _, old := range r.last {
		// The exact look-up spares nearly all leases the long comparison.
		if present[old.Subnets[0]] || slices.ContainsFunc(all, func(l subnet.Lease) bool { return succeeds(l, old) }) {
			continue
		}
		end, waiting := r.until[old.Subnets[0]]
		if !waiting {
			end = now.Add(r.grace)
		}
		if now.Before(end) {
			until[old.Subnets[0]] = end
			keep = append(keep, old)
		}
	}
	r.last, r.until = keep, until
	return keep
}

// next returns when the first retained lease ends, and whether there is one.
func (r *retention) next() (end time.Time, ok bool) {
	for _, t := range r.until {
		if !ok || t.Before(end) {
			end, ok = t, true
		}
	}
	return end, ok
}

func succeeds(l, old subnet.Lease) bool {
	if l.Node != "" && l.Node == old.Node {
		return true
	}
	for _, a := range l.Subnets {
		if slices.ContainsFunc(old.Subnets, a.Overlaps) {
			return true
		}
	}
	for _, a := range l.VTEPs {
		for _, b := range old.VTEPs {
			if a.MAC == b.MAC && a.MAC != (subnet.MAC{}) || a.Underlay == b.Underlay { // a gateway has no MAC
				return true
			}
		}
	}
	return false
}
