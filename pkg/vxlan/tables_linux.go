package vxlan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// State reads the device's tables. Entries that are wrong in a way that State
// cannot express count as absent: Reconcile then sets them anew.
func (d *Device) State() (State, error) {
	s := Empty()
	clear(d.obscured)
	clear(d.plain6)
	err := d.readRoutes(s.Routes)
	if d.cfg.Name != "" {
		err = errors.Join(d.readFDB(s.FDB), d.readNeighs(s), err)
	}
	return s, err
}

func (d *Device) readFDB(fdb map[MAC]netip.Addr) error {
	restart := func() { clear(fdb) }
	return d.eachNeighbour(unix.AF_BRIDGE, restart, func(n neighbour) {
		// Without NTF_SELF it is a bridge's entry for the device as its port.
		if n.flags&unix.NTF_SELF == 0 || len(n.mac) != len(MAC{}) || MAC(n.mac) == (MAC{}) {
			return
		}
		mac := MAC(n.mac)
		switch {
		case !n.ip.IsValid():
			// A nexthop group: the kernel accepts an address in its place and
			// changes nothing.
			fdb[mac] = netip.Addr{}
			d.obscured[mac] = true
		case n.other || n.state&permanent == 0:
			// It has a port of its own, or ages: an invalid address differs
			// from whatever is wanted.
			fdb[mac] = netip.Addr{}
		default:
			fdb[mac] = n.ip.Unmap()
		}
	})
}

func (d *Device) readNeighs(s State) error {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		read := Empty()
		err := d.eachNeighbour(fam, func() { read = Empty() }, func(n neighbour) {
			ip := n.ip.Unmap()
			switch {
			case !ip.IsValid():
			case n.state&permanent != 0 && len(n.mac) == len(MAC{}):
				read.Neighs[ip] = MAC(n.mac)
			default:
				// In flight, or somebody's that will not last: wanted or not,
				// it is no entry of ours.
				read.Asked[ip] = true
			}
		})
		if err != nil {
			return err
		}
		maps.Copy(s.Neighs, read.Neighs)
		maps.Copy(s.Asked, read.Asked)
	}
	return nil
}

// eachNeighbour dumps one table of the device.
func (d *Device) eachNeighbour(fam int, restart func(), fn func(neighbour)) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	if fam == unix.AF_BRIDGE {
		// The kernel takes the filter of an FDB dump from an ifinfomsg.
		info := nl.NewIfInfomsg(unix.AF_BRIDGE)
		info.Index = int32(d.link.Index)
		req.AddData(info)
	} else {
		req.AddData(&netlink.Ndmsg{Family: uint8(fam)})
		req.AddData(nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(d.link.Index))))
	}
	err := d.conn.Dump(req, restart, func(body []byte) {
		if n, ok := parseNeighbour(body); ok && n.index == d.link.Index && int(n.family) == fam {
			fn(n)
		}
	})
	if err != nil {
		return fmt.Errorf("read neighbours of %s: %w", d.cfg.Name, err)
	}
	return nil
}

func (d *Device) readRoutes(routes map[netip.Prefix]Route) error {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		type found struct {
			Route
			ours, first bool
		}
		read := map[netip.Prefix]found{}
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(fam)}})
		err := d.conn.Dump(req, func() { clear(read) }, func(body []byte) {
			r, ok := parseRoute(body)
			if !ok || r.table != unix.RT_TABLE_MAIN || r.tos != 0 {
				return
			}
			_, seen := read[r.dst]
			switch {
			case r.protocol == Protocol && r.index == d.link.Index && r.index != 0:
				via := r.via
				if r.flags&unix.RTNH_F_ONLINK == 0 {
					via = netip.Addr{} // without onlink it may not resolve: set anew
				}
				read[r.dst] = found{Route{Via: via}, true, !seen}
			case d.isDirect(r):
				read[r.dst] = found{Route{Via: r.via, Direct: true}, true, !seen}
			case !seen && r.metric == 0:
				read[r.dst] = found{}
			}
		})
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		for dst, f := range read {
			if !f.ours {
				continue
			}
			routes[dst] = f.Route
			if f.Direct && dst.Addr().Is6() {
				d.plain6[dst] = true
			}
			if !f.first {
				// Somebody's route for the same subnet stands in front.
				routes[dst] = Route{}
				d.obscured[dst] = true
			}
		}
	}
	return nil
}

// isDirect reports whether r is a plain route of this device's peers. Those through a
// tunnel are onlink, and so are those of another Device on this node.
func (d *Device) isDirect(r route) bool {
	return r.protocol == Protocol && r.flags&unix.RTNH_F_ONLINK == 0 && r.via.IsValid() &&
		(d.cfg.Alone || r.via.Is4() == d.cfg.Local.Is4())
}
