package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Flow is an entry of the connection tracking table, as its first packet was.
type Flow struct {
	Protocol uint8 // IANA's number
	From, To netip.AddrPort
}

// Flows reads the namespace's connection tracking table.
func (n *Namespace) Flows() (flows []Flow, err error) {
	err = n.Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			// Entries that end while the table is read are no error here.
			list, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil && list == nil {
				return fmt.Errorf("read connection tracking of %s: %w", n.Name, err)
			}
			for _, f := range list {
				from, _ := netip.AddrFromSlice(f.Forward.SrcIP)
				to, _ := netip.AddrFromSlice(f.Forward.DstIP)
				flows = append(flows, Flow{
					Protocol: f.Forward.Protocol,
					From:     netip.AddrPortFrom(from.Unmap(), f.Forward.SrcPort),
					To:       netip.AddrPortFrom(to.Unmap(), f.Forward.DstPort),
				})
			}
		}
		return nil
	})
	return flows, err
}
