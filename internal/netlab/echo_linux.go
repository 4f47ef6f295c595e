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
)

// An EchoServer answers TCP and UDP on one port with what it gets.
type EchoServer struct {
	Port uint16

	tcp     net.Listener
	udp     net.PacketConn
	running sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// StartEcho starts an EchoServer on a port of every address in n.
func StartEcho(n *Namespace, port uint16) (*EchoServer, error) {
	s := &EchoServer{Port: port, conns: map[net.Conn]bool{}}
	err := n.Do(func() (err error) {
		if s.tcp, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		s.udp, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			_ = s.tcp.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("echo in %s: %w", n.Name, err)
	}
	s.running.Go(s.serveTCP)
	s.running.Go(s.serveUDP)
	return s, nil
}

// Close ends the server and waits for it.
func (s *EchoServer) Close() error {
	err := errors.Join(s.tcp.Close(), s.udp.Close())
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.running.Wait()
	return err
}

func (s *EchoServer) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.conns[c] = true
		s.mu.Unlock()
		s.running.Go(func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func (s *EchoServer) serveUDP() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = s.udp.WriteTo(buf[:n], from)
	}
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
