package pod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// ifaTargetNetns is IFA_TARGET_NETNSID (linux/if_addr.h, kernel 4.20 and later):
// of which namespace the addresses are.
const ifaTargetNetns = 10

// A Guest is a veth port of the bridge that another plugin made. It leads to a
// pod whose container nothing here tells.
type Guest struct {
	HostName string
	Addrs    []netip.Addr // all of the pod's namespace; none if they cannot be told
}

// A BridgeState is a bridge as it is found.
type BridgeState struct {
	Index  int
	MAC    net.HardwareAddr
	MTU    int
	Up     bool
	Addrs  []netip.Prefix
	Ports  int     // veth ports in all
	Guests []Guest // those that are not ours
}

// ReadBridge looks at the bridge of that name and at what hangs on it; found is
// false if there is none. A link of the name that is no bridge is an error.
func ReadBridge(name string) (b BridgeState, found bool, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return b, false, err
	}
	defer func() { _ = c.Close() }()
	l, found, err := findLink(c, name)
	switch {
	case err != nil || !found:
		return b, false, err
	case l.Kind != "bridge":
		return b, false, fmt.Errorf("link %s is of kind %q, want a bridge", name, l.Kind)
	}
	b = BridgeState{Index: l.Index, MAC: l.MAC, MTU: l.MTU, Up: l.Up}
	addrs, err := addresses(c, l.Index)
	if err != nil {
		return b, true, fmt.Errorf("read addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		b.Addrs = append(b.Addrs, a.Prefix)
	}
	ports, err := vethsOf(c, l.Index, func(link) bool { return true })
	if err != nil {
		return b, true, fmt.Errorf("read ports of %s: %w", name, err)
	}
	b.Ports = len(ports)
	ports = slices.DeleteFunc(ports, link.ours)
	b.Guests, err = guests(ports)
	return b, true, err
}

// AdoptBridge returns the MAC of a bridge that has pods, for they know their
// gateway by it, and sets it: from then on it does not follow the ports. Without
// such a bridge it returns nil.
func AdoptBridge(name string) (net.HardwareAddr, error) {
	b, found, err := ReadBridge(name)
	if err != nil || !found || b.Ports == 0 {
		return nil, err
	}
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	set := newLink(unix.RTM_NEWLINK, 0, b.Index)
	set.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC))
	return b.MAC, run(c, []step{{what: "keep MAC " + b.MAC.String() + " of " + name, req: set}})
}

// guests reads the addresses of the namespaces that ports lead to.
func guests(ports []link) (list []Guest, err error) {
	if len(ports) == 0 {
		return nil, nil
	}
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	strict := c.Strict()
	for _, p := range ports {
		g := Guest{HostName: p.Name}
		if strict == nil && p.PeerNetns != noNetns {
			// Whatever fails, the guest is one of unknown addresses: its
			// namespace may end at any moment.
			g.Addrs, _ = addressesIn(c, p.PeerNetns)
		}
		list = append(list, g)
	}
	return list, nil
}

// addressesIn reads all addresses of another namespace, given by its id in ours;
// c must be strict. Nobody has to enter it.
func addressesIn(c *rtnl.Conn, netns int32) (found []netip.Addr, err error) {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
		req.AddData(nl.NewIfAddrmsg(family))
		req.AddData(nl.NewRtAttr(ifaTargetNetns, nl.Uint32Attr(uint32(netns))))
		var some []netip.Addr
		err := c.Dump(req, func() { some = nil }, func(body []byte) {
			a, _, ok := parseAddress(body)
			// A kernel that does not know the filter tells our own addresses.
			if ok && targetNetns(body) == netns && !a.Addr().IsLoopback() && !a.Addr().IsLinkLocalUnicast() {
				some = append(some, a.Addr())
			}
		})
		if !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
			errs = append(errs, err)
		}
		found = append(found, some...)
	}
	return found, errors.Join(errs...)
}

// targetNetns reads of which namespace an RTM_NEWADDR tells; noNetns: ours.
func targetNetns(body []byte) (id int32) {
	id = noNetns
	if len(body) < unix.SizeofIfAddrmsg {
		return id
	}
	rtnl.EachAttr(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		if kind == ifaTargetNetns && len(v) >= 4 {
			id = int32(binary.NativeEndian.Uint32(v))
		}
	})
	return id
}

// With returns the guest that has one of the addresses, and whether there is one.
func (b BridgeState) With(addrs []netip.Addr) (Guest, bool) {
	i := slices.IndexFunc(b.Guests, func(g Guest) bool {
		return slices.ContainsFunc(g.Addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	})
	if i < 0 {
		return Guest{}, false
	}
	return b.Guests[i], true
}

// MayLive says whether a pod that another plugin attached to the bridge may still
// be there: a guest has one of its addresses, or there is a guest without any
// address in the node's subnets, which may be it: a virtual machine's pod has
// passed its address on.
func (b BridgeState) MayLive(addrs []netip.Addr, subnets []netip.Prefix) bool {
	if _, ok := b.With(addrs); ok {
		return true
	}
	return slices.ContainsFunc(b.Guests, func(g Guest) bool {
		return !slices.ContainsFunc(g.Addrs, func(a netip.Addr) bool {
			return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		})
	})
}

// DetachGuest removes a pod's interface that another plugin made, with the node's
// end of it. It must be a veth link and have one of the addresses: the path may
// lead to another pod by now. A namespace that is gone, and one without such an
// interface, is a success, and found is false.
func DetachGuest(netns, ifname string, addrs []netip.Addr) (found bool, err error) {
	ns, err := openNetns(netns)
	if errors.Is(err, ErrNetns) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(ns) }()
	c, err := rtnl.DialIn(ns)
	if err != nil {
		return false, fmt.Errorf("network namespace %s: %w", netns, err)
	}
	defer func() { _ = c.Close() }()
	l, found, err := findLink(c, ifname)
	if err != nil || !found || l.Kind != "veth" {
		return false, err
	}
	have, err := addresses(c, l.Index)
	if err != nil {
		return false, fmt.Errorf("read addresses of %s: %w", ifname, err)
	}
	if !slices.ContainsFunc(have, func(a bridgeAddress) bool { return slices.Contains(addrs, a.Addr()) }) {
		return false, nil
	}
	err = run(c, []step{{
		what: "remove interface " + ifname + " in " + netns,
		req:  newLink(unix.RTM_DELLINK, 0, l.Index),
		fine: []error{unix.ENODEV},
	}})
	return err == nil, err
}

// CheckGuest is Check for a pod that another plugin attached: of the node's end
// it knows no more than that a port of the bridge has the addresses.
func CheckGuest(a Attachment, bridge string) error {
	ns, err := openNetns(a.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	inside, err := rtnl.DialIn(ns)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", a.Netns, err)
	}
	defer func() { _ = inside.Close() }()
	var addrs []netip.Addr
	for _, p := range a.Addrs {
		addrs = append(addrs, p.Addr())
	}
	b, found, err := ReadBridge(bridge)
	if err == nil && !found {
		err = fmt.Errorf("bridge %s: there is none", bridge)
	}
	if _, ok := b.With(addrs); err == nil && !ok {
		err = fmt.Errorf("bridge %s has no port to a pod with %v", bridge, addrs)
	}
	return errors.Join(err, a.checkInside(inside, 0, b.MAC))
}
