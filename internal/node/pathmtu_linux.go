package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pathEvery is how often the paths are asked. The kernel forgets what it learnt of
	// one after ten minutes.
	pathEvery = time.Minute

	// pathAnswer is how long a router on the way has to answer.
	pathAnswer = 300 * time.Millisecond

	// pathTries is how often a path is asked at a time: the second router on it answers
	// to the second question.
	pathTries = 3

	ipv4Header, ipv6Header, udpHeader = 20, 40, 8
)

// A path leads from this node's underlay to a peer's.
type path struct {
	from, to netip.Addr
	port     uint16
	mtu      int // bytes, of the link that it begins with
}

// pathsTo are the ways to the peers that are reached through a tunnel.
func (l *loop) pathsTo() (all []path) {
	for _, o := range l.overlays {
		c := o.device.Config()
		for _, to := range o.want.FDB {
			if c.Name != "" && to.Is4() == c.Local.Is4() {
				all = append(all, path{c.Local, to, c.Port, l.underlay.MTU})
			}
		}
	}
	return all
}

// boundPaths asks, again and again, how large packets to the peers may be, and tells the
// loop the least of it.
func (n *node) boundPaths(ctx context.Context) error {
	select {
	case <-n.up:
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(pathEvery)
	defer tick.Stop()
	for {
		var paths []path
		if n.do(ctx, func(l *loop) { paths = l.pathsTo() }) {
			least, by, err := narrowest(ctx, paths)
			if err != nil {
				n.log.Warn("path MTU cannot be asked for", "error", err)
			}
			n.do(ctx, func(l *loop) { l.bound(least, by) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// bound takes a bound for packets on the underlay, in bytes; 0 is none.
func (l *loop) bound(mtu int, by netip.Addr) {
	if mtu == l.pathMTU {
		return
	}
	text := fmt.Sprintf("packets on the underlay may have %d bytes, by the way to %s", mtu, by)
	if mtu == 0 {
		text = "every way to a peer takes what the interface does"
	}
	l.log.Info("path MTU has changed", "was", l.pathMTU, "is", mtu, "to", by)
	l.journal.event("underlay", text)
	l.pathMTU = mtu
	l.follow()
}

// narrowest returns the least MTU of all paths that is less than the link's, and where
// it leads; 0 if there is none.
func narrowest(ctx context.Context, paths []path) (least int, by netip.Addr, err error) {
	for try := 0; try < pathTries && ctx.Err() == nil; try++ {
		for _, p := range paths {
			if perr := p.ask(); perr != nil {
				err = perr
			}
		}
		select {
		case <-time.After(pathAnswer):
		case <-ctx.Done():
		}
	}
	for _, p := range paths {
		mtu, merr := p.known()
		if merr != nil {
			err = merr
			continue
		}
		if mtu < p.mtu && (least == 0 || mtu < least) {
			least, by = mtu, p.to
		}
	}
	return least, by, err
}

// ask sends a packet as large as the way is known to take, which must not be cut: a
// router that cannot pass it on tells the kernel, and the kernel remembers. It bears a
// VXLAN header without the flag that makes it one (RFC 7348, section 5), so that
// the peer drops it.
func (p path) ask() error {
	mtu, err := p.known()
	if err != nil {
		return err
	}
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	header := ipv4Header
	if p.to.Is6() {
		header = ipv6Header
	}
	_, _ = conn.Write(make([]byte, min(mtu, p.mtu)-header-udpHeader)) // refused: it is known to be too large by now
	return nil
}

// known is what the kernel knows of the way.
func (p path) known() (mtu int, err error) {
	conn, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if p.to.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	cerr := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		return 0, fmt.Errorf("path MTU to %s: %w", p.to, err)
	}
	return mtu, nil
}

// dial makes a socket whose packets are not fragmented.
func (p path) dial() (*net.UDPConn, error) {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.to, p.port)))
	if err != nil {
		return nil, fmt.Errorf("path MTU to %s: %w", p.to, err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if p.to.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("path MTU to %s: %w", p.to, err)
	}
	return conn, nil
}
