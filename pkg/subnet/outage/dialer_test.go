package outage

import (
	"net"
	"testing"
	"time"
)

func TestCutEndsWaitingReads(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var d Dialer
	d.Cut() // nothing yet
	read := make(chan error, 2)
	for range 2 {
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
	}
	own, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	if len(d.conns) != 2 {
		t.Errorf("%d connections are remembered, want 2", len(d.conns))
	}
	d.Cut()
	for range 2 {
		select {
		case err := <-read:
			if err == nil {
				t.Error("a read succeeded")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a read goes on")
		}
	}
	if c, err := d.DialContext(t.Context(), "tcp", l.Addr().String()); err != nil || c.Close() != nil {
		t.Errorf("after the cut: %v", err)
	}
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1"); err == nil {
		t.Error("connected to nobody")
	}
}
