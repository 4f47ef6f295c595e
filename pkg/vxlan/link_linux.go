package vxlan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// Neighbour probes: with application probes and without multicast ones the
// kernel announces a missing neighbour (RTM_GETNEIGH) and parks the packet,
// instead of sending ARP into the tunnel. One question a second, then FAILED.
const (
	appProbes       = 3
	multicastProbes = 0
)

// Attributes that no library names (linux/neighbour.h, linux/if_link.h,
// linux/ip.h).
const (
	ndtaName               = 1
	ndtaParms              = 6
	ndtpaIfindex           = 1
	ndtpaAppProbes         = 9
	ndtpaMcastProbes       = 11
	iflaInetConf           = 1
	ipv4DevconfForwarding  = 1
	iflaInet6AddrGenMode   = 8
	addrGenModeNone        = 1
	sizeofNdtMsg           = 4
	nlaFNested             = 1 << 15
	ifaProto               = 11
	kernelLinkLocal        = 3 // IFAPROT_KERNEL_LL
	ifaFNoDAD              = 0x02
	sizeofInet4DevconfItem = 4
)

// linkInfo is a link as the kernel tells it.
type linkInfo struct {
	Link
	name       string
	master     int // index of the bridge that it is a port of
	kind       string
	alias      string
	noARP      bool // asks for no neighbour
	forwarding bool // IPv4
	inet6      bool // knows IPv6; false where the kernel has it switched off
	quiet      bool // makes no IPv6 link-local address of its own
	fresh      bool // of a notification: the link has just been made

	vni       uint32
	port      uint16
	local     netip.Addr
	underlay6 bool // encapsulates in IPv6
	remote    bool // has a default destination or group
	lower     uint32
	learning  bool
	l2miss    bool
	extra     bool // other header formats or limits: GBP, GPE, external control, …
}

func (l linkInfo) sameTunnel(c Config) bool {
	return l.vni == c.VNI && l.port == c.Port && l.local == c.Local && !l.remote && l.lower == 0 &&
		!l.learning && l.l2miss && !l.extra
}

// sameButLocal reports whether nothing but the local address differs, and that
// not in its family: the kernel can change it.
func (l linkInfo) sameButLocal(c Config) bool {
	if l.local == c.Local || !l.local.IsValid() || l.local.Is4() != c.Local.Is4() {
		return false
	}
	l.local = c.Local
	return l.sameTunnel(c)
}

// fits reports whether l, up to its tunnel and its addresses, is what c says.
func (l linkInfo) fits(c Config) bool {
	return l.Up && !l.noARP && l.MAC == c.MAC && (c.MTU == 0 || l.MTU == c.MTU) && l.alias == alias && l.forwarding && (l.quiet || !l.inet6)
}

// tunnel tells how it differs from ours, too: what is usual is left out.
func (l linkInfo) tunnel() string {
	local := "any"
	if l.local.IsValid() {
		local = l.local.String()
	}
	text := fmt.Sprintf("VNI %d port %d local %s", l.vni, l.port, local)
	for _, f := range []struct {
		odd  bool
		text string
	}{
		{l.remote, "with a default destination"}, {l.lower != 0, "bound to a link"}, {l.learning, "learning"},
		{!l.l2miss, "without l2miss"}, {l.extra, "with options that change the format or limit the table"},
	} {
		if f.odd {
			text += ", " + f.text
		}
	}
	return text
}

func wantTunnel(c Config) string {
	return fmt.Sprintf("VNI %d port %d local %s, nolearning, l2miss, bound to no link", c.VNI, c.Port, c.Local)
}

// read asks for the device by name.
func (d *Device) read() (l linkInfo, found bool, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(d.cfg.Name)))
	err = d.conn.Get(req, func(body []byte) { l, found = parseLink(body) })
	if errors.Is(err, unix.ENODEV) {
		return linkInfo{}, false, nil
	}
	if err != nil {
		return linkInfo{}, false, fmt.Errorf("read link %s: %w", d.cfg.Name, err)
	}
	return l, found, nil
}

// parseLink reads an ifinfomsg and its attributes.
func parseLink(body []byte) (l linkInfo, ok bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.Index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	flags := binary.NativeEndian.Uint32(body[8:])
	l.Up, l.noARP = flags&unix.IFF_UP != 0, flags&unix.IFF_NOARP != 0
	// The kernel says that every flag changed when it registers a device.
	l.fresh = !l.Up && binary.NativeEndian.Uint32(body[12:]) == ^uint32(0)
	l.kind = "device"
	rtnl.EachAttr(body[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = cString(v)
		case unix.IFLA_ADDRESS:
			if len(v) == len(MAC{}) {
				l.MAC = MAC(v)
			}
		case unix.IFLA_MASTER:
			l.master = int(u32(v))
		case unix.IFLA_MTU:
			l.MTU = int(u32(v))
		case unix.IFLA_IFALIAS:
			l.alias = cString(v)
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		case unix.IFLA_AF_SPEC:
			l.parseFamilies(v)
		}
	})
	return l, true
}

func (l *linkInfo) parseInfo(b []byte) {
	rtnl.EachAttr(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = cString(v)
		case unix.IFLA_INFO_DATA:
			if l.kind == "vxlan" {
				rtnl.EachAttr(v, l.parseTunnel)
			}
		}
	})
}

func (l *linkInfo) parseTunnel(kind uint16, v []byte) {
	switch kind {
	case nl.IFLA_VXLAN_ID:
		l.vni = u32(v)
	case nl.IFLA_VXLAN_PORT:
		if len(v) == 2 {
			l.port = binary.BigEndian.Uint16(v)
		}
	case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
		l.local, _ = netip.AddrFromSlice(v)
		l.underlay6 = l.underlay6 || kind == nl.IFLA_VXLAN_LOCAL6
	case nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6:
		l.remote = true
		l.underlay6 = l.underlay6 || kind == nl.IFLA_VXLAN_GROUP6
	case nl.IFLA_VXLAN_LINK:
		l.lower = u32(v)
	case nl.IFLA_VXLAN_LEARNING:
		l.learning = len(v) > 0 && v[0] != 0
	case nl.IFLA_VXLAN_L2MISS:
		l.l2miss = len(v) > 0 && v[0] != 0
	case unix.IFLA_VXLAN_GBP, unix.IFLA_VXLAN_GPE, unix.IFLA_VXLAN_REMCSUM_NOPARTIAL:
		l.extra = true // flags: there or not
	case unix.IFLA_VXLAN_COLLECT_METADATA, unix.IFLA_VXLAN_VNIFILTER, unix.IFLA_VXLAN_PROXY, unix.IFLA_VXLAN_RSC,
		unix.IFLA_VXLAN_REMCSUM_TX, unix.IFLA_VXLAN_REMCSUM_RX:
		l.extra = l.extra || len(v) > 0 && v[0] != 0
	case unix.IFLA_VXLAN_LIMIT:
		l.extra = l.extra || u32(v) != 0
	}
}

func (l *linkInfo) parseFamilies(b []byte) {
	rtnl.EachAttr(b, func(fam uint16, v []byte) {
		l.inet6 = l.inet6 || fam == unix.AF_INET6
		rtnl.EachAttr(v, func(kind uint16, v []byte) {
			switch {
			case fam == unix.AF_INET && kind == iflaInetConf:
				// The kernel reports an array of all settings, in order.
				const at = (ipv4DevconfForwarding - 1) * sizeofInet4DevconfItem
				l.forwarding = len(v) >= at+4 && binary.NativeEndian.Uint32(v[at:]) != 0
			case fam == unix.AF_INET6 && kind == iflaInet6AddrGenMode:
				l.quiet = len(v) > 0 && v[0] == addrGenModeNone
			}
		})
	})
}

// cString is a text of the kernel's, with or without its zero byte.
func cString(v []byte) string { return strings.TrimRight(string(v), "\x00") }

func u32(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

func createRequest(c Config) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(c.Name)))
	// With the MAC from the first moment no MACAddressPolicy touches it.
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, c.MAC[:]))
	if c.MTU != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(c.MTU))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(c.VNI))
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, c.Port))
	data.AddRtAttr(localAttr(c.Local), c.Local.AsSlice())
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0))
	data.AddRtAttr(nl.IFLA_VXLAN_L2MISS, nl.Uint8Attr(1))
	// The device is bound to no link: the routing table picks the underlay
	// interface, so a renamed or multipath underlay does not matter.
	req.AddData(info)
	return req
}

func localAttr(a netip.Addr) int {
	if a.Is6() {
		return nl.IFLA_VXLAN_LOCAL6
	}
	return nl.IFLA_VXLAN_LOCAL
}

// localRequest gives a living device another local address.
func localRequest(index int, local netip.Addr) *nl.NetlinkRequest {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(localAttr(local), local.AsSlice())
	return setLink(index, 0, info)
}

func setLink(index int, flags uint32, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	return changeLink(index, flags, flags, attrs...)
}

// changeLink sets those of the link's flags that are in mask, and attributes.
func changeLink(index int, flags, mask uint32, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, mask
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

func deleteLink(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// familyRequest switches IPv4 forwarding on and IPv6 address generation off:
// every frame that the kernel sends by itself would be a miss. By netlink it
// needs no writable /proc.
func familyRequest(index int, inet6 bool) *nl.NetlinkRequest {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(iflaInetConf|nlaFNested, nil)
	conf.AddRtAttr(ipv4DevconfForwarding, nl.Uint32Attr(1))
	if inet6 {
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(iflaInet6AddrGenMode, nl.Uint8Attr(addrGenModeNone))
	}
	return setLink(index, 0, spec)
}

type neighbourTable struct {
	family uint8
	name   string // the kernel's
}

func neighbourTables(inet6 bool) []neighbourTable {
	tables := []neighbourTable{{unix.AF_INET, "arp_cache"}}
	if inet6 {
		tables = append(tables, neighbourTable{unix.AF_INET6, "ndisc_cache"})
	}
	return tables
}

type ndtMsg [sizeofNdtMsg]byte

func (m ndtMsg) Len() int          { return len(m) }
func (m ndtMsg) Serialize() []byte { return m[:] }

func tuneRequests(index int, inet6 bool) (reqs []*nl.NetlinkRequest) {
	for _, t := range neighbourTables(inet6) {
		req := nl.NewNetlinkRequest(unix.RTM_SETNEIGHTBL, 0)
		req.AddData(ndtMsg{t.family})
		req.AddData(nl.NewRtAttr(ndtaName, nl.ZeroTerminated(t.name)))
		parms := nl.NewRtAttr(ndtaParms|nlaFNested, nil)
		parms.AddRtAttr(ndtpaIfindex, nl.Uint32Attr(uint32(index)))
		parms.AddRtAttr(ndtpaAppProbes, nl.Uint32Attr(appProbes))
		parms.AddRtAttr(ndtpaMcastProbes, nl.Uint32Attr(multicastProbes))
		req.AddData(parms)
		reqs = append(reqs, req)
	}
	return reqs
}

// tuned reports whether the neighbour tables have our probes on the device.
func (d *Device) tuned(index int, inet6 bool) (bool, error) {
	seen := 0
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGHTBL, 0)
	req.AddData(ndtMsg{unix.AF_UNSPEC})
	err := d.conn.Dump(req, func() { seen = 0 }, func(body []byte) {
		if len(body) < sizeofNdtMsg {
			return
		}
		rtnl.EachAttr(body[sizeofNdtMsg:], func(kind uint16, v []byte) {
			if kind == ndtaParms && parmsTuned(v, index) {
				seen++
			}
		})
	})
	if err != nil {
		return false, fmt.Errorf("read neighbour table settings: %w", err)
	}
	return seen == len(neighbourTables(inet6)), nil
}

func parmsTuned(b []byte, index int) bool {
	want := map[uint16]uint32{ndtpaIfindex: uint32(index), ndtpaAppProbes: appProbes, ndtpaMcastProbes: multicastProbes}
	right := 0
	rtnl.EachAttr(b, func(kind uint16, v []byte) {
		if w, ok := want[kind]; ok && len(v) == 4 && u32(v) == w {
			right++
		}
	})
	return right == len(want)
}

// An address of a link, as the kernel tells it.
type address struct {
	index    int
	prefix   netip.Prefix
	protocol uint8
}

func parseAddress(body []byte) (a address, ok bool) {
	if len(body) < unix.SizeofIfAddrmsg {
		return a, false
	}
	a.index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	var ip netip.Addr
	rtnl.EachAttr(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		switch {
		// Of a point-to-point address IFA_LOCAL is the own end; IPv6 has
		// IFA_ADDRESS alone.
		case kind == unix.IFA_LOCAL, kind == unix.IFA_ADDRESS && !ip.IsValid():
			ip, _ = netip.AddrFromSlice(v)
		case kind == ifaProto && len(v) == 1:
			a.protocol = v[0]
		}
	})
	a.prefix = netip.PrefixFrom(ip, int(body[1]))
	return a, a.prefix.IsValid()
}

func addressRequest(del bool, p netip.Prefix, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, create)
	if del {
		req = nl.NewNetlinkRequest(unix.RTM_DELADDR, 0)
	}
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Prefixlen, msg.Index = uint8(p.Bits()), uint32(index)
	if p.Addr().Is6() {
		msg.IfAddrmsg.Flags = ifaFNoDAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(ifaProto, nl.Uint8Attr(Protocol)))
	return req
}
