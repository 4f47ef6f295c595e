package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// An Attachment is one interface of a pod, as it should be.
type Attachment struct {
	Container string // container id, at most 180 bytes without "/" or white space
	IfName    string // its name in the pod, e.g. eth0
	Netns     string // path of the pod's network namespace
	Network   string // name of the CNI network, at most 47 bytes without white space
	Pod       string // namespace/name, for people; may be empty

	Addrs    []netip.Prefix   // one per family, with the subnet's length, e.g. 10.244.1.7/24; IPv4 first
	Gateways []netip.Addr     // the default route of each family, e.g. 10.244.1.1
	MAC      net.HardwareAddr // nil: MACFor(Addrs)
	MTU      int              // bytes
	Hairpin  bool             // the pod may reach itself through the bridge
	Filter   bool             // the pod may send by its own MAC and addresses only
}

// A Result is what Attach made.
type Result struct {
	HostName  string
	HostIndex int
	HostMAC   net.HardwareAddr
	PodIndex  int
	PodMAC    net.HardwareAddr
}

var (
	// ErrNetns says that the path is not a network namespace that a pod can
	// be attached in.
	ErrNetns = errors.New("want the path of a pod's network namespace")

	// ErrExists says that the pod has an interface of that name already, and
	// not from us.
	ErrExists = errors.New("exists already")

	// ErrAttached says that the container is attached under that name already.
	// That attachment was left as it is.
	ErrAttached = errors.New("is attached already")
)

// Attach makes the pair, sets the pod's end up, and hangs the node's end on
// the bridge. On failure nothing is left of it.
func Attach(a Attachment, bridge Ensured) (_ Result, err error) {
	if err := a.check(); err != nil {
		return Result{}, err
	}
	a.MAC = a.mac()
	ns, err := openNetns(a.Netns)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = unix.Close(ns) }()
	host, err := rtnl.Dial()
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = host.Close() }()
	inside, err := rtnl.DialIn(ns)
	if err != nil {
		return Result{}, fmt.Errorf("network namespace %s: %w", a.Netns, err)
	}
	defer func() { _ = inside.Close() }()

	r, release, err := a.guardAndCreate(host, ns, bridge.Index)
	if err != nil {
		return Result{}, err
	}
	success := false
	defer func() {
		if !success {
			err = errors.Join(err, run(host, []step{{
				what: "remove " + r.HostName + " again",
				req:  newLink(unix.RTM_DELLINK, 0, r.HostIndex),
				fine: []error{unix.ENODEV},
			}}), release())
		}
	}()
	if err := run(host, a.markSteps(r.HostIndex)); err != nil {
		return Result{}, err
	}
	if err := run(inside, a.insideSteps(r.PodIndex, bridge.MAC)); err != nil {
		if errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("IPv6 is off there (net.ipv6.conf.*.disable_ipv6): %w", err)
		}
		return Result{}, fmt.Errorf("in the pod: %w", err)
	}
	settleAddresses(inside, a.Addrs)
	if err := settleLinks(host, r.HostIndex, bridge.Index); err != nil {
		return Result{}, err
	}
	success = true
	return r, nil
}

func (a Attachment) check() error {
	switch {
	case a.Container == "" || len(a.Container) > maxContainer || strings.ContainsAny(a.Container, "/ \t\n"):
		return fmt.Errorf("container id %q: want 1 to %d bytes without slash or white space", a.Container, maxContainer)
	case a.IfName == "" || len(a.IfName) >= unix.IFNAMSIZ || strings.ContainsAny(a.IfName, "/: \t\n"):
		return fmt.Errorf("interface name %q: want 1 to %d bytes without slash, colon or white space", a.IfName, unix.IFNAMSIZ-1)
	case a.Network == "" || len(a.Network) > MaxNetwork || strings.ContainsAny(a.Network, " \t\n"):
		return fmt.Errorf("network name %q: want 1 to %d bytes without white space", a.Network, MaxNetwork)
	case strings.ContainsAny(a.Pod, " \t\n"):
		return fmt.Errorf("pod %q: want <namespace>/<name> without white space", a.Pod)
	case len(a.Addrs) == 0:
		return errors.New("addresses: none given")
	case a.MAC != nil && (len(a.MAC) != 6 || a.MAC[0]&1 != 0):
		return fmt.Errorf("MAC %s: want a unicast Ethernet address", a.MAC)
	}
	return nil
}

// mac is the MAC of the pod's end.
func (a Attachment) mac() net.HardwareAddr {
	if a.MAC != nil {
		return a.MAC
	}
	return MACFor(a.Addrs)
}

// group is the link group of the node's end.
func (a Attachment) group() uint32 {
	if a.Filter {
		return GuardedGroup
	}
	return Group
}

// guardAndCreate makes the pair, behind the filter if there is to be one. release
// takes that away again.
func (a Attachment) guardAndCreate(c *rtnl.Conn, ns, bridge int) (_ Result, release func() error, err error) {
	if !a.Filter {
		r, err := a.createPair(c, ns, bridge)
		return r, func() error { return nil }, err
	}
	name := HostName(a.Container, a.IfName)
	// The elements of an attachment that stands are not ours to change.
	if _, found, err := findLink(c, name); found || err != nil {
		if found {
			err = a.whatExists(c, name)
		}
		return Result{}, nil, err
	}
	f, err := dialFilter()
	if err != nil {
		return Result{}, nil, err
	}
	defer f.close()
	if err := f.guard(name, a.MAC, addrsOf(a.Addrs)); err != nil {
		return Result{}, nil, err
	}
	release = func() error { return unguard(name) }
	r, err := a.createPair(c, ns, bridge)
	if err != nil && !errors.Is(err, ErrAttached) {
		err = errors.Join(err, release())
	}
	return r, release, err
}

// createPair makes both ends with one message and lets the kernel tell their
// indices: the node's end up and on the bridge, the other under its name in
// the pod. The kernel refuses to create the latter up.
func (a Attachment) createPair(c *rtnl.Conn, ns, bridge int) (Result, error) {
	r := Result{HostName: HostName(a.Container, a.IfName), PodMAC: a.MAC}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	mtu := nl.Uint32Attr(uint32(a.MTU))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(r.HostName)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(a.group())))

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.IfName))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_ADDRESS, a.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)

	err := c.Echo(req, func(body []byte) {
		l := parseLink(body)
		r.HostIndex, r.HostMAC, r.PodIndex = l.Index, l.MAC, l.Peer
	})
	switch {
	case errors.Is(err, unix.EEXIST):
		return Result{}, a.whatExists(c, r.HostName)
	case err != nil:
		return Result{}, fmt.Errorf("create link pair %s and %s: %w", r.HostName, a.IfName, err)
	}
	return r, nil
}

// whatExists tells which end's name was taken: the kernel says the same of both.
func (a Attachment) whatExists(c *rtnl.Conn, host string) error {
	if _, found, err := findLink(c, host); err == nil && found {
		return fmt.Errorf("interface %s of container %s (link %s): %w", a.IfName, a.Container, host, ErrAttached)
	}
	return fmt.Errorf("interface %s in %s: %w", a.IfName, a.Netns, ErrExists)
}

// markSteps set on the node's end what the kernel does not take at creation: the
// alias, hairpin mode, and that it needs no IPv6 address of its own.
func (a Attachment) markSteps(index int) []step {
	mark := newLink(unix.RTM_NEWLINK, 0, index)
	mark.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, nl.NonZeroTerminated(a.alias())))
	mark.AddData(portMode(a.Hairpin, a.Filter))
	quiet := newLink(unix.RTM_NEWLINK, 0, index)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	noLinkLocal(families)
	quiet.AddData(families)
	return []step{
		{what: "set alias and mode of the port", req: mark},
		{what: "no generated IPv6 addresses", req: quiet, fine: []error{unix.EAFNOSUPPORT}}, // a kernel without IPv6
	}
}

// insideSteps is everything in the pod's namespace: one batch. Routes need the
// link up, so that comes first.
func (a Attachment) insideSteps(index int, gatewayMAC net.HardwareAddr) []step {
	steps := []step{
		{what: "set lo up", req: linkUp(loopbackIndex)},
		{what: "set " + a.IfName + " up", req: linkUp(index)},
	}
	for _, p := range a.Addrs {
		steps = append(steps, step{what: "add address " + p.String(), req: address(unix.RTM_NEWADDR, index, p)})
	}
	for _, g := range a.Gateways {
		steps = append(steps,
			step{what: "add default route via " + g.String(), req: defaultRoute(index, g)},
			step{what: "add neighbour " + g.String(), req: neighbour(index, g, gatewayMAC)})
	}
	return steps
}
