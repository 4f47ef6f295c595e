package subnet

import (
	"errors"
	"fmt"
	"net/netip"
)

// Check says whether a foreign lease may reach the kernel. The error names
// field, value and what was expected.
func (c Config) Check(l Lease) error {
	if err := c.checkSubnets(l.Subnets); err != nil {
		return err
	}
	if l.Backend != c.Backend.Type {
		return fmt.Errorf("BackendType %s: want %q, as in the network configuration", quote(l.Backend), c.Backend.Type)
	}
	if err := checkVTEPs(l.VTEPs, l.Backend == TypeHostGW); err != nil {
		return err
	}
	for _, v := range l.VTEPs {
		if v.VNI != c.Backend.VNI {
			return fmt.Errorf("VNI %d: want %d, as in the network configuration", v.VNI, c.Backend.VNI)
		}
		for _, r := range c.Ranges {
			if r.Network.Contains(v.Underlay) {
				return fmt.Errorf("underlay address %s: is inside the pod network %s, want an address outside it", v.Underlay, r.Network)
			}
		}
	}
	return nil
}

// checkSubnets wants one subnet per family at most, and at least one, each
// inside the pod network of its family.
func (c Config) checkSubnets(subnets []netip.Prefix) error {
	if len(subnets) == 0 {
		return errors.New("subnets: none, want at least one")
	}
	seen := map[bool]netip.Prefix{}
	for _, s := range subnets {
		is4 := s.Addr().Is4()
		network, ok := c.network(is4)
		switch before, dup := seen[is4]; {
		case !s.IsValid():
			return errors.New("subnet: not a network at all")
		case !ok:
			return fmt.Errorf("subnet %s: its address family is not enabled, want one in %s", s, c.networks())
		case dup:
			return fmt.Errorf("subnet %s: one of this family is %s already, want one per family", s, before)
		case s != s.Masked():
			return fmt.Errorf("subnet %s: has host bits set, want %s", s, s.Masked())
		case s.Bits() < network.Bits() || !network.Contains(s.Addr()):
			return fmt.Errorf("subnet %s: want one inside %s", s, network)
		}
		seen[is4] = s
	}
	return nil
}

// networks lists the pod networks, IPv4 first.
func (c Config) networks() []netip.Prefix {
	list := make([]netip.Prefix, len(c.Ranges))
	for i, r := range c.Ranges {
		list[i] = r.Network
	}
	return list
}

// checkVTEPs wants one endpoint per family at most, and at least one, IPv4 first,
// each with addresses that a packet can be sent to. Of a gateway there is one
// address alone.
func checkVTEPs(vteps []VTEP, gateway bool) error {
	if len(vteps) == 0 {
		return errors.New("VTEPs: none, want at least one")
	}
	for i, v := range vteps {
		if i > 0 && (i > 1 || vteps[0].Underlay.Is4() == v.Underlay.Is4()) {
			return fmt.Errorf("VTEP %s: want one per address family", v.Underlay)
		}
		if i > 0 && v.Underlay.Is4() {
			return fmt.Errorf("VTEP %s: is after %s, want IPv4 first", v.Underlay, vteps[0].Underlay)
		}
		if err := checkUnderlay(v.Underlay); err != nil {
			return err
		}
		switch {
		case gateway && v == VTEP{Underlay: v.Underlay}:
		case gateway:
			return fmt.Errorf("VTEP %s: MAC %s and VNI %d, want neither with %q", v.Underlay, v.MAC, v.VNI, TypeHostGW)
		case v.MAC == MAC{}:
			return fmt.Errorf("VTEP MAC %s: all zero, want a unicast one", v.MAC)
		case v.MAC[0]&1 != 0:
			return fmt.Errorf("VTEP MAC %s: is a group address, want a unicast one", v.MAC)
		case v.VNI == 0 || v.VNI > maxVNI:
			return fmt.Errorf("VNI %d: want 1 to %d", v.VNI, maxVNI)
		}
	}
	return nil
}

// checkUnderlay wants an address that another node can send to. IPv4 link-local
// is one; IPv6 link-local is none without its zone, which no record has.
func checkUnderlay(a netip.Addr) error {
	reserved := netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4) // and broadcast: RFC 6890
	zero8 := netip.PrefixFrom(netip.IPv4Unspecified(), 8)          // "this network": RFC 6890
	bad := ""
	switch {
	case !a.IsValid():
		return errors.New("underlay address: missing, want a unicast address")
	case a.Is4In6():
		bad = "is IPv4 written as IPv6"
	case a.Zone() != "":
		bad = "has a zone"
	case a.IsUnspecified(), zero8.Contains(a):
		bad = "is unspecified"
	case a.IsLoopback():
		bad = "is loopback"
	case a.IsMulticast():
		bad = "is multicast"
	case reserved.Contains(a):
		bad = "is broadcast or reserved"
	case a.Is6() && a.IsLinkLocalUnicast():
		bad = "is link-local"
	default:
		return nil
	}
	return fmt.Errorf("underlay address %s: %s, want a unicast address that other nodes reach", a, bad)
}
