package pod

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A Bridge is what the pods of a node hang on, as it should be.
type Bridge struct {
	Name     string
	Gateways []netip.Prefix // the node's own address in each pod subnet, e.g. 10.244.1.1/24, fd00::1/64; IPv4 first
	Networks []netip.Prefix // the cluster's pod networks: addresses of these on the bridge are ours to remove
	MTU      int            // bytes

	// Hardware is the MAC of a bridge that was there before us, whose pods know
	// their gateway by it; nil: it follows from the first gateway.
	Hardware net.HardwareAddr
}

// An Ensured is the bridge as it is.
type Ensured struct {
	Index   int
	MAC     net.HardwareAddr
	Changes []string // what had to be done; empty where all was right already
}

// MAC is the bridge's address, which follows from its first gateway unless
// Hardware says it. It is set, because a bridge otherwise takes the lowest MAC of its
// ports and changes it as pods come and go, while the pods hold a permanent
// neighbour entry for it.
func (b Bridge) MAC() net.HardwareAddr {
	if b.Hardware != nil {
		return b.Hardware
	}
	return MACFor(b.Gateways)
}

// Ensure makes the bridge what it should be, and does nothing but look where it
// is: one link and the addresses on it. Any number may call it at the same time.
//
// Addresses of an earlier subnet are removed from it, other people's stay. A
// bridge that had to be made gets the pods' links back that another one of that
// name left behind. A link of the name that is no bridge is an error.
func (b Bridge) Ensure() (Ensured, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return Ensured{}, err
	}
	defer func() { _ = c.Close() }()
	e, err := b.ensure(c)
	if err != nil {
		return Ensured{}, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	return e, nil
}

func (b Bridge) ensure(c *rtnl.Conn) (Ensured, error) {
	var changes []string
	l, found, err := findLink(c, b.Name)
	if err == nil && !found {
		l, err = b.create(c)
		changes = append(changes, "create bridge "+b.Name)
	}
	if err != nil {
		return Ensured{}, err
	}
	if l.Kind != "bridge" {
		return Ensured{}, fmt.Errorf("a link of that name is of kind %q, want a bridge", l.Kind)
	}
	addrs, err := addresses(c, l.Index)
	if err != nil {
		return Ensured{}, fmt.Errorf("read addresses: %w", err)
	}
	steps := append(b.linkSteps(l), b.addressSteps(l.Index, addrs)...)
	if err := run(c, steps); err != nil {
		return Ensured{}, err
	}
	for _, s := range steps {
		changes = append(changes, s.what)
	}
	if len(steps) > 0 {
		settleAddresses(c, b.Gateways)
	}
	if !found {
		again, err := reattach(c, l.Index)
		changes = append(changes, again...)
		if err != nil {
			return Ensured{}, err
		}
	}
	return Ensured{Index: l.Index, MAC: b.MAC(), Changes: changes}, nil
}

// create makes the bridge. Somebody else may have been quicker: that is fine.
func (b Bridge) create(c *rtnl.Conn) (link, error) {
	req := newLink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(b.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC()))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	req.AddData(info)
	errs := c.Batch([]*nl.NetlinkRequest{req})
	if errs[0] != nil && !errors.Is(errs[0], unix.EEXIST) {
		return link{}, fmt.Errorf("create: %w", errs[0])
	}
	if errs[0] == nil { // it is ours, so it may be removed at the end
		if err := run(c, []step{{what: "set alias", req: setAlias(b.Name, bridgeAlias), fine: []error{unix.ENODEV}}}); err != nil {
			return link{}, err
		}
	}
	l, err := getLink(c, b.Name)
	if err != nil {
		return link{}, fmt.Errorf("read it back: %w", err)
	}
	return l, nil
}

// bridgeAlias marks a bridge that we made; one that was there before us has none.
const bridgeAlias = aliasMark + " bridge"

// setAlias gives a link of that name an alias.
func setAlias(name, alias string) *nl.NetlinkRequest {
	req := newLink(unix.RTM_NEWLINK, 0, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, nl.NonZeroTerminated(alias)))
	return req
}

// linkSteps is what it takes for the link itself to be right.
func (b Bridge) linkSteps(l link) []step {
	var steps []step
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	add := func(what string, attr *nl.RtAttr) {
		req := newLink(unix.RTM_NEWLINK, 0, l.Index)
		req.AddData(attr)
		steps = append(steps, step{what: what, req: req})
	}
	if !bytes.Equal(l.MAC, b.MAC()) {
		add(fmt.Sprintf("set MAC %s", b.MAC()), nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC()))
	}
	if l.MTU != b.MTU {
		// Set after creation, or else the bridge follows its ports' MTU.
		add(fmt.Sprintf("set MTU %d", b.MTU), nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(b.MTU))))
	}
	if !l.Forwards4 {
		forward4(families)
		add("forward IPv4", families)
	}
	if l.AddrGenMode != addrGenModeDisabled && l.AddrGenMode != addrGenModeUnknown {
		families = nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		noLinkLocal(families)
		add("no generated IPv6 addresses", families)
	}
	if !l.Up {
		steps = append(steps, step{what: "set up", req: linkUp(l.Index)})
	}
	return steps
}

// want lists the addresses that the bridge should have. With IPv6 that includes
// a link-local one: the kernel needs it to ask for a pod's MAC on behalf of a
// packet that it forwards.
func (b Bridge) want() []netip.Prefix {
	want := slices.Clone(b.Gateways)
	for _, g := range b.Gateways {
		if g.Addr().Is6() {
			return append(want, linkLocal(b.MAC()))
		}
	}
	return want
}

// linkLocal is the IPv6 link-local address of a MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Prefix {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:], mac[:3])
	copy(a[13:], mac[3:])
	a[8] ^= 2
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// addressSteps removes the addresses of ours that are not wanted, then adds
// what is missing.
func (b Bridge) addressSteps(index int, have []bridgeAddress) []step {
	var steps []step
	missing := b.want()
	for _, a := range have {
		if i := slices.Index(missing, a.Prefix); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if a.ours || b.inNetworks(a.Addr()) {
			steps = append(steps, step{
				what: "remove address " + a.String(),
				req:  address(unix.RTM_DELADDR, index, a.Prefix),
				fine: []error{unix.EADDRNOTAVAIL},
			})
		}
	}
	for _, a := range missing {
		steps = append(steps, step{
			what: "add address " + a.String(),
			req:  address(unix.RTM_NEWADDR, index, a),
			fine: []error{unix.EEXIST},
		})
	}
	return steps
}

func (b Bridge) inNetworks(a netip.Addr) bool {
	return slices.ContainsFunc(b.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

type bridgeAddress struct {
	netip.Prefix
	ours bool // made by us, as far as the kernel can say
}

// addresses reads the addresses of one link.
func addresses(c *rtnl.Conn, index int) (found []bridgeAddress, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
	msg := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	msg.Index = uint32(index)
	req.AddData(msg)
	err = c.Dump(req, func() { found = nil }, func(body []byte) {
		if a, at, ok := parseAddress(body); ok && at == index {
			found = append(found, a)
		}
	})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil // the link has no addresses of one family
	}
	return found, err
}

// parseAddress reads the body of an RTM_NEWADDR.
func parseAddress(body []byte) (a bridgeAddress, index int, ok bool) {
	if len(body) < unix.SizeofIfAddrmsg {
		return a, 0, false
	}
	msg := nl.DeserializeIfAddrmsg(body)
	var addr, local netip.Addr
	rtnl.EachAttr(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFA_ADDRESS:
			addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case ifaProto:
			a.ours = len(v) > 0 && v[0] == addressProto
		}
	})
	if local.IsValid() {
		addr = local // on IPv4, IFA_ADDRESS is the other end of a point-to-point link
	}
	a.Prefix = netip.PrefixFrom(addr, int(msg.Prefixlen))
	return a, int(msg.Index), a.IsValid()
}

// reattach enslaves pods' links that have no master to the bridge. The kernel
// releases them when a bridge is deleted.
func reattach(c *rtnl.Conn, bridge int) ([]string, error) {
	links, err := veths(c)
	if err != nil {
		return nil, fmt.Errorf("list pods' links: %w", err)
	}
	var steps []step
	for _, l := range links {
		if l.Master != 0 {
			continue
		}
		master := newLink(unix.RTM_NEWLINK, 0, l.Index)
		master.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
		mode := newLink(unix.RTM_NEWLINK, 0, l.Index)
		mode.AddData(portMode(wantsHairpin(l.Alias), l.Group == GuardedGroup))
		steps = append(steps, // a pod may go meanwhile
			step{what: "enslave " + l.Name, req: master, fine: []error{unix.ENODEV}},
			step{what: "set hairpin of " + l.Name, req: mode, fine: []error{unix.ENODEV, unix.EOPNOTSUPP}})
	}
	var done []string
	for _, s := range steps {
		done = append(done, s.what)
	}
	return done, run(c, steps)
}

// Reattach gives pods' links that lost their bridge, because somebody deleted
// it or took them out, back to the bridge with that index. It returns what it did.
func Reattach(bridge int) ([]string, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return reattach(c, bridge)
}
