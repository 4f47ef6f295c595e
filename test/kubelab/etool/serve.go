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
	u, err := net.ListenPacket("udp", ":8082")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
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
