package vxlan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
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
