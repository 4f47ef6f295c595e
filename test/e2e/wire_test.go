package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// An ear hears UDP on one port, and remembers what was said.
type ear struct {
	at   *netlab.Namespace
	port uint16

	mu    sync.Mutex
	heard map[string]netip.AddrPort // text → from whom, at last
}

func listen(t *testing.T, n *netlab.Namespace, port uint16) *ear {
	t.Helper()
	e := &ear{at: n, port: port, heard: map[string]netip.AddrPort{}}
	var conn *net.UDPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 2000)
		for {
			size, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			e.mu.Lock()
			e.heard[string(buf[:size])] = from
			e.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		done.Wait()
	})
	return e
}

// has says whether the text was heard.
func (e *ear) has(text string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.heard[text]; !ok {
		return fmt.Errorf("%s has not heard %q", e.at.Name, text)
	}
	return nil
}

// A datagram is an UDP packet in its Ethernet frame, as somebody might forge it.
type datagram struct {
	fromMAC, toMAC net.HardwareAddr
	from, to       netip.AddrPort
	text           string
}

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherARP  = 0x0806
	protoUDP  = 17
)

func ether(to, from net.HardwareAddr, kind uint16, body []byte) []byte {
	b := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(b, kind), body...)
}

// frame is the datagram as it is on the wire.
func (d datagram) frame() []byte {
	udp := binary.BigEndian.AppendUint16(nil, d.from.Port())
	udp = binary.BigEndian.AppendUint16(udp, d.to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(d.text)))
	udp = append(append(udp, 0, 0), d.text...)

	from, to := d.from.Addr().AsSlice(), d.to.Addr().AsSlice()
	pseudo := append(append([]byte{}, from...), to...)
	pseudo = append(pseudo, 0, protoUDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))

	if !d.to.Addr().Is4() { // RFC 8200, section 3
		ip := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), protoUDP, 64}
		return ether(d.toMAC, d.fromMAC, etherIPv6, append(append(append(ip, from...), to...), udp...))
	}
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, protoUDP, 0, 0} // RFC 791, section 3.1
	ip = append(append(ip, from...), to...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return ether(d.toMAC, d.fromMAC, etherIPv4, append(ip, udp...))
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// claim is a gratuitous ARP reply that says that an address is at a MAC.
func claim(mac net.HardwareAddr, addr netip.Addr) []byte {
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	body := []byte{0, 1, 8, 0, 6, 4, 0, 2} // RFC 826: Ethernet, IPv4, reply
	body = append(append(body, mac...), addr.AsSlice()...)
	body = append(append(body, all...), addr.AsSlice()...)
	return ether(all, mac, etherARP, body)
}

// put sends frames out of a namespace's link, as they are.
func put(t *testing.T, n *netlab.Namespace, link string, frames ...[]byte) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tunnel sends a frame in VXLAN (RFC 7348) of VNI 1 to a node.
func tunnel(t *testing.T, n *netlab.Namespace, to netip.Addr, frame []byte) {
	t.Helper()
	conn, err := n.Dial("udp", netip.AddrPortFrom(to, vxlanPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, frame...)); err != nil {
		t.Fatal(err)
	}
}

const vxlanPort = 8472

// macOf reads the MAC of a link.
func macOf(t *testing.T, n *netlab.Namespace, link string) (mac net.HardwareAddr) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
