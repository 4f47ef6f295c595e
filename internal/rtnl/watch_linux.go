package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchBytes is a Watcher's receive buffer. A miss costs about 800 bytes, so
// this holds some ten thousand before the kernel drops any.
const watchBytes = 8 << 20

// A Watcher receives what the kernel multicasts to netlink groups.
type Watcher struct {
	file *os.File
	raw  syscall.RawConn
	in   []byte
	lost bool // since the queue was empty last
}

// A Notification is one multicast message.
type Notification struct {
	Kind  uint16 // RTM_NEWLINK, RTM_DELNEIGH, …
	Flags uint16 // NLM_F_REPLACE and the like, as its maker set them
	Port  uint32 // netlink port id of the requester; 0: the kernel itself
	Body  []byte // valid only during the call
}

// attrTypeMask takes the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER off an
// attribute type (linux/netlink.h).
const attrTypeMask = 0x3fff

// ErrOverrun says that the kernel dropped notifications because they were not
// read fast enough (ENOBUFS). Whatever was derived from them has to be read anew.
var ErrOverrun = errors.New("netlink notifications were lost (receive buffer overrun)")

// Watch joins rtnetlink groups (unix.RTNLGRP_…) in the calling thread's network
// namespace.
func Watch(groups ...int) (*Watcher, error) { return watch(unix.NETLINK_ROUTE, groups) }

func watch(protocol int, groups []int) (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "netlink"), in: make([]byte, 64<<10)}
	if w.raw, err = w.file.SyscallConn(); err == nil {
		err = w.join(fd, groups)
	}
	if err != nil {
		_ = w.file.Close()
		return nil, err
	}
	return w, nil
}

func (w *Watcher) join(fd int, groups []int) error {
	_ = setReadBuffer(fd, watchBytes)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	return nil
}

// SetReadBuffer sets how many bytes the kernel queues before it drops. Without
// CAP_NET_ADMIN there may be fewer (net.core.rmem_max).
func (w *Watcher) SetReadBuffer(bytes int) error {
	var serr error
	err := w.raw.Control(func(fd uintptr) { serr = setReadBuffer(int(fd), bytes) })
	return errors.Join(err, serr)
}

func setReadBuffer(fd, bytes int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
}

// Next waits for the next datagram and hands its messages to fn. It returns
// ErrOverrun when some were lost before it, and once more when what was queued
// until then is read: in between the kernel drops without another word. After
// Close it returns os.ErrClosed.
func (w *Watcher) Next(fn func(Notification)) error {
	var n int
	var from unix.Sockaddr
	var rerr error
	err := w.raw.Read(func(fd uintptr) bool {
		n, from, rerr = unix.Recvfrom(int(fd), w.in, 0)
		return !errors.Is(rerr, unix.EAGAIN) || w.lost
	})
	switch {
	case err != nil:
		// Of a file without deadlines only Close ends the wait; package os
		// does not translate the poller's own word for it here.
		return fmt.Errorf("wait for netlink notification: %w (%w)", os.ErrClosed, err)
	case errors.Is(rerr, unix.ENOBUFS):
		w.lost = true
		return ErrOverrun
	case errors.Is(rerr, unix.EAGAIN):
		w.lost = false
		return ErrOverrun
	case errors.Is(rerr, unix.EINTR):
		return nil
	case rerr != nil:
		return fmt.Errorf("read netlink notification: %w", rerr)
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		return nil // not from the kernel
	}
	return eachMessage(w.in[:n], func(h header, body []byte) {
		fn(Notification{Kind: h.kind, Flags: h.flags, Port: h.port, Body: body})
	})
}

// Run hands every message to fn, and calls overrun wherever some were lost, until
// ctx ends or the Watcher is closed: then it is closed, and that is no error.
func (w *Watcher) Run(ctx context.Context, fn func(Notification), overrun func()) error {
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	for {
		err := w.Next(fn)
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, ErrOverrun):
			overrun()
		case err != nil:
			return err
		}
	}
}

// Close ends a Next that waits.
func (w *Watcher) Close() error { return w.file.Close() }

// EachAttr calls fn for each attribute in b, without its nested and byte-order
// flags. Bytes that do not form an attribute end it.
func EachAttr(b []byte, fn func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		fn(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}
