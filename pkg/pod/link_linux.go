package pod

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// Of the kernel's headers, what x/sys/unix does not have (linux/if_link.h,
// linux/devinfo in linux/ip.h).
const (
	inetConf            = 1 // IFLA_INET_CONF
	inet6AddrGenMode    = 8 // IFLA_INET6_ADDR_GEN_MODE
	devconfForwarding   = 1 // IPV4_DEVCONF_FORWARDING; in a dump its place is one less
	extMaskSkipStats    = 1 << 3
	loopbackIndex       = 1
	headerSize          = unix.SizeofIfInfomsg
	hairpinOn           = 1
	brportGroupFwdMask  = 31 // IFLA_BRPORT_GROUP_FWD_MASK
	forwardLLDP         = 1 << 0x0e
	addrGenModeUnknown  = 0xff
	addrGenModeDisabled = nl.IN6_ADDR_GEN_MODE_NONE
	noNetns             = -1 // NETNSA_NSID_NOT_ASSIGNED
)

// link is what the kernel says of a link, as far as it matters here.
type link struct {
	Index, Master, Peer int
	Name, Kind, Alias   string
	MAC                 net.HardwareAddr
	MTU                 int
	Group               uint32
	PeerNetns           int32 // id, in our namespace, of the one that the peer is in; noNetns: ours
	Up                  bool
	Forwards4           bool  // net.ipv4.conf.<name>.forwarding
	AddrGenMode         uint8 // addrGenModeUnknown where IPv6 is off
	Port                bool  // is the port of a bridge
	Hairpin             bool
	Forwards            uint16 // bit n: also frames to 01:80:c2:00:00:0n
}

// ours says whether the link bears our mark.
func (l link) ours() bool { return l.Group == Group || l.Group == GuardedGroup }

// getLink reads one link by name. A link that does not exist is unix.ENODEV.
func getLink(c *rtnl.Conn, name string) (l link, err error) {
	req := newLink(unix.RTM_GETLINK, 0, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMaskSkipStats)))
	err = c.Get(req, func(body []byte) { l = parseLink(body) })
	return l, err
}

// findLink is getLink, with found false for one that does not exist.
func findLink(c *rtnl.Conn, name string) (l link, found bool, err error) {
	l, err = getLink(c, name)
	if errors.Is(err, unix.ENODEV) {
		return link{}, false, nil
	}
	return l, err == nil, err
}

// veths reads all veth links of our groups.
func veths(c *rtnl.Conn) (found []link, err error) {
	return vethsOf(c, 0, link.ours)
}

// vethsOf reads the veth links with that master, or, if it is 0, all, of which
// it takes those that want accepts.
func vethsOf(c *rtnl.Conn, master int, want func(link) bool) (found []link, err error) {
	req := newLink(unix.RTM_GETLINK, 0, 0)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	req.AddData(info)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMaskSkipStats)))
	if master != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	err = c.Dump(req, func() { found = nil }, func(body []byte) {
		if l := parseLink(body); l.Kind == "veth" && (master == 0 || l.Master == master) && want(l) {
			found = append(found, l)
		}
	})
	return found, err
}

// parseLink reads the body of an RTM_NEWLINK. What is missing or cut short
// stays zero.
func parseLink(body []byte) link {
	l := link{AddrGenMode: addrGenModeUnknown, PeerNetns: noNetns}
	if len(body) < headerSize {
		return l
	}
	l.Index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	l.Up = binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0
	rtnl.EachAttr(body[headerSize:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = text(v)
		case unix.IFLA_IFALIAS:
			l.Alias = text(v)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), v...)
		case unix.IFLA_MTU:
			l.MTU = int(number(v))
		case unix.IFLA_GROUP:
			l.Group = number(v)
		case unix.IFLA_MASTER:
			l.Master = int(number(v))
		case unix.IFLA_LINK:
			l.Peer = int(number(v))
		case unix.IFLA_LINK_NETNSID:
			l.PeerNetns = int32(number(v))
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		case unix.IFLA_AF_SPEC:
			l.parseFamilies(v)
		}
	})
	return l
}

func (l *link) parseInfo(info []byte) {
	rtnl.EachAttr(info, func(kind uint16, v []byte) {
		switch kind {
		case nl.IFLA_INFO_KIND:
			l.Kind = text(v)
		case nl.IFLA_INFO_SLAVE_KIND:
			l.Port = text(v) == "bridge"
		case nl.IFLA_INFO_SLAVE_DATA:
			rtnl.EachAttr(v, func(kind uint16, v []byte) {
				switch {
				case kind == nl.IFLA_BRPORT_MODE && len(v) > 0:
					l.Hairpin = v[0] == hairpinOn
				case kind == brportGroupFwdMask && len(v) >= 2:
					l.Forwards = binary.NativeEndian.Uint16(v)
				}
			})
		}
	})
}

func (l *link) parseFamilies(spec []byte) {
	rtnl.EachAttr(spec, func(family uint16, v []byte) {
		rtnl.EachAttr(v, func(kind uint16, v []byte) {
			switch {
			case family == unix.AF_INET && kind == inetConf && len(v) >= 4:
				// An array of 32-bit values, of which the first is forwarding.
				l.Forwards4 = number(v[:4]) != 0
			case family == unix.AF_INET6 && kind == inet6AddrGenMode && len(v) > 0:
				l.AddrGenMode = v[0]
			}
		})
	})
}

func text(v []byte) string { return strings.TrimRight(string(v), "\x00") }

func number(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}
