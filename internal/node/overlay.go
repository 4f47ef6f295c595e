package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

// An overlay is what reaches peers over one underlay family: a VXLAN device, or
// with host-gw plain routes alone. A node has one or two, and no code but choose
// knows of which family they are.
type overlay struct {
	device *vxlan.Device
	want   vxlan.State
	nodeOf map[vxlan.MAC]string
}

func (o *overlay) is4() bool { return o.device.Config().Local.Is4() }

// deviceName is the name of the device over an underlay of IPv6: flannel.1 and
// flannel-v6.1 are what flannel calls the two.
func deviceName(name string, is4 bool) string {
	if is4 {
		return name
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i] + v6Mark + name[i:]
	}
	return name + v6Mark
}

const v6Mark = "-v6"

// overlayConfig is what the overlay's device should be, as far as the underlay
// and the network say it.
func (l *loop) overlayConfig(end vxlan.End) vxlan.Config {
	is4 := end.Local.Is4()
	c := vxlan.Config{Local: end.Local, MTU: l.mtu, Networks: l.networks(), Alone: len(l.underlay.Ends) == 1}
	if l.tunnels() {
		c.Name = deviceName(l.cfg.Device, is4)
		c.VNI, c.Port = l.network.Backend.VNI, l.network.Backend.Port
		c.MAC = vxlan.MAC(subnet.VTEPMAC(l.cfg.Node, is4))
	}
	for _, s := range l.snapshot.Own.Subnets {
		// The address that pods see this node's packets come from. It is on the
		// device that packets to pods of its family leave by.
		if own, _ := l.carrier(s); own == is4 {
			c.Addrs = append(c.Addrs, netip.PrefixFrom(s.Addr(), s.Addr().BitLen()))
		}
	}
	if !l.tunnels() {
		c.Addrs = nil
	}
	return c
}

// tunnels reports whether peers are reached through VXLAN at all.
func (l *loop) tunnels() bool { return l.network.Backend.Type == subnet.TypeVXLAN }

// carrier says over which underlay family packets of a subnet leave this node, as
// far as it is this node's to choose: their own if it has that.
func (l *loop) carrier(s netip.Prefix) (is4, ok bool) {
	for _, is4 := range []bool{s.Addr().Is4(), !s.Addr().Is4()} {
		if _, ok := l.underlay.End(is4); ok {
			return is4, true
		}
	}
	return false, false
}

// configure makes the overlays those of the underlay's ends. One whose end is gone
// stays as it is, without peers: its address may come back.
func (l *loop) configure() error {
	var errs []error
	for _, end := range l.underlay.Ends {
		c := l.overlayConfig(end)
		if o := l.overlay(end.Local.Is4()); o != nil {
			errs = append(errs, o.device.SetConfig(c))
			continue
		}
		d, err := vxlan.Open(c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.overlays = append(l.overlays, &overlay{device: d, want: vxlan.Empty()})
	}
	slices.SortFunc(l.overlays, func(a, b *overlay) int { // IPv4 first
		if a.is4() {
			return -1
		}
		return 1
	})
	return errors.Join(errs...)
}

// overlay returns the overlay of an underlay family, nil if there is none.
func (l *loop) overlay(is4 bool) *overlay {
	for _, o := range l.overlays {
		if o.is4() == is4 {
			return o
		}
	}
	return nil
}

// sortPeers turns leases into the peers of each underlay family.
func (l *loop) sortPeers(leases []subnet.Lease) map[bool][]vxlan.Peer {
	var own []bool
	for _, e := range l.underlay.Ends {
		own = append(own, e.Local.Is4())
	}
	peers := peersOf(leases, own)
	for is4, list := range peers {
		peers[is4] = slices.DeleteFunc(list, func(p vxlan.Peer) bool { return l.unreachable[p.Underlay] != "" })
	}
	if !l.network.Backend.DirectRouting && l.tunnels() {
		return peers
	}
	for _, o := range l.overlays {
		l.direct(o, peers[o.is4()])
	}
	return peers
}

// findUnreachable looks which addresses no peer can have. What the store says of a
// peer is not believed where this node knows better.
func (l *loop) findUnreachable() {
	bad, err := vxlan.Unreachable()
	if err != nil {
		l.log.Error("addresses that no peer can have are not known", "error", err)
		return
	}
	l.unreachable = bad
}

// strangers names the leases that lead nowhere.
func (l *loop) strangers() (all []string) {
	for _, lease := range l.leases {
		for _, v := range lease.VTEPs {
			if why := l.unreachable[v.Underlay]; why != "" {
				all = append(all, fmt.Sprintf("lease of %s leads to %s, which %s: it is not reached", nodeName(lease), v.Underlay, why))
			}
		}
	}
	return all
}

// direct marks the peers that plain routes reach, by what the routing table says
// now.
func (l *loop) direct(o *overlay, peers []vxlan.Peer) {
	addrs := make([]netip.Addr, len(peers))
	for i, p := range peers {
		addrs[i] = p.Underlay
	}
	on, err := o.device.OnLink(addrs)
	if err != nil {
		l.log.Error("peers on the same link are not known, they are reached through the tunnel", "error", err)
		return
	}
	for i, p := range peers {
		peers[i].Direct = on[p.Underlay] && p.Subnet.Addr().Is4() == p.Underlay.Is4()
	}
}

// ensureOverlays makes the devices right, and returns what was changed, in words.
func (l *loop) ensureOverlays() (did []string, err error) {
	var errs []error
	for _, o := range l.overlays {
		more, err := o.device.Ensure()
		did, errs = append(did, more...), append(errs, err)
	}
	return did, errors.Join(errs...)
}

// deviceNames are the names of the devices that the node is to have.
func (l *loop) deviceNames() (names []string) {
	for _, o := range l.overlays {
		if name := o.device.Config().Name; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// reconcileOverlays makes the tables right.
func (l *loop) reconcileOverlays() ([]vxlan.Op, error) {
	kernels := make([]vxlan.Kernel, len(l.overlays))
	wants := make([]func(vxlan.State) vxlan.State, len(l.overlays))
	for i, o := range l.overlays {
		kernels[i], wants[i] = o.device, vxlan.Exactly(o.want)
		if l.cfg.Resolve == OnMiss {
			wants[i] = o.want.OnMiss
		}
	}
	ops, err := vxlan.ReconcileAll(kernels, wants)
	l.count(ops, err)
	return ops, err
}

// scopes is what the monitor looks at.
func (l *loop) scopes() (all []vxlan.Scope) {
	first := vxlan.Scope{Bridge: l.bridgeIndex, Names: []string{l.cfg.Bridge}, Networks: l.networks(), Gateways: l.bridge().Gateways}
	for i, o := range l.overlays {
		s := vxlan.Scope{}
		if i == 0 {
			s = first
		} else {
			all[0].Gateways = append(all[0].Gateways, o.device.Config().Addrs...)
		}
		// Of links and FDB entries the kernel does not say who changed them: what is
		// as wanted is no news. Nobody writes to want; derive replaces it.
		s.Index, s.Device, s.Want = o.device.Link().Index, o.device.Config(), o.want
		s.Ports = []uint32{o.device.Port()}
		if s.Device.Name != "" {
			s.Names = append(s.Names, s.Device.Name)
		}
		all = append(all, s)
	}
	return all
}

// close closes the sockets. Devices, tables and rules stay.
func (l *loop) close() {
	_ = l.firewall.Close()
	for _, o := range l.overlays {
		_ = o.device.Close()
	}
}

// vtepOf returns the endpoint of l over an underlay family.
func vtepOf(l subnet.Lease, is4 bool) (subnet.VTEP, bool) {
	i := slices.IndexFunc(l.VTEPs, func(v subnet.VTEP) bool { return v.Underlay.Is4() == is4 })
	if i < 0 {
		return subnet.VTEP{}, false
	}
	return l.VTEPs[i], true
}

// choose returns the endpoint by which a subnet behind l is reached: over the
// subnet's own family if both nodes have it, else over the other one. Both come
// to the same, for each knows the other's endpoints.
func choose(l subnet.Lease, s netip.Prefix, own []bool) (subnet.VTEP, bool) {
	for _, is4 := range []bool{s.Addr().Is4(), !s.Addr().Is4()} {
		if v, ok := vtepOf(l, is4); ok && slices.Contains(own, is4) {
			return v, true
		}
	}
	return subnet.VTEP{}, false
}

// peersOf turns leases into the peers of each underlay family that the node has.
func peersOf(leases []subnet.Lease, own []bool) map[bool][]vxlan.Peer {
	peers := map[bool][]vxlan.Peer{}
	for _, l := range leases {
		for _, s := range l.Subnets {
			if v, ok := choose(l, s, own); ok {
				is4 := v.Underlay.Is4()
				peers[is4] = append(peers[is4], vxlan.Peer{Subnet: s, Gateway: s.Addr(), MAC: vxlan.MAC(v.MAC), Underlay: v.Underlay})
			}
		}
	}
	return peers
}

// whyNot says why a subnet behind a lease is not reached; "" if it is.
func (l *loop) whyNot(lease subnet.Lease, s netip.Prefix, own []bool) string {
	v, ok := choose(lease, s, own)
	switch {
	case ok && l.unreachable[v.Underlay] != "":
		return fmt.Sprintf("an underlay address of its own: %s %s", v.Underlay, l.unreachable[v.Underlay])
	case !ok:
		return "a tunnel endpoint of our underlay's family in its lease"
	case !l.tunnels() && v.Underlay.Is4() != s.Addr().Is4():
		return fmt.Sprintf("an underlay address of %s's family, as host-gw needs it", s)
	}
	return ""
}
