package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// netfilterHeader is the size of struct nfgenmsg (linux/netfilter/nfnetlink.h),
// which every body begins with: family, version 0, a number in network byte order.
const netfilterHeader = 4

// sendBytes is what a socket may send at once without being told; a larger
// transaction makes its buffer grow.
const sendBytes = 128 << 10

// DialNetfilter opens a NETLINK_NETFILTER socket in the calling thread's network
// namespace.
func DialNetfilter() (*Conn, error) { return dial(unix.NETLINK_NETFILTER) }

// WatchNetfilter is Watch for groups of NETLINK_NETFILTER (unix.NFNLGRP_…). Kind
// has the subsystem in its upper byte, and a body begins with struct nfgenmsg.
func WatchNetfilter(groups ...int) (*Watcher, error) { return watch(unix.NETLINK_NETFILTER, groups) }

// NewNetfilter begins a request to a subsystem of netfilter (unix.NFNL_SUBSYS_…)
// about an address family (unix.NFPROTO_…).
func NewNetfilter(subsystem, kind, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(subsystem<<8|kind, flags)
	req.AddRawData([]byte{family, unix.NFNETLINK_V0, 0, 0})
	return req
}

// NetfilterAttrs cuts the header off a body; nil if it is too short.
func NetfilterAttrs(body []byte) []byte {
	if len(body) < netfilterHeader {
		return nil
	}
	return body[netfilterHeader:]
}

// Transaction sends requests to one subsystem that the kernel carries out all or
// none. A generation other than 0 is that of what the caller has read: if
// anything was changed since, the kernel refuses with unix.ERESTART. After a
// refusal at is the index of the request that was refused first, or -1 where it was
// the transaction as a whole.
func (c *Conn) Transaction(subsystem int, generation uint32, reqs []*nl.NetlinkRequest) (at int, err error) {
	if len(reqs) == 0 {
		return -1, nil
	}
	begin, end := bracket(unix.NFNL_MSG_BATCH_BEGIN, subsystem), bracket(unix.NFNL_MSG_BATCH_END, subsystem)
	if generation != 0 {
		begin.AddRawData(nl.NewRtAttr(unix.NFNL_BATCH_GENID, binary.BigEndian.AppendUint32(nil, generation)).Serialize())
	}
	c.out = c.out[:0]
	c.queue(begin)
	index := make(map[uint32]int, len(reqs))
	for i, r := range reqs {
		r.Flags &^= unix.NLM_F_ACK
		r.Flags |= unix.NLM_F_REQUEST
		if i == len(reqs)-1 {
			r.Flags |= unix.NLM_F_ACK // the others speak only if they are refused
		}
		index[r.Seq] = i
		c.queue(r)
	}
	c.queue(end)
	if len(c.out) > sendBytes && unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(c.out)) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*len(c.out))
	}
	if err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, fmt.Errorf("send to kernel: %w", err)
	}
	return c.verdict(begin.Seq, index, len(reqs)-1)
}

// bracket begins or ends a transaction. Its number names the subsystem.
func bracket(kind, subsystem int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddRawData(binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, uint16(subsystem)))
	return req
}

// queue serializes one request into the send buffer.
func (c *Conn) queue(req *nl.NetlinkRequest) {
	c.out = append(c.out, req.Serialize()...)
	for len(c.out)%unix.NLMSG_ALIGNTO != 0 {
		c.out = append(c.out, 0)
	}
}

// verdict reads the answers to a transaction. They come in the order of the
// requests; a refusal of all bears the sequence number of what began it.
func (c *Conn) verdict(begin uint32, index map[uint32]int, last int) (at int, err error) {
	at = -1
	for done := false; !done; {
		n, from, rerr := unix.Recvfrom(c.fd, c.in, 0)
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		if rerr != nil {
			return -1, fmt.Errorf("receive from kernel: %w", rerr)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue
		}
		rerr = eachMessage(c.in[:n], func(h header, body []byte) {
			i, ours := index[h.seq]
			if h.kind != unix.NLMSG_ERROR || !ours && h.seq != begin {
				return
			}
			refusal := parseError(h, body)
			done = done || ours && i == last || !ours && refusal != nil
			if err == nil && refusal != nil {
				err = refusal
				if ours {
					at = i
				}
			}
		})
		if rerr != nil {
			return -1, rerr
		}
	}
	return at, err
}
