package pod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// Frames made by hand: what no honest kernel sends.

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	otherMAC  = net.HardwareAddr{0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x63}
)

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

func raw(addr string) []byte { return netip.MustParseAddr(addr).AsSlice() }

func eth(dst, src net.HardwareAddr, etherType int, payload ...[]byte) []byte {
	return slices.Concat(dst, src, be16(etherType), bytes.Join(payload, nil))
}

func ipv4(src, dst string, protocol byte, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	h := slices.Concat([]byte{0x45, 0}, be16(20+len(body)), []byte{0, 7, 0, 0, 64, protocol, 0, 0}, raw(src), raw(dst))
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return append(h, body...)
}

func ipv6(src, dst string, next byte, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{next, 255}, raw(src), raw(dst), body)
}

func arp(op int, sha net.HardwareAddr, spa, tpa string) []byte {
	return slices.Concat(be16(1), be16(0x0800), []byte{6, 4}, be16(op), sha, raw(spa), make([]byte, 6), raw(tpa))
}

func icmpv6(kind byte, body ...[]byte) []byte {
	return slices.Concat([]byte{kind, 0, 0, 0}, bytes.Join(body, nil))
}

// nd is an ICMPv6 message of neighbour discovery about a target.
func nd(kind byte, target string) []byte { return icmpv6(kind, make([]byte, 4), raw(target)) }

// hopByHop is a hop-by-hop header, as MLD has it, before another.
func hopByHop(next byte) []byte { return []byte{next, 0, 5, 2, 0, 0, 1, 0} }

// fragment is a fragment header (RFC 8200, section 4.5).
func fragment(next byte, offset int, more bool) []byte {
	low := offset
	if more {
		low |= 1
	}
	return slices.Concat([]byte{next, 0}, be16(low), []byte{0, 0, 0, 9})
}

// A wire sends and hears frames on an interface inside a namespace.
type wire struct {
	testing.TB
	fd int
}

// newWire opens one. The frames that arrive from then on can be heard.
func newWire(t testing.TB, ns *netlab.Namespace, ifname string) wire {
	t.Helper()
	w := wire{t, -1}
	in(t, ns, func() error {
		i, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		all := int(binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL)))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: i.Index})
	})
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

func (w wire) send(frame []byte) {
	w.Helper()
	if _, err := unix.Write(w.fd, frame); err != nil {
		w.Fatalf("send %x: %v", frame, err)
	}
}

// hears reads frames until one holds the fence, and says whether one before it, or
// shortly behind, held the mark: a sender that changes its processor may be overtaken
// by itself.
func (w wire) hears(mark, fence []byte) (heard bool) {
	w.Helper()
	b := make([]byte, 4096)
	until, fenced := time.Now().Add(10*time.Second), false
	for {
		wait := 10 * time.Second
		if fenced {
			wait = 5 * time.Millisecond
		}
		tv := unix.NsecToTimeval(int64(wait))
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			w.Fatal(err)
		}
		n, err := unix.Read(w.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && fenced:
			return heard
		case err != nil || time.Now().After(until):
			w.Fatalf("the frame that may pass was not heard: %v", err)
		}
		heard = heard || bytes.Contains(b[:n], mark)
		fenced = fenced || bytes.Contains(b[:n], fence)
	}
}

var marks int

// newMark is bytes that no other frame has.
func newMark() []byte {
	marks++
	return fmt.Appendf(nil, "<mark %d of %d>", marks, os.Getpid())
}

func udp(port int, payload []byte) []byte {
	return slices.Concat(be16(4000), be16(port), be16(8+len(payload)), []byte{0, 0}, payload)
}

// checksum is that of the UDP packet in an IPv6 packet without other headers.
func checksum(packet []byte) uint16 {
	sum := uint32(unix.IPPROTO_UDP + len(packet) - 40)
	body := slices.Concat(packet[8:], make([]byte, len(packet)%2))
	for i := 0; i < len(body); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(body[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
