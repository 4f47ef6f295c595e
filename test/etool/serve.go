package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

// An Answer is what serve says to GET: who was reached, and who asked.
type Answer struct {
	Host   string // the pod's name
	Remote string // address that the request came from
}

func serve() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, s := range []struct {
		port string
		fn   func(net.Conn)
	}{
		{":8081", func(c net.Conn) { _, _ = io.Copy(c, c) }},
		{":8083", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }},
	} {
		l, err := net.Listen("tcp", s.port)
		if err != nil {
			return err
		}
		go accept(l, s.fn)
	}
	if err := serveUDP(); err != nil {
		return err
	}
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remote, _, _ := net.SplitHostPort(r.RemoteAddr)
		_ = json.NewEncoder(w).Encode(Answer{host, remote})
	}))
}

func accept(l net.Listener, fn func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "etool:", err)
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			fn(c)
		}()
	}
}

// serveUDP answers on each address with a socket of its own: a socket that is
// bound to none answers from whatever address the route prefers.
func serveUDP() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLinkLocalUnicast() {
			continue
		}
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip.IP, Port: 8082})
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 64<<10)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					fmt.Fprintln(os.Stderr, "etool:", err)
					return
				}
				_, _ = c.WriteTo(b[:n], from)
			}
		}()
	}
	return nil
}
