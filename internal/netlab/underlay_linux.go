package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A Segment is one link of the underlay: a bridge in the underlay's namespace,
// which is also the segment's router.
type Segment struct {
	bridge   string
	mac      string // the router's
	v4, v6   string // addresses without the host's number
	ifPrefix string // of the nodes' ports on the bridge
}

// The segments. Addresses are those of documentation (RFC 5737, RFC 3849), so they
// are nobody's.
var (
	Near = Segment{bridge: "underlay", mac: "02:00:5e:00:00:01", v4: "192.0.2.", v6: "2001:db8::"}
	Far  = Segment{bridge: "far", mac: "02:00:5e:00:00:02", v4: "198.51.100.", v6: "2001:db8:1::", ifPrefix: "far-"}

	// beyond is the link of the outside host.
	beyond = Segment{bridge: "beyond", mac: "02:00:5e:00:00:03", v4: "203.0.113.", v6: "2001:db8:2::", ifPrefix: "out-"}
)

// router is the number of the router's addresses.
const router = 1

// Addr is the address of one family with a number.
func (s Segment) Addr(is4 bool, number int) netip.Addr {
	if is4 {
		return netip.MustParseAddr(s.v4 + strconv.Itoa(number))
	}
	return netip.MustParseAddr(s.v6 + strconv.Itoa(number))
}

// families are those of the underlay, IPv4 first.
func (l *Lab) families() (is4 []bool) {
	for _, c := range l.opts.Underlay {
		is4 = append(is4, c == '4')
	}
	return is4
}

// checkFamilies refuses what is no set of families.
func checkFamilies(s string) error {
	switch s {
	case "4", "6", "46":
		return nil
	}
	return fmt.Errorf("underlay of families %q: want 4, 6 or 46", s)
}

// addressLine is the ip command that gives a link its address. IPv6 addresses
// are not checked for duplicates, which takes a second.
func addressLine(verb string, a netip.Addr, link string) string {
	if a.Is4() {
		return fmt.Sprintf("address %s %s/24 dev %s", verb, a, link)
	}
	return fmt.Sprintf("address %s %s/64 dev %s nodad", verb, a, link)
}

// Router is the address of the segment's router.
func (s Segment) Router(is4 bool) netip.Addr { return s.Addr(is4, router) }

// DefaultRoute is the ip command for the default route by a router's address. It is
// of the family of that address.
func DefaultRoute(via netip.Addr, link string) string {
	dst := "0.0.0.0/0"
	if !via.Is4() {
		dst = "::/0"
	}
	return fmt.Sprintf("route replace %s via %s dev %s", dst, via, link)
}

// makeSegment makes a segment's bridge, with the router's addresses. Without a MAC
// of its own a bridge takes the lowest of its ports', so that a new port could
// change the router's under the nodes.
func (l *Lab) makeSegment(s Segment) error {
	lines := []string{
		fmt.Sprintf("link add %s address %s type bridge", s.bridge, s.mac),
		fmt.Sprintf("link set %s mtu %d up", s.bridge, l.opts.MTU),
	}
	for _, is4 := range l.families() {
		lines = append(lines, addressLine("add", s.Router(is4), s.bridge))
	}
	return l.Underlay.IP(lines...)
}

// route makes the underlay's namespace forward between its links.
func (l *Lab) route() error {
	return l.Underlay.Sysctl("net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1")
}

// plug gives a namespace a link on a segment, with the addresses of a number, and
// returns these.
func (l *Lab) plug(n *Namespace, port, link string, s Segment, number int) ([]netip.Addr, error) {
	err := l.Underlay.IP(fmt.Sprintf(
		"link add %s mtu %d master %s up type veth peer name %s mtu %d netns %s",
		port, l.opts.MTU, s.bridge, link, l.opts.MTU, n.Name))
	if err == nil {
		err = n.Sysctl("net/ipv6/conf/"+link+"/accept_dad", "0") // as in makeUnderlay
	}
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	var lines []string
	for _, is4 := range l.families() {
		a := s.Addr(is4, number)
		addrs = append(addrs, a)
		lines = append(lines, addressLine("add", a, link))
	}
	return addrs, n.IP(append(lines, fmt.Sprintf("link set %s up", link))...)
}

// settled waits until a new link carries packets: the kernel starts to send on it
// in a worker, some time after it is up.
func (l *Lab) settled(n *Namespace, s Segment) error {
	return Eventually(5*time.Second, func() error {
		for _, is4 := range l.families() {
			p := Pings{To: s.Router(is4), Timeout: 50 * time.Millisecond}
			if r, err := Ping(context.Background(), n, p); err != nil || r.Lost() > 0 {
				return fmt.Errorf("new link of %s: %v: %w", n.Name, r, err)
			}
		}
		return nil
	})
}

// Plug gives the node a second interface, on the segment that it is not on yet,
// and returns its addresses. The default routes stay where they are.
func (l *Lab) Plug(n *Node, link string) ([]netip.Addr, error) {
	s := Far
	if n.Segment == Far {
		s = Near
	} else if err := l.ensureFar(); err != nil {
		return nil, err
	}
	addrs, err := l.plug(n.Namespace, s.ifPrefix+n.Name+"-2", link, s, n.number)
	if err != nil {
		return nil, err
	}
	return addrs, l.settled(n.Namespace, s)
}

// ensureFar makes the far segment and the router, once.
func (l *Lab) ensureFar() error {
	if l.hasFar {
		return nil
	}
	l.hasFar = true
	return errors.Join(l.makeSegment(Far), l.route())
}

// A Host is a machine that is no node.
type Host struct {
	*Namespace
	Addrs []netip.Addr // of eth0, one per family of the underlay, IPv4 first
}

// Addr is the host's address of a family.
func (h *Host) Addr(is4 bool) netip.Addr { return ofFamily(h.Addrs, is4) }

func ofFamily(addrs []netip.Addr, is4 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

// NewOutside makes a host beyond the nodes' default gateway. Like the rest of the
// world it has routes to the nodes and none to the pods, nor has the gateway. A
// lab has one at most.
func (l *Lab) NewOutside() (*Host, error) {
	n, err := l.namespace("outside")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(l.makeSegment(beyond), l.route()); err != nil {
		return nil, err
	}
	h := &Host{Namespace: n}
	if h.Addrs, err = l.plug(n, "outside", "eth0", beyond, 2); err != nil {
		return nil, err
	}
	return h, errors.Join(n.IP(l.defaultLines(beyond, "eth0")...), l.settled(n, beyond))
}

// NewNeighbour makes a host on the nodes' own link, the near segment, that is no
// node. The number has to be one of the last of the segment, 220 to 250.
func (l *Lab) NewNeighbour(number int) (*Host, error) {
	n, err := l.namespace("host" + strconv.Itoa(number))
	if err != nil {
		return nil, err
	}
	h := &Host{Namespace: n}
	if h.Addrs, err = l.plug(n, "host"+strconv.Itoa(number), "eth0", Near, number); err != nil {
		return nil, err
	}
	return h, errors.Join(n.IP(l.defaultLines(Near, "eth0")...), l.settled(n, Near))
}

func (l *Lab) defaultLines(s Segment, link string) (lines []string) {
	for _, is4 := range l.families() {
		lines = append(lines, DefaultRoute(s.Router(is4), link))
	}
	return lines
}

// SetMTU changes the MTU of the underlay: of the links of these nodes, or of all
// nodes and the bridges if none is named. A cut takes effect at the nodes first,
// and a rise at the bridges.
func (l *Lab) SetMTU(mtu int, nodes ...*Node) error {
	cut := mtu < l.opts.MTU
	var lines []string
	if len(nodes) == 0 {
		nodes, l.opts.MTU = l.Nodes, mtu
		for _, s := range l.segments() {
			lines = append(lines, fmt.Sprintf("link set %s mtu %d", s.bridge, mtu))
		}
	}
	for _, n := range nodes {
		lines = append(lines, fmt.Sprintf("link set %s mtu %d", n.port(), mtu))
	}
	var err error
	if !cut {
		err = l.Underlay.IP(lines...)
	}
	for _, n := range nodes {
		err = errors.Join(err, n.IP(fmt.Sprintf("link set eth0 mtu %d", mtu)))
	}
	if cut {
		err = errors.Join(err, l.Underlay.IP(lines...))
	}
	return err
}

func (l *Lab) segments() []Segment {
	if l.hasFar {
		return []Segment{Near, Far}
	}
	return []Segment{Near}
}

// port is the name of the bridge's port that leads to the node's eth0.
func (n *Node) port() string { return n.Segment.ifPrefix + n.Name }

// Addrs are the addresses of eth0, IPv4 first.
func (n *Node) Addrs() (addrs []netip.Addr) {
	for _, a := range []netip.Addr{n.Address, n.Address6} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Addr is the address of eth0 of a family, invalid if there is none.
func (n *Node) Addr(is4 bool) netip.Addr { return ofFamily(n.Addrs(), is4) }

// SetAddress gives eth0 another address of the family and segment of its own, with
// the segment's number, as a DHCP client does that was given another lease: the
// old one goes, with the routes that stood on it, and the new one comes.
func (n *Node) SetAddress(is4 bool, number int) error {
	old := &n.Address
	if !is4 {
		old = &n.Address6
	}
	next := n.Segment.Addr(is4, number)
	err := n.IP(
		strings.TrimSuffix(addressLine("del", *old, "eth0"), " nodad"),
		addressLine("add", next, "eth0"),
		DefaultRoute(n.Segment.Router(is4), "eth0"),
	)
	*old = next
	return err
}

// Flap takes eth0 down and up again. What the kernel forgets meanwhile, the
// default routes and IPv6 addresses, comes back as a network manager brings it.
func (n *Node) Flap() error {
	lines := []string{"link set eth0 down", "link set eth0 up"}
	if n.Address6.IsValid() {
		lines = append(lines, addressLine("replace", n.Address6, "eth0"))
	}
	return n.IP(append(lines, n.lab.defaultLines(n.Segment, "eth0")...)...)
}
