package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpAttempts bounds how often an interrupted dump is repeated.
const dumpAttempts = 8

// Get sends one request for one object and hands the body of the kernel's
// answer to fn.
func (c *Conn) Get(req *nl.NetlinkRequest, fn func(body []byte)) error {
	reqs, errs := []*nl.NetlinkRequest{req}, make([]error, 1)
	c.fill(reqs, 0)
	c.transact(reqs, errs, fn)
	return errs[0]
}

// Dump asks for all objects of a kind and hands the body of each to fn. A table
// that changed under the dump (NLM_F_DUMP_INTR) is read again, after restart
// was called so that the caller can forget what it was given.
func (c *Conn) Dump(req *nl.NetlinkRequest, restart func(), fn func(body []byte)) error {
	for range dumpAttempts {
		restart()
		interrupted, err := c.dump(req, fn)
		if err != nil || !interrupted {
			return err
		}
	}
	return fmt.Errorf("table kept changing while it was read (%d attempts)", dumpAttempts)
}

func (c *Conn) dump(req *nl.NetlinkRequest, fn func([]byte)) (interrupted bool, err error) {
	req.Flags &^= unix.NLM_F_ACK
	req.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_DUMP
	if err := unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("send to kernel: %w", err)
	}
	for done := false; !done; {
		n, from, err := unix.Recvfrom(c.fd, c.in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("receive from kernel: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue
		}
		var failure error
		err = eachMessage(c.in[:n], func(h header, body []byte) {
			if h.seq != req.Seq {
				return
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.kind {
			case unix.NLMSG_DONE:
				done = true
				failure = errors.Join(failure, doneError(body))
			case unix.NLMSG_ERROR:
				done = true
				failure = errors.Join(failure, parseError(h, body))
			default:
				fn(body)
			}
		})
		if err := errors.Join(err, failure); err != nil {
			return false, err
		}
	}
	return interrupted, nil
}

// doneError reads the negated errno that ends a dump.
func doneError(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
		return &Error{Errno: unix.Errno(-code)}
	}
	return nil
}
