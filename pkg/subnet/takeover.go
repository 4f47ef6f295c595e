package subnet

import (
	"cmp"
	"net/netip"
	"slices"
)

// Inherits says whether l is a lease that flannel took on this node: it names
// no node, and one of its endpoints has an underlay address of ours, which is
// what flannel knows its own lease by. Such a lease becomes ours, with its
// subnets: the pods that flannel started have addresses of them.
func (r Request) Inherits(l Lease) bool {
	return r.Node != "" && l.Node == "" && slices.ContainsFunc(l.VTEPs, func(v VTEP) bool {
		return slices.ContainsFunc(r.VTEPs, func(own VTEP) bool { return own.Underlay == v.Underlay })
	})
}

// Inheritance returns, of the leases that flannel took on this node, the best
// first: with a subnet that the node asks for, for there its pods are, then in
// the order of keys, of which flannel takes the first. More than one is what
// flannel leaves behind after it lost one. A node that has a record of its own
// inherits nothing.
func (r Request) Inheritance(records []Record) []Record {
	var found []Record
	for _, rec := range records {
		switch {
		case rec.Err != nil:
		case rec.of(r.Node):
			return nil
		case r.Inherits(rec.Lease):
			found = append(found, rec)
		}
	}
	asked := func(rec Record) int {
		if slices.ContainsFunc(rec.Lease.Subnets, func(s netip.Prefix) bool { return slices.Contains(r.Want, s) }) {
			return 0
		}
		return 1
	}
	slices.SortFunc(found, func(a, b Record) int { return cmp.Or(asked(a)-asked(b), cmp.Compare(a.Key, b.Key)) })
	return found
}
