package vxlan

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// describe puts a notification into words if it is about something of ours,
// and returns "" if not.
func (s Scope) describe(n rtnl.Notification) string {
	switch n.Kind {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return s.describeNeighbour(n)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return s.describeRoute(n)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return s.describeLink(n)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return s.describeAddress(n)
	case unix.RTM_NEWNETCONF:
		return s.describeSettings(n)
	}
	return ""
}

// Attributes of a netconfmsg (linux/netconf.h).
const (
	sizeofNetconfMsg  = 4 // the family, padded
	netconfIfindex    = 1
	netconfForwarding = 2
)

// describeSettings tells when forwarding is switched off where our packets come
// in. Of a link that has just been made the kernel tells all settings at once:
// what they are is no news, for whoever makes the link sets them next.
func (s Scope) describeSettings(n rtnl.Notification) string {
	if len(n.Body) < sizeofNetconfMsg {
		return ""
	}
	index, off, others := 0, false, false
	rtnl.EachAttr(n.Body[sizeofNetconfMsg:], func(kind uint16, v []byte) {
		switch kind {
		case netconfIfindex:
			index = int(int32(u32(v)))
		case netconfForwarding:
			off = u32(v) == 0
		default:
			others = true
		}
	})
	if !off || others || index <= 0 || index != s.Index && index != s.Bridge {
		return ""
	}
	return fmt.Sprintf("set forwarding off on link %d", index)
}

func (s Scope) describeAddress(n rtnl.Notification) string {
	// The bridge's gateway address lies inside the networks, too.
	a, ok := parseAddress(n.Body)
	if !ok || a.index != s.Index && !s.inside(a.prefix) {
		return ""
	}
	if n.Kind == unix.RTM_NEWADDR && slices.Contains(s.Gateways, a.prefix) {
		return ""
	}
	wanted := slices.Contains(s.Device.Addrs, a.prefix)
	ours := a.index == s.Index || s.Index == 0
	if n.Port == 0 && ours && s.Device.Name != "" && wanted == (n.Kind == unix.RTM_NEWADDR) {
		return ""
	}
	return verb(n, unix.RTM_DELADDR) + "address " + a.prefix.String()
}

func (s Scope) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(s.Networks, func(n netip.Prefix) bool {
		return p.Bits() >= n.Bits() && n.Contains(p.Addr())
	})
}

func verb(n rtnl.Notification, del uint16) string {
	if n.Kind == del {
		return "deleted "
	}
	return "set "
}

func (s Scope) describeNeighbour(n rtnl.Notification) string {
	nb, ok := parseNeighbour(n.Body)
	if !ok || nb.index != s.Index {
		return ""
	}
	if nb.family == unix.AF_BRIDGE {
		return s.describeFDB(n, nb)
	}
	// The kernel's own bookkeeping: questions in flight (those are misses),
	// answers that age, multicast groups.
	if n.Port == 0 && nb.state&permanent == 0 {
		return ""
	}
	// The kernel deletes in two steps. The first one, to FAILED, names who
	// asked for it; the second does not.
	if n.Kind == unix.RTM_DELNEIGH || nb.state&unix.NUD_FAILED != 0 {
		return fmt.Sprintf("deleted neigh %s", nb.ip)
	}
	kept := ""
	if nb.state&permanent == 0 {
		kept = ", not permanent"
	}
	return fmt.Sprintf("set neigh %s lladdr %s%s", nb.ip, nb.macText(), kept)
}

func (s Scope) describeFDB(n rtnl.Notification, nb neighbour) string {
	if nb.flags&unix.NTF_SELF == 0 || len(nb.mac) != len(MAC{}) {
		return "" // a bridge's entry for the device as its port
	}
	dst, wanted := s.Want.FDB[MAC(nb.mac)]
	if n.Kind == unix.RTM_DELNEIGH {
		if s.Want.FDB != nil && (!wanted || dst != nb.ip || nb.other) {
			return ""
		}
		return fmt.Sprintf("deleted fdb %s", nb.macText())
	}
	if wanted && dst == nb.ip && !nb.other && nb.state&permanent != 0 {
		return ""
	}
	kept := ""
	switch {
	case nb.state&permanent == 0:
		kept = ", not permanent"
	case nb.other:
		kept = ", with a port, VNI or device of its own"
	}
	return fmt.Sprintf("set fdb %s dst %s%s", nb.macText(), nb.ip, kept)
}

func (s Scope) describeRoute(n rtnl.Notification) string {
	r, ok := parseRoute(n.Body)
	if !ok || r.table != unix.RT_TABLE_MAIN {
		return ""
	}
	// The kernel's own routes to the node's subnet come and go with the bridge.
	if !s.inside(r.dst) && r.protocol != Protocol || r.protocol == unix.RTPROT_KERNEL {
		return ""
	}
	return fmt.Sprintf("%sroute %s via %s dev %d proto %d", verb(n, unix.RTM_DELROUTE), r.dst, r.via, r.index, r.protocol)
}

func (s Scope) describeLink(n rtnl.Notification) string {
	l, ok := parseLink(n.Body)
	// What AF_BRIDGE tells of a link are its settings as a bridge's port; the
	// end of them is the port's leaving.
	if ok && n.Body[0] == unix.AF_BRIDGE && n.Kind == unix.RTM_DELLINK && l.master == s.Bridge && s.Bridge != 0 {
		return "deleted port " + l.name + " of the bridge"
	}
	if !ok || n.Body[0] == unix.AF_BRIDGE || l.Index != s.Index && !slices.Contains(s.Names, l.name) {
		return ""
	}
	// A device that has just been made is not up yet. Either we made it, or the
	// end of the one before it was news.
	if n.Kind == unix.RTM_NEWLINK && l.name == s.Device.Name && (l.fresh || l.fits(s.Device)) {
		return ""
	}
	state := "down"
	if l.Up {
		state = "up"
	}
	return fmt.Sprintf("%slink %s %s mtu %d address %s", verb(n, unix.RTM_DELLINK), l.name, state, l.MTU, l.MAC)
}
