package netlab

import (
	"fmt"
	"net"
	"sync"
)

// A tcpServer serves every connection in a goroutine of its own.
type tcpServer struct {
	listener net.Listener
	serve    func(net.Conn)
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// listenTCP listens on a port of every address of the calling thread's namespace.
// Connections are closed after serve.
func listenTCP(port uint16, serve func(net.Conn)) (*tcpServer, error) {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	s := &tcpServer{listener: listener, serve: serve, conns: map[net.Conn]bool{}}
	s.running.Go(s.accept)
	return s, nil
}

// close ends the server, also connections that are under way, and waits for it.
func (s *tcpServer) close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.running.Wait()
	return err
}

func (s *tcpServer) accept() {
	for {
		c, err := s.listener.Accept()
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
			s.serve(c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}
