package vxlan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// OnLink returns those of the addresses that this node reaches without a gateway,
// by its main routing table: a plain route through them leads to what is behind.
// Only addresses of the family of Config.Local are looked for, and rules that
// choose another table are not asked.
func (d *Device) OnLink(addrs []netip.Addr) (map[netip.Addr]bool, error) {
	var table []route
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family(d.cfg.Local))}})
	err := d.conn.Dump(req, func() { table = nil }, func(body []byte) {
		// Ours lead to pods, and there may be thousands.
		if r, ok := parseRoute(body); ok && r.table == unix.RT_TABLE_MAIN && r.protocol != Protocol && r.tos == 0 {
			table = append(table, r)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	return onLink(table, addrs), nil
}

// onLink is OnLink by a table: the longest prefix counts, and of these the
// lowest metric.
func onLink(table []route, addrs []netip.Addr) map[netip.Addr]bool {
	slices.SortStableFunc(table, func(a, b route) int {
		return cmp.Or(b.dst.Bits()-a.dst.Bits(), cmp.Compare(a.metric, b.metric))
	})
	on := map[netip.Addr]bool{}
	for _, a := range addrs {
		i := slices.IndexFunc(table, func(r route) bool { return r.dst.Contains(a) })
		if i >= 0 && table[i].kind == unix.RTN_UNICAST && !table[i].via.IsValid() && table[i].index != 0 {
			on[a] = true
		}
	}
	return on
}

// Unreachable returns the addresses that no other node can have, and why: this node's
// own, and those that mean all of a link. A tunnel that leads to one of them would
// loop, or shower a network.
func Unreachable() (map[netip.Addr]string, error) {
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	bad := map[netip.Addr]string{}
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(fam)}})
		found := map[netip.Addr]string{}
		err := conn.Dump(req, func() { clear(found) }, func(body []byte) {
			r, ok := parseRoute(body)
			switch host := ok && r.dst.IsSingleIP(); {
			case host && r.kind == unix.RTN_LOCAL:
				found[r.dst.Addr()] = "is this node's own"
			case host && r.kind == unix.RTN_BROADCAST:
				found[r.dst.Addr()] = "is a link's broadcast address"
			case host && r.kind == unix.RTN_ANYCAST, ok && r.kind == unix.RTN_UNICAST && r.protocol == unix.RTPROT_KERNEL && r.dst.Addr().Is4() && r.dst.Bits() < 31:
				found[r.dst.Addr()] = "is a link's network address"
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		maps.Copy(bad, found)
	}
	return bad, nil
}
