package pod

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// Some of what netlink is told the kernel does later, in workers: it drops
// packets on a link whose carrier it has not seen yet, and does not answer for
// an IPv6 address that was just set. On a busy machine that takes long enough
// for a pod's first packets to be lost. So nothing here returns before it is done.

// settlePoll and settleBound are how often and how long it is asked for. The
// worker needs some 50 µs where a processor is free.
const (
	settlePoll  = 50 * time.Microsecond
	settleBound = 100 * time.Millisecond
)

// settleLinks makes the kernel act on the carrier that links have just got:
// reading a link does that first (linkwatch_sync_dev in rtnl_getlink, Linux
// 6.9). A port comes before its bridge, which has the carrier of its ports.
func settleLinks(c *rtnl.Conn, indices ...int) error {
	for _, index := range indices {
		if err := c.Get(newLink(unix.RTM_GETLINK, 0, index), func([]byte) {}); err != nil {
			return fmt.Errorf("read link %d: %w", index, err)
		}
	}
	return nil
}

// settleAddresses waits until IPv6 addresses are routed to this host: the
// kernel's worker inserts these routes last. It gives up in silence, for the
// worker does its job without being watched.
func settleAddresses(c *rtnl.Conn, addrs []netip.Prefix) {
	deadline := time.Now().Add(settleBound)
	for _, a := range addrs {
		for a.Addr().Is6() && !isLocal(c, a.Addr()) && time.Now().Before(deadline) {
			// time.Sleep waits for a whole millisecond where nothing else runs.
			_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(settlePoll)}, nil)
		}
	}
}

// isLocal says whether the kernel takes packets to an address for its own.
func isLocal(c *rtnl.Conn, a netip.Addr) (local bool) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	msg := &nl.RtMsg{}
	msg.Family, msg.Dst_len = uint8(family(a)), uint8(a.BitLen())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	err := c.Get(req, func(body []byte) {
		local = len(body) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(body).Type == unix.RTN_LOCAL
	})
	return local && err == nil
}
