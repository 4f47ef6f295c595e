package main

import (
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// nodeBridge is the bridge that the node file asks for. The node's own address
// in a subnet is the first after the network's.
func nodeBridge(node subnet.NodeFile) pod.Bridge {
	b := pod.Bridge{Name: node.Bridge, Networks: node.Networks, MTU: node.MTU}
	if node.BridgeMAC != (subnet.MAC{}) {
		b.Hardware = node.BridgeMAC[:]
	}
	for _, s := range node.Subnets {
		b.Gateways = append(b.Gateways, netip.PrefixFrom(s.Addr().Next(), s.Bits()))
	}
	return b
}

func gateways(b pod.Bridge) (list []netip.Addr) {
	for _, g := range b.Gateways {
		list = append(list, g.Addr())
	}
	return list
}

// inSubnets gives addresses the length of the subnet that they are in.
func inSubnets(addrs []netip.Addr, subnets []netip.Prefix) (list []netip.Prefix) {
	for _, a := range addrs {
		for _, s := range subnets {
			if s.Contains(a) {
				list = append(list, netip.PrefixFrom(a, s.Bits()))
			}
		}
	}
	return list
}

// result says what was made, after what the plugins before us made. Only the
// pod's own addresses are listed: CRI-O takes every entry of ips for the pod's.
func (a addition) result(bridge pod.Bridge, ensured pod.Ensured, link pod.Result) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if a.prev != nil {
		r = a.prev
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: bridge.Name, Mac: ensured.MAC.String(), Mtu: bridge.MTU},
		&current.Interface{Name: link.HostName, Mac: link.HostMAC.String(), Mtu: a.pod.MTU},
		&current.Interface{Name: a.pod.IfName, Mac: link.PodMAC.String(), Mtu: a.pod.MTU, Sandbox: a.pod.Netns})
	inPod := len(r.Interfaces) - 1
	for _, p := range a.pod.Addrs {
		ip := &current.IPConfig{Interface: new(inPod), Address: ipNet(p)}
		for _, g := range a.pod.Gateways {
			if p.Masked().Contains(g) {
				ip.Gateway = g.AsSlice()
			}
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, g := range a.pod.Gateways {
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(netip.PrefixFrom(unspecified(g), 0)), GW: g.AsSlice()})
	}
	if r.DNS.IsEmpty() {
		r.DNS = a.conf.DNS
	}
	return r
}

func unspecified(of netip.Addr) netip.Addr {
	if of.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is ipNet's inverse; ok is false for what no result should hold.
func prefix(n net.IPNet) (p netip.Prefix, ok bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if a = a.Unmap(); !ok || bits > a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}
