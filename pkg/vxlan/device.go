package vxlan

import (
	"fmt"
	"net/netip"
)

// Config is what a VXLAN device should be. Without a Name there is none, and
// peers are reached by plain routes alone.
type Config struct {
	Name  string // link name, 1–15 bytes; empty: no device
	VNI   uint32 // 24 bits
	Port  uint16 // UDP destination port
	MAC   MAC
	Local netip.Addr     // the node's underlay address, source of encapsulated packets
	MTU   int            // bytes
	Addrs []netip.Prefix // the node's own addresses inside the overlay, host prefixes

	// Networks are the cluster's pod networks. An address inside them that is
	// not in Addrs is removed from the device, whoever put it there: a peer's
	// gateway as an address of our own would make its route impossible.
	Networks []netip.Prefix

	// Alone says that no other Device serves this node: plain routes of ours are
	// this one's to keep, of whichever family. Else those of Local's family are.
	Alone bool
}

// Link is a VXLAN device as the kernel holds it.
type Link struct {
	Index int
	Up    bool
	MTU   int
	MAC   MAC
}

// Overhead is what encapsulation adds to a packet: an outer IP header, UDP (8
// bytes), VXLAN (8) and an inner Ethernet header (14). RFC 7348, section 5.
func Overhead(underlay4 bool) int {
	if underlay4 {
		return 50
	}
	return 70
}

// alias is the mark of our device.
const alias = "vxlan-cni overlay"

func (c Config) check() error {
	switch {
	case len(c.Name) > 15:
		return fmt.Errorf("device name %q: want 1 to 15 bytes", c.Name)
	case !c.Local.IsValid() || c.Local.Is4In6() || c.Local.IsUnspecified() || c.Local.IsMulticast():
		return fmt.Errorf("local address %s: want the node's own on the underlay", c.Local)
	case c.Name == "":
		return nil
	case c.VNI == 0 || c.VNI >= 1<<24:
		return fmt.Errorf("VNI %d: want 1 to 16777215", c.VNI)
	case c.Port == 0:
		return fmt.Errorf("port 0: want 1 to 65535")
	case c.MAC == MAC{} || c.MAC[0]&1 != 0:
		return fmt.Errorf("MAC %s: want a unicast address", c.MAC)
	case c.MTU < 0:
		return fmt.Errorf("MTU %d: want 0 (the kernel's choice) or more", c.MTU)
	}
	for _, a := range c.Addrs {
		if !a.IsValid() || a.Addr().Is4In6() {
			return fmt.Errorf("address %s: want an IPv4 or IPv6 address with its length", a)
		}
	}
	return nil
}
