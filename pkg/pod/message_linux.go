package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// ifaProto is IFA_PROTO (linux/if_addr.h, kernel 5.18 and later; older ones
// ignore it): who made an address. addressProto is ours, the same number that
// our routes have.
const (
	ifaProto     = 11
	addressProto = 77
)

// A step is one change, with the words for it and the refusals that mean that
// it is done already.
type step struct {
	what string
	req  *nl.NetlinkRequest
	fine []error
}

// run carries out all steps in one batch and returns the failures, joined.
func run(c *rtnl.Conn, steps []step) error {
	reqs := make([]*nl.NetlinkRequest, len(steps))
	for i, s := range steps {
		reqs[i] = s.req
	}
	var failures []error
	for i, err := range c.Batch(reqs) {
		if err == nil || isAny(err, steps[i].fine) {
			continue
		}
		failures = append(failures, fmt.Errorf("%s: %w", steps[i].what, err))
	}
	return errors.Join(failures...)
}

func isAny(err error, targets []error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// newLink begins a message about the link with that index; 0 where a name
// follows.
func newLink(kind, flags, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// linkUp sets a link up.
func linkUp(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	return req
}

// portMode is how a bridge port is. Hairpin lets it send a frame back where it came
// from: a pod that reaches itself through a Service. A guarded port treats frames
// to the group of LLDP (01:80:c2:00:00:0e) like others: the kernel would hand them
// to the node behind netfilter's back, whatever is in them.
func portMode(hairpin, guarded bool) *nl.RtAttr {
	mode, groups := uint8(0), uint16(0)
	if hairpin {
		mode = hairpinOn
	}
	if guarded {
		groups = forwardLLDP
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	data.AddRtAttr(nl.IFLA_BRPORT_MODE, nl.Uint8Attr(mode))
	data.AddRtAttr(brportGroupFwdMask, nl.Uint16Attr(groups))
	return info
}

// noLinkLocal keeps the kernel from making an IPv6 link-local address.
func noLinkLocal(families *nl.RtAttr) {
	v6 := families.AddRtAttr(unix.AF_INET6, nil)
	v6.AddRtAttr(inet6AddrGenMode, nl.Uint8Attr(addrGenModeDisabled))
}

// forward4 switches IPv4 forwarding on for one link, without /proc.
func forward4(families *nl.RtAttr) {
	conf := families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(devconfForwarding, nl.Uint32Attr(1))
}

// address sets (RTM_NEWADDR) or removes (RTM_DELADDR) an address. IPv6 ones
// come without duplicate address detection: the slot already is unique, and it
// would hold the pod up for more than a second.
func address(kind, index int, a netip.Prefix) *nl.NetlinkRequest {
	flags := 0
	if kind == unix.RTM_NEWADDR {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	req := nl.NewNetlinkRequest(kind, flags)
	msg := nl.NewIfAddrmsg(family(a.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(a.Bits())
	if a.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD
	}
	if a.Addr().IsLinkLocalUnicast() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.Addr().AsSlice()))
	if kind == unix.RTM_NEWADDR {
		if a.Addr().Is4() && a.Bits() < 31 {
			req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(a).AsSlice()))
		}
		req.AddData(nl.NewRtAttr(ifaProto, nl.Uint8Attr(addressProto)))
	}
	return req
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(a netip.Prefix) netip.Addr {
	b := a.Addr().As4()
	for bit := a.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

// defaultRoute leads everything to the gateway.
func defaultRoute(index int, gateway netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewRtMsg()
	msg.Family = uint8(family(gateway))
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

// neighbour makes a permanent neighbour entry.
func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	req.AddData(&ndMsg{
		Family:  uint8(family(addr)),
		Ifindex: int32(index),
		State:   unix.NUD_PERMANENT,
	})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	return req
}

// ndMsg is the kernel's struct ndmsg as a netlink payload.
type ndMsg unix.NdMsg

func (m *ndMsg) Len() int { return int(unsafe.Sizeof(*m)) }

func (m *ndMsg) Serialize() []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(m)), m.Len())...)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
