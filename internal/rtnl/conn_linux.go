package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// timeout bounds the wait for an answer of the kernel. Deleting a link
	// takes it up to 24 ms; anything near this bound means that it hangs.
	timeout = 10 * time.Second

	// batchMessages and batchBytes bound one sendmsg, so that the answers fit
	// the receive buffer even if every message fails.
	batchMessages = 128
	batchBytes    = 32 << 10

	// receiveBytes is the receive buffer; the kernel charges an answer with
	// about 800 bytes however short it is.
	receiveBytes = 1 << 20
)

// A Conn is one netlink socket in one network namespace: of NETLINK_ROUTE, or by
// DialNetfilter of NETLINK_NETFILTER. It is not safe for concurrent use.
type Conn struct {
	fd   int
	port uint32
	in   []byte
	out  []byte
}

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) { return dial(unix.NETLINK_ROUTE) }

func dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &Conn{fd: fd, in: make([]byte, 64<<10)}
	if err := c.setup(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return c, nil
}

// DialIn opens a socket in the network namespace behind the descriptor ns. The
// caller's own thread is back in its namespace afterwards.
func DialIn(ns int) (c *Conn, err error) {
	err = Within(ns, func() error {
		c, err = Dial()
		return err
	})
	return c, err
}

// Within calls fn on a thread that is in the network namespace behind the
// descriptor ns, and returns to the namespace that it came from. Sockets that
// fn opens stay in ns.
func Within(ns int, fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(home) }()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	ferr := fn()
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked: it dies with its goroutine, and no other
		// goroutine ever runs in the wrong namespace.
		return errors.Join(ferr, fmt.Errorf("return to own network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return ferr
}

func (c *Conn) setup() error {
	tv := unix.NsecToTimeval(int64(timeout))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	// Without CAP_NET_ADMIN the forced size is refused; the plain one is
	// bounded by rmem_max, which still holds a batch's answers.
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBytes) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBytes)
	}
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.port = sa.(*unix.SockaddrNetlink).Pid
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Strict makes the kernel take every field of a dump's request for a filter, and
// refuse those that it does not know (Linux 4.20 and later). Some filters work
// only then.
func (c *Conn) Strict() error {
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return fmt.Errorf("strict netlink dumps: %w", err)
	}
	return nil
}

// Port is the socket's netlink port id. Notifications of changes that this
// socket made bear it in nlmsg_pid.
func (c *Conn) Port() uint32 { return c.port }

// Batch sends every request and returns one error for each, nil where it
// succeeded. A failed request does not keep the rest from being carried out.
// The requests' own NLM_F_ACK flags are replaced.
func (c *Conn) Batch(reqs []*nl.NetlinkRequest) []error {
	errs := make([]error, len(reqs))
	for start := 0; start < len(reqs); {
		end := c.fill(reqs, start)
		c.transact(reqs[start:end], errs[start:end], nil)
		start = end
	}
	return errs
}

// Echo sends one request with NLM_F_ECHO and hands the kernel's account of
// what it made, a message body of the kind that the request has, to fn.
func (c *Conn) Echo(req *nl.NetlinkRequest, fn func(body []byte)) error {
	req.Flags |= unix.NLM_F_ECHO
	reqs, errs := []*nl.NetlinkRequest{req}, make([]error, 1)
	c.fill(reqs, 0)
	c.transact(reqs, errs, fn)
	return errs[0]
}

// fill serializes requests from start on into the send buffer, as many as one
// batch takes, and returns the index after the last.
func (c *Conn) fill(reqs []*nl.NetlinkRequest, start int) int {
	c.out = c.out[:0]
	i := start
	for ; i < len(reqs) && i-start < batchMessages && len(c.out) < batchBytes; i++ {
		last := i+1 == len(reqs) || i+1-start == batchMessages
		reqs[i].Flags &^= unix.NLM_F_ACK
		reqs[i].Flags |= unix.NLM_F_REQUEST
		if last {
			reqs[i].Flags |= unix.NLM_F_ACK
		}
		msg := reqs[i].Serialize()
		if !last && len(c.out)+(len(msg)+3)&^3 >= batchBytes {
			// This one ends the batch by size: only now is it known.
			binary.NativeEndian.PutUint16(msg[6:], reqs[i].Flags|unix.NLM_F_ACK)
		}
		c.out = append(c.out, msg...)
		for len(c.out)%unix.NLMSG_ALIGNTO != 0 {
			c.out = append(c.out, 0)
		}
	}
	return i
}

// transact sends the filled buffer and reads answers until the last request's.
func (c *Conn) transact(reqs []*nl.NetlinkRequest, errs []error, fn func([]byte)) {
	fail := func(err error) {
		for i := range errs {
			errs[i] = err
		}
	}
	if err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		fail(fmt.Errorf("send to kernel: %w", err))
		return
	}
	index := make(map[uint32]int, len(reqs))
	for i, r := range reqs {
		index[r.Seq] = i
	}
	last := reqs[len(reqs)-1].Seq
	for {
		n, from, err := unix.Recvfrom(c.fd, c.in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			fail(fmt.Errorf("receive from kernel: %w", err))
			return
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel: any process may send to a port id
		}
		done := false
		err = eachMessage(c.in[:n], func(h header, body []byte) {
			i, ours := index[h.seq]
			switch {
			case !ours:
			case h.kind == unix.NLMSG_ERROR:
				errs[i] = parseError(h, body)
				done = done || h.seq == last
			case fn != nil:
				fn(body)
			}
		})
		if err != nil {
			fail(err)
			return
		}
		if done {
			return
		}
	}
}

type header struct {
	kind  uint16
	flags uint16
	seq   uint32
	port  uint32
}

var errShort = errors.New("netlink message cut short")

// eachMessage splits a datagram of the kernel.
func eachMessage(b []byte, fn func(header, []byte)) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return errShort
		}
		fn(header{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			port:  binary.NativeEndian.Uint32(b[12:]),
		}, b[unix.NLMSG_HDRLEN:size])
		b = b[min(len(b), (size+3)&^3):]
	}
	return nil
}

// An Error is the kernel's refusal of one request.
type Error struct {
	Errno   unix.Errno
	Message string // the kernel's own words (extended ack), often empty
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + " (" + strings.TrimSuffix(e.Message, ".") + ")"
}

// Unwrap makes errors.Is(err, unix.EEXIST) and the like work.
func (e *Error) Unwrap() error { return e.Errno }

// parseError reads an NLMSG_ERROR: the negated errno, the header of the
// request, and, with NLM_F_ACK_TLVS, attributes of which 1 is a text.
func parseError(h header, body []byte) error {
	if len(body) < 4 {
		return errShort
	}
	code := -int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(code)}
	attrs := body[4:]
	if h.flags&unix.NLM_F_ACK_TLVS == 0 || len(attrs) < unix.NLMSG_HDRLEN {
		return e
	}
	attrs = attrs[unix.NLMSG_HDRLEN:]
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return e
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == unix.NLMSGERR_ATTR_MSG {
			e.Message, _, _ = strings.Cut(string(attrs[unix.SizeofRtAttr:size]), "\x00")
		}
		attrs = attrs[min(len(attrs), (size+3)&^3):]
	}
	return e
}
