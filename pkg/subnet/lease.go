package subnet

import (
	"net/netip"
	"time"
)

// A Lease is one node's hold on its subnets, as stored.
type Lease struct {
	Node    string         // stable node id, not its address; empty in records written by flannel
	Subnets []netip.Prefix // one per family, IPv4 first; masked
	VTEPs   []VTEP         // one per underlay family, IPv4 first; at least one
	Backend string         // how packets reach the node: TypeVXLAN or TypeHostGW
	MTU     int            // bytes a pod may send in one packet; 0 if the record does not say
	Since   time.Time      // when the node was first leased these subnets, to the second; zero if the record does not say

	Reserved bool      // held without end: the record hangs on no store lease
	Expiry   time.Time // when the store lets go of it; zero if Reserved or unknown
	Revision int64     // store revision of the last write, for compare-and-swap
	Created  int64     // store revision at which the record appeared; of two that overlap the older is right
}

// A VTEP is a VXLAN tunnel endpoint: where encapsulated packets go, and the
// Ethernet address that the inner frame bears. With TypeHostGW nothing is
// encapsulated: Underlay is the gateway, and the others are zero.
type VTEP struct {
	Underlay netip.Addr
	MAC      MAC
	VNI      uint32 // 24 bits
}

// Subnet returns the lease's subnet of the given family and whether it has one.
func (l Lease) Subnet(is4 bool) (netip.Prefix, bool) {
	for _, s := range l.Subnets {
		if s.Addr().Is4() == is4 {
			return s, true
		}
	}
	return netip.Prefix{}, false
}
