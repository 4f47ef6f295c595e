package vxlan

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// Protocol marks our routes: rtm_protocol, and IFA_PROTO of our addresses.
const Protocol = 77

const (
	permanent = unix.NUD_PERMANENT
	create    = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// request builds the message that carries out o on the device with this index.
func request(o Op, index int) *nl.NetlinkRequest {
	switch e := o.Entry.(type) {
	case FDB:
		return neighRequest(o.Del, netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF,
			State: permanent | unix.NUD_NOARP, HardwareAddr: e.MAC[:],
		}, e.Dst)
	case Neigh:
		return neighRequest(o.Del, netlink.Neigh{
			LinkIndex: index, Family: family(e.IP), State: permanent, HardwareAddr: e.MAC[:],
		}, e.IP)
	case Subnet:
		return routeRequest(o.Del, e, index)
	default:
		panic("vxlan: unknown entry " + o.String())
	}
}

func neighRequest(del bool, n netlink.Neigh, dst netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, create)
	if del {
		req = nl.NewNetlinkRequest(unix.RTM_DELNEIGH, 0)
	}
	req.AddData(&netlink.Ndmsg{
		Family: uint8(n.Family), Index: uint32(n.LinkIndex), State: uint16(n.State), Flags: uint8(n.Flags),
	})
	// Deleting an FDB entry names no destination: all that the MAC has go.
	if !del || n.Family != unix.AF_BRIDGE {
		req.AddData(nl.NewRtAttr(unix.NDA_DST, dst.AsSlice()))
	}
	// Deleting a neighbour names no MAC: whatever it holds by now goes.
	if !del || n.Family == unix.AF_BRIDGE {
		req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, n.HardwareAddr))
	}
	return req
}

func routeRequest(del bool, e Subnet, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, create)
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if del {
		req, scope = nl.NewNetlinkRequest(unix.RTM_DELROUTE, 0), unix.RT_SCOPE_NOWHERE
	}
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(e.Dst.Addr())), Dst_len: uint8(e.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: Protocol, Scope: scope, Type: unix.RTN_UNICAST,
	}}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, e.Dst.Addr().AsSlice()))
	if !e.Route.Direct { // of a direct route the kernel finds the link
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	if !del {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, e.Route.Via.AsSlice()))
	}
	if !del && !e.Route.Direct {
		msg.Flags = unix.RTNH_F_ONLINK
	}
	return req
}

// absent reports whether err says that what should be deleted is not there.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// A neighbour is one entry of an ARP, NDP or FDB table, as the kernel tells it.
type neighbour struct {
	family uint8 // AF_INET, AF_INET6, AF_BRIDGE
	index  int
	state  uint16
	flags  uint8
	ip     netip.Addr // NDA_DST
	mac    []byte     // NDA_LLADDR; aliases the message
	other  bool       // has a port, VNI or device of its own (FDB)
}

// macText is the MAC as ip writes it, empty if there is none.
func (n neighbour) macText() string { return net.HardwareAddr(n.mac).String() }

// parseNeighbour reads an ndmsg and its attributes.
func parseNeighbour(body []byte) (neighbour, bool) {
	if len(body) < unix.SizeofNdMsg {
		return neighbour{}, false
	}
	n := neighbour{
		family: body[0],
		index:  int(int32(binary.NativeEndian.Uint32(body[4:]))),
		state:  binary.NativeEndian.Uint16(body[8:]),
		flags:  body[10],
	}
	rtnl.EachAttr(body[unix.SizeofNdMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_DST:
			n.ip, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			n.mac = v
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX:
			n.other = true
		}
	})
	return n, true
}

// ParseMiss reads the body of an RTM_GETNEIGH that the kernel multicasts when
// it lacks an entry. It reports false for anything that names neither an address
// nor a unicast MAC: with l2miss every multicast frame of the device is
// announced, too.
func ParseMiss(body []byte) (m Miss, ok bool) {
	n, ok := parseNeighbour(body)
	switch {
	case !ok:
		return Miss{}, false
	case n.ip.IsValid() && !n.ip.IsMulticast() && !n.ip.IsUnspecified():
		return Miss{Device: n.index, IP: n.ip.Unmap()}, true
	case !n.ip.IsValid() && len(n.mac) == len(MAC{}) && n.mac[0]&1 == 0:
		return Miss{Device: n.index, MAC: MAC(n.mac)}, true
	}
	return Miss{}, false
}

// A route is one entry of the main table, as the kernel tells it.
type route struct {
	dst      netip.Prefix
	via      netip.Addr
	index    int
	protocol uint8
	metric   uint32
	flags    uint32
	table    uint32
	tos      uint8
	kind     uint8 // RTN_UNICAST and the like
}

// parseRoute reads an rtmsg and its attributes.
func parseRoute(body []byte) (route, bool) {
	if len(body) < unix.SizeofRtMsg {
		return route{}, false
	}
	r := route{
		tos: body[3], table: uint32(body[4]), protocol: body[5], kind: body[7],
		flags: binary.NativeEndian.Uint32(body[8:]),
	}
	dst := netip.IPv4Unspecified()
	if body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	ok := body[0] == unix.AF_INET || body[0] == unix.AF_INET6
	u32 := func(v []byte) uint32 {
		if len(v) != 4 {
			ok = false
			return 0
		}
		return binary.NativeEndian.Uint32(v)
	}
	rtnl.EachAttr(body[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			if a, good := netip.AddrFromSlice(v); good {
				dst = a
			}
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.index = int(u32(v))
		case unix.RTA_PRIORITY:
			r.metric = u32(v)
		case unix.RTA_TABLE:
			r.table = u32(v)
		}
	})
	r.dst = netip.PrefixFrom(dst, int(body[1]))
	return r, ok && r.dst.IsValid()
}
