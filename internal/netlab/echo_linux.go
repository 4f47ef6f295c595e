package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An EchoServer answers TCP and UDP on one port, with what it gets or, if it is a
// witness, with whom it gets it from.
type EchoServer struct {
	Port uint16

	witness bool
	tcp     *tcpServer
	udp     *net.UDPConn
	running sync.WaitGroup // of UDP
}

// StartEcho starts an EchoServer on a port of every address in n.
func StartEcho(n *Namespace, port uint16) (*EchoServer, error) { return startServer(n, port, false) }

// StartWitness starts an EchoServer that tells whoever asks by Seen which source
// address it sees.
func StartWitness(n *Namespace, port uint16) (*EchoServer, error) { return startServer(n, port, true) }

func startServer(n *Namespace, port uint16, witness bool) (*EchoServer, error) {
	s := &EchoServer{Port: port, witness: witness}
	err := n.Do(func() (err error) {
		if s.udp, err = listenUDP(port); err != nil {
			return err
		}
		if s.tcp, err = listenTCP(port, s.serveTCP); err != nil {
			_ = s.udp.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("echo in %s: %w", n.Name, err)
	}
	s.running.Go(s.serveUDP)
	return s, nil
}

// listenUDP makes a socket of both families that tells to which address a packet
// was sent.
func listenUDP(port uint16) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Close ends the server and waits for it.
func (s *EchoServer) Close() error {
	err := errors.Join(s.tcp.close(), s.udp.Close())
	s.running.Wait()
	return err
}

func (s *EchoServer) serveTCP(c net.Conn) {
	if s.witness {
		_, _ = c.Write([]byte(c.RemoteAddr().String()))
	} else {
		_, _ = io.Copy(c, c)
	}
}

// serveUDP answers from the address that was asked: a node has several, and the
// kernel would take the one that is nearest to the asker.
func (s *EchoServer) serveUDP() {
	buf, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		n, size, _, from, err := s.udp.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as an error that a router reported for an answer
		}
		answer := buf[:n]
		if s.witness {
			answer = []byte(from.String())
		}
		// The information that came with the packet goes back as it is, but for
		// the interface: the routing table knows better.
		if size == len(control) {
			clear(control[unix.CmsgLen(unix.SizeofInet6Pktinfo)-4 : unix.CmsgLen(unix.SizeofInet6Pktinfo)])
		}
		_, _, _ = s.udp.WriteMsgUDPAddrPort(answer, control[:size], from)
	}
}

// Seen asks a witness by network (tcp or udp), from n, which source it sees.
func Seen(n *Namespace, network string, witness netip.AddrPort, limit time.Duration) (netip.AddrPort, error) {
	conn, err := n.Dial(network, witness.String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return netip.AddrPort{}, err
	}
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return netip.AddrPort{}, err
		}
	}
	buf := make([]byte, 100)
	size, err := conn.Read(buf)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask %s by %s from %s: %w", witness, network, n.Name, err)
	}
	from, err := netip.ParseAddrPort(string(buf[:size]))
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// Exchange sends size bytes from n to an EchoServer by network (tcp or udp) and
// checks that the same come back within limit.
func Exchange(n *Namespace, network string, to netip.AddrPort, size int, limit time.Duration) error {
	conn, err := n.Dial(network, to.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i % 251) // a prime: no shift by a power of two looks right
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(want)
		sent <- err
	}()
	got := make([]byte, size)
	_, err = io.ReadFull(conn, got)
	if err = errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%s echo of %d bytes from %s to %s: %w", network, size, n.Name, to, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s echo of %d bytes from %s to %s: other bytes came back", network, size, n.Name, to)
	}
	return nil
}
