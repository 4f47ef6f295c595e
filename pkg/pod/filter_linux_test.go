package pod

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// testMAC is that of the i-th pod.
func testMAC(i int) net.HardwareAddr { return MACFor(testAttachment(&netlab.Namespace{}, i).Addrs) }

// A sent frame of pod 7, 10.244.1.7 and fd00:1::7, and whether the filter is to let
// it pass. Some the kernel drops without a filter too.
type sent struct {
	name  string
	frame []byte
	pass  bool
	sick  bool
}

const (
	own4Addr, other4Addr = "10.244.1.7", "10.244.1.99"
	own6Addr, other6Addr = "fd00:1::7", "fd00:1::99"
	ownLL                = "fe80::858:aff:fef4:107"
	otherLL              = "fe80::858:aff:fef4:101" // the bridge's
	strangeLL            = "fe80::1234:5678:9abc:def0"
	allNodes             = "ff02::1"
)

// sentFrames are all, each with the mark inside: netfilter cuts off what is behind a
// packet.
func sentFrames(mark []byte) []sent {
	me := testMAC(7)
	six := func(packet ...[]byte) []byte { return eth(everybody, me, 0x86dd, packet...) }
	const icmp = unix.IPPROTO_ICMPV6
	return []sent{
		{"own IPv4", eth(everybody, me, 0x0800, ipv4(own4Addr, "10.244.1.8", 17, mark)), true, false},
		{"own IPv4, broadcast", eth(everybody, me, 0x0800, ipv4(own4Addr, "255.255.255.255", 17, mark)), true, false},
		{"other's IPv4", eth(everybody, me, 0x0800, ipv4(other4Addr, "10.244.1.8", 17, mark)), false, false},
		{"IPv4 of the world", eth(everybody, me, 0x0800, ipv4("192.0.2.1", "10.244.1.8", 17, mark)), false, false},
		{"IPv4 without address", eth(everybody, me, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17, mark)), false, false},
		{"own IPv4 by other's MAC", eth(everybody, otherMAC, 0x0800, ipv4(own4Addr, "10.244.1.8", 17, mark)), false, false},
		{"own IPv4 by the gateway's MAC", eth(everybody, testBridge().MAC(), 0x0800, ipv4(own4Addr, "10.244.1.8", 17, mark)), false, false},
		{"IPv4 cut short", eth(everybody, me, 0x0800, []byte{0x45, 0, 0, 20}, mark), false, true},

		{"ARP request", eth(everybody, me, 0x0806, arp(1, me, own4Addr, "10.244.1.8"), mark), true, false},
		{"ARP reply", eth(testMAC(8), me, 0x0806, arp(2, me, own4Addr, "10.244.1.8"), mark), true, false},
		{"gratuitous ARP", eth(everybody, me, 0x0806, arp(1, me, own4Addr, own4Addr), mark), true, false},
		{"ARP probe", eth(everybody, me, 0x0806, arp(1, me, "0.0.0.0", own4Addr), mark), true, false},
		{"ARP probe for other's", eth(everybody, me, 0x0806, arp(1, me, "0.0.0.0", other4Addr), mark), false, false},
		{"ARP by other's address", eth(everybody, me, 0x0806, arp(2, me, other4Addr, "10.244.1.8"), mark), false, false},
		{"ARP by the gateway's", eth(everybody, me, 0x0806, arp(2, me, "10.244.1.1", "10.244.1.8"), mark), false, false},
		{"ARP with other's MAC inside", eth(everybody, me, 0x0806, arp(2, otherMAC, own4Addr, "10.244.1.8"), mark), false, false},
		{"ARP with other's MAC outside", eth(everybody, otherMAC, 0x0806, arp(2, me, own4Addr, "10.244.1.8"), mark), false, false},
		{"ARP of another format", eth(everybody, me, 0x0806, be16(1), be16(0x0800), []byte{8, 4}, be16(2), make([]byte, 24), mark), false, false},
		{"RARP", eth(everybody, me, 0x8035, arp(3, me, own4Addr, own4Addr), mark), false, false},

		{"own IPv6", six(ipv6(own6Addr, "fd00:1::8", 17, mark)), true, false},
		{"other's IPv6", six(ipv6(other6Addr, "fd00:1::8", 17, mark)), false, false},
		{"own IPv6 by other's MAC", eth(everybody, otherMAC, 0x86dd, ipv6(own6Addr, "fd00:1::8", 17, mark)), false, false},
		{"own link-local", six(ipv6(ownLL, allNodes, 17, mark)), true, false},
		{"other's link-local", six(ipv6(otherLL, allNodes, 17, mark)), false, false},
		{"IPv6 without address", six(ipv6("::", allNodes, 17, mark)), false, false},
		{"advert of own", six(ipv6(own6Addr, allNodes, icmp, nd(136, own6Addr), mark)), true, false},
		{"advert of own link-local", six(ipv6(ownLL, allNodes, icmp, nd(136, ownLL), mark)), true, false},
		{"advert of other's", six(ipv6(own6Addr, allNodes, icmp, nd(136, other6Addr), mark)), false, false},
		{"advert of the gateway's", six(ipv6(ownLL, allNodes, icmp, nd(136, "fd00:1::1"), mark)), false, false},
		{"advert of other's behind a header", six(ipv6(own6Addr, allNodes, 0, hopByHop(icmp), nd(136, other6Addr), mark)), false, false},
		{"advert of other's in a fragment", six(ipv6(own6Addr, allNodes, 44, fragment(icmp, 0, true), nd(136, other6Addr), mark)), false, false},
		{"advert by other's address", six(ipv6(other6Addr, allNodes, icmp, nd(136, own6Addr), mark)), false, false},
		{"advert cut short", six(ipv6(own6Addr, allNodes, icmp, []byte{136, 0, 0, 0}, mark)), false, false},
		{"later fragment", six(ipv6(own6Addr, "fd00:1::8", 44, fragment(icmp, 64, false), make([]byte, 16), mark)), true, false},
		{"other's later fragment", six(ipv6(other6Addr, "fd00:1::8", 44, fragment(icmp, 64, false), make([]byte, 16), mark)), false, false},
		{"solicitation", six(ipv6(own6Addr, allNodes, icmp, nd(135, "fd00:1::8"), mark)), true, false},
		{"solicitation by other's address", six(ipv6(other6Addr, allNodes, icmp, nd(135, "fd00:1::8"), mark)), false, false},
		{"solicitation by a strange link-local", six(ipv6(strangeLL, allNodes, icmp, nd(135, "fd00:1::8"), mark)), false, false},
		{"address detection", six(ipv6("::", allNodes, icmp, nd(135, ownLL), mark)), true, false},
		{"address detection of other's", six(ipv6("::", allNodes, icmp, nd(135, otherLL), mark)), false, false},
		{"router solicitation", six(ipv6(ownLL, "ff02::2", icmp, icmpv6(133, make([]byte, 4)), mark)), true, false},
		{"router solicitation without address", six(ipv6("::", "ff02::2", icmp, icmpv6(133, make([]byte, 4)), mark)), true, false},
		{"router advertisement", six(ipv6(ownLL, allNodes, icmp, icmpv6(134, make([]byte, 12)), mark)), false, false},
		{"router advertisement behind a header", six(ipv6(ownLL, allNodes, 0, hopByHop(icmp), icmpv6(134, make([]byte, 12)), mark)), false, false},
		{"redirect", six(ipv6(ownLL, allNodes, icmp, icmpv6(137, make([]byte, 36)), mark)), false, false},
		{"MLD report", six(ipv6(ownLL, "ff02::16", 0, hopByHop(icmp), icmpv6(143, make([]byte, 4)), mark)), true, false},
		{"MLD report without address", six(ipv6("::", "ff02::16", 0, hopByHop(icmp), icmpv6(143, make([]byte, 4)), mark)), true, false},
		{"MLD report by a strange link-local", six(ipv6(strangeLL, "ff02::16", 0, hopByHop(icmp), icmpv6(131, make([]byte, 20)), mark)), true, false},
		{"MLD report by a strange link-local and MAC", eth(everybody, otherMAC, 0x86dd, ipv6(strangeLL, "ff02::16", 0, hopByHop(icmp), icmpv6(131, make([]byte, 20)), mark)), false, false},
		{"ping by a strange link-local", six(ipv6(strangeLL, allNodes, icmp, icmpv6(128, make([]byte, 4)), mark)), false, false},

		{"VLAN tag", eth(everybody, me, 0x8100, be16(10), be16(0x0800), ipv4(own4Addr, "10.244.1.8", 17, mark)), false, false},
		{"priority tag", eth(everybody, me, 0x8100, be16(0), be16(0x0800), ipv4(own4Addr, "10.244.1.8", 17, mark)), false, false},
		{"service tag", eth(everybody, me, 0x88a8, be16(10), be16(0x8100), be16(10), be16(0x0800), ipv4(own4Addr, "10.244.1.8", 17, mark)), false, false},
		{"MPLS", eth(everybody, me, 0x8847, make([]byte, 40), mark), false, false},
		{"LLC", eth(everybody, me, 80, make([]byte, 80-len(mark)), mark), false, false},
		{"spanning tree", eth(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, me, 80, []byte{0x42, 0x42, 3}, make([]byte, 35), mark), false, false},
	}
}

// What is not the pod's own is heard by nobody, what is by all, and without the filter
// all is.
func TestFilteredFrames(t *testing.T) {
	for _, filter := range []bool{true, false} {
		node, seven, eight := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
		e := ensure(t, node, testBridge())
		a := testAttachment(seven, 7)
		a.Filter = filter
		attach(t, node, a, e)
		attach(t, node, testAttachment(eight, 8), e)
		pod, bridge, other := newWire(t, seven, "eth0"), newWire(t, node, "cni0"), newWire(t, eight, "eth0")
		dropped := uint64(0)
		for i := range sentFrames(nil) {
			mark, fence := newMark(), newMark()
			s := sentFrames(mark)[i]
			pod.send(s.frame)
			pod.send(eth(everybody, testMAC(7), 0x0800, ipv4(own4Addr, "10.244.1.8", 253, fence)))
			pass := s.pass || !filter && !s.sick
			if filter && !s.pass {
				dropped++
			}
			for name, w := range map[string]wire{"the other pod": other, "the node": bridge} {
				unicast := s.frame[0]&1 == 0 && w == bridge
				if heard := w.hears(mark, fence); heard != (pass && !unicast) {
					t.Errorf("filter %t, %s: heard by %s: %t", filter, s.name, name, heard)
				}
			}
			in(t, node, func() error {
				n, err := Spoofed()
				if n != dropped {
					t.Errorf("filter %t, %s: %d frames dropped, want %d", filter, s.name, n, dropped)
					dropped = n
				}
				return err
			})
		}
	}
}
