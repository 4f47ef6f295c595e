package pod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// Check compares the kernel with the attachment and changes nothing. More than
// is asked for, such as another plugin's addresses, routes or qdiscs, is no
// difference. An MTU of 0 is not compared. The error joins one text for each
// difference.
func Check(a Attachment, bridge string) error {
	ns, err := openNetns(a.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	host, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	inside, err := rtnl.DialIn(ns)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", a.Netns, err)
	}
	defer func() { _ = inside.Close() }()
	peer, gatewayMAC, err := a.checkHost(host, bridge)
	return errors.Join(err, a.checkInside(inside, peer, gatewayMAC))
}

// checkHost looks at the node's end and returns the index of the other, and the
// bridge's MAC; nil if it is not known.
func (a Attachment) checkHost(c *rtnl.Conn, bridge string) (peer int, gatewayMAC net.HardwareAddr, err error) {
	name := HostName(a.Container, a.IfName)
	l, err := getLink(c, name)
	if err != nil {
		return 0, nil, fmt.Errorf("link %s: %w", name, err)
	}
	master, err := getLink(c, bridge)
	if err != nil {
		return l.Peer, nil, fmt.Errorf("bridge %s: %w", bridge, err)
	}
	var wrong []error
	if p := port(l); !l.ours() || p.Container != a.Container || p.IfName != a.IfName {
		wrong = append(wrong, fmt.Errorf("link %s has group %#x and alias %q, want %#x and %s/%s", name, l.Group, l.Alias, Group, a.Container, a.IfName))
	}
	if !l.Up {
		wrong = append(wrong, fmt.Errorf("link %s is down, want it up", name))
	}
	if a.Filter && l.Group != GuardedGroup {
		wrong = append(wrong, fmt.Errorf("link %s has group %#x, want %#x: what the pod sends is not filtered", name, l.Group, GuardedGroup))
	}
	switch {
	case l.Master != master.Index:
		wrong = append(wrong, fmt.Errorf("link %s has master %d, want bridge %s (%d)", name, l.Master, bridge, master.Index))
	case l.Group == GuardedGroup && l.Forwards&forwardLLDP == 0:
		wrong = append(wrong, fmt.Errorf("link %s hands frames to 01:80:c2:00:00:0e to the node, want them forwarded and filtered", name))
	case l.Hairpin != a.Hairpin:
		wrong = append(wrong, fmt.Errorf("link %s has hairpin mode %t, want %t", name, l.Hairpin, a.Hairpin))
	}
	return l.Peer, master.MAC, errors.Join(wrong...)
}

// checkInside looks at the pod's end. A peer of 0 and a MAC of nil are not compared.
func (a Attachment) checkInside(c *rtnl.Conn, peer int, gatewayMAC net.HardwareAddr) error {
	l, err := getLink(c, a.IfName)
	if err != nil {
		return fmt.Errorf("interface %s in the pod: %w", a.IfName, err)
	}
	var wrong []error
	if peer != 0 && l.Index != peer {
		wrong = append(wrong, fmt.Errorf("interface %s has index %d, want %d, the other end of %s", a.IfName, l.Index, peer, HostName(a.Container, a.IfName)))
	}
	if !l.Up {
		wrong = append(wrong, fmt.Errorf("interface %s is down, want it up", a.IfName))
	}
	if a.MAC != nil && !bytes.Equal(l.MAC, a.MAC) {
		wrong = append(wrong, fmt.Errorf("interface %s has MAC %s, want %s", a.IfName, l.MAC, a.MAC))
	}
	if a.MTU != 0 && l.MTU != a.MTU {
		wrong = append(wrong, fmt.Errorf("interface %s has MTU %d, want %d", a.IfName, l.MTU, a.MTU))
	}
	have, err := addresses(c, l.Index)
	if err != nil {
		wrong = append(wrong, fmt.Errorf("read addresses of %s: %w", a.IfName, err))
	}
	for _, want := range a.Addrs {
		if !slices.ContainsFunc(have, func(h bridgeAddress) bool { return h.Prefix == want }) {
			wrong = append(wrong, fmt.Errorf("interface %s lacks address %s", a.IfName, want))
		}
	}
	routes, err := defaultRoutes(c, l.Index)
	if err != nil {
		wrong = append(wrong, fmt.Errorf("read routes: %w", err))
	}
	for _, want := range a.Gateways {
		if !slices.Contains(routes, want) {
			wrong = append(wrong, fmt.Errorf("interface %s lacks the default route via %s", a.IfName, want))
		}
	}
	return errors.Join(append(wrong, a.checkNeighbours(c, l.Index, gatewayMAC))...)
}

// checkNeighbours looks whether frames to the gateways go to the bridge. An entry
// that the kernel itself may correct, and one that is not there, is no difference.
func (a Attachment) checkNeighbours(c *rtnl.Conn, index int, gatewayMAC net.HardwareAddr) error {
	if gatewayMAC == nil {
		return nil
	}
	fixed := map[netip.Addr]net.HardwareAddr{}
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&ndMsg{})
	err := c.Dump(req, func() { clear(fixed) }, func(body []byte) {
		if addr, mac, at := parseFixedNeighbour(body); at == index {
			fixed[addr] = mac
		}
	})
	if err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	var wrong []error
	for _, g := range a.Gateways {
		if mac, ok := fixed[g]; ok && !bytes.Equal(mac, gatewayMAC) {
			wrong = append(wrong, fmt.Errorf("interface %s has MAC %s for gateway %s, want %s, the bridge's", a.IfName, mac, g, gatewayMAC))
		}
	}
	return errors.Join(wrong...)
}

// parseFixedNeighbour reads the body of an RTM_NEWNEIGH; index is 0 for an entry that
// the kernel may change.
func parseFixedNeighbour(body []byte) (addr netip.Addr, mac net.HardwareAddr, index int) {
	const size = int(unsafe.Sizeof(ndMsg{}))
	if len(body) < size || binary.NativeEndian.Uint16(body[8:])&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
		return addr, nil, 0
	}
	rtnl.EachAttr(body[size:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_DST:
			addr, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			mac = append(net.HardwareAddr(nil), v...)
		}
	})
	return addr, mac, int(int32(binary.NativeEndian.Uint32(body[4:])))
}

// defaultRoutes returns the gateways of the default routes that leave by a link.
func defaultRoutes(c *rtnl.Conn, index int) (gateways []netip.Addr, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{})
	err = c.Dump(req, func() { gateways = nil }, func(body []byte) {
		if g, out, ok := parseDefaultRoute(body); ok && out == index {
			gateways = append(gateways, g)
		}
	})
	return gateways, err
}

// parseDefaultRoute reads the body of an RTM_NEWROUTE; ok only for a default
// route with a gateway.
func parseDefaultRoute(body []byte) (gateway netip.Addr, index int, ok bool) {
	if len(body) < unix.SizeofRtMsg || nl.DeserializeRtMsg(body).Dst_len != 0 {
		return netip.Addr{}, 0, false
	}
	rtnl.EachAttr(body[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_GATEWAY:
			gateway, ok = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			if len(v) >= 4 {
				index = int(binary.NativeEndian.Uint32(v))
			}
		}
	})
	return gateway, index, ok
}
