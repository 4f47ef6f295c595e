package netlab

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestPingsCountWhatALinkDrops(t *testing.T) {
	l := testLab(t, Options{Nodes: 2})
	a, b := l.Nodes[0], l.Nodes[1]
	for _, to := range []netip.Addr{b.Address, netip.MustParseAddr("2001:db8::12")} {
		g, err := StartPings(a.Namespace, Pings{To: to, Interval: 2 * time.Millisecond, Timeout: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := g.Answer(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := l.Underlay.IP("link set n2 down"); err != nil {
			t.Fatal(err)
		}
		silent := time.Now()
		err = Eventually(10*time.Second, func() error {
			if time.Since(silent) < 50*time.Millisecond {
				return errors.New("too early")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Underlay.IP("link set n2 up"); err != nil {
			t.Fatal(err)
		}
		up := time.Now()
		if _, err := g.Answer(ctx, up); err != nil {
			t.Fatal(err)
		}
		r := g.Stop()
		if again := g.Stop(); again.Sent() != r.Sent() {
			t.Errorf("sent %d, and %d after the second Stop", r.Sent(), again.Sent())
		}
		if r.Lost() == 0 || r.Lost() >= r.Sent() || r.Silence() < up.Sub(silent) {
			t.Errorf("link down for %v: %v", up.Sub(silent), r)
		}
	}
}

func TestPingWithoutRouteIsSentAndLost(t *testing.T) {
	n := TestNamespace(t)
	p := Pings{To: netip.MustParseAddr("198.51.100.1"), Count: 2, Interval: time.Millisecond, Timeout: 20 * time.Millisecond}
	r, err := Ping(t.Context(), n, p)
	if err != nil || r.Sent() != 2 || r.Lost() != 2 || r.SendError == nil {
		t.Errorf("%v %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.Count = 1e6
	if r, err := Ping(ctx, n, p); !errors.Is(err, context.Canceled) || r.Sent() > 1e5 {
		t.Errorf("cancelled: %d sent, %v", r.Sent(), err)
	}
}

func TestPingersOfOneNamespaceAreApart(t *testing.T) {
	n := TestNamespace(t)
	var all []*Pinger
	for _, count := range []int{5, 7} {
		g, err := StartPings(n, Pings{To: netip.MustParseAddr("127.0.0.1"), Count: count, Interval: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, g)
	}
	for i, g := range all {
		<-g.sent
		if r := g.Stop(); r.Sent() != 5+2*i || r.Lost() != 0 || r.Twice != 0 {
			t.Errorf("pinger %d: %v, %d twice", i, r, r.Twice)
		}
	}
}

func TestEcho(t *testing.T) {
	l := testLab(t, Options{Nodes: 2})
	s, err := StartEcho(l.Nodes[1].Namespace, 7)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartEcho(l.Nodes[1].Namespace, 7); err == nil {
		t.Error("two servers on one port")
	}
	to := netip.AddrPortFrom(l.Nodes[1].Address, s.Port)
	for network, size := range map[string]int{"tcp": 300_000, "udp": 4000} {
		if err := Exchange(l.Nodes[0].Namespace, network, to, size, 5*time.Second); err != nil {
			t.Error(err)
		}
	}
	// Not from the address that is nearest to the asker, but from that which was
	// asked.
	if err := l.Nodes[1].IP("address add 192.0.2.77/32 dev lo"); err != nil {
		t.Fatal(err)
	}
	other := netip.MustParseAddrPort("192.0.2.77:7")
	if err := Exchange(l.Nodes[0].Namespace, "udp", other, 100, 5*time.Second); err != nil {
		t.Error(err)
	}
	idle, err := l.Nodes[0].Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	if err := s.Close(); err != nil { // also with a client that says nothing
		t.Error(err)
	}
	if err := Exchange(l.Nodes[0].Namespace, "tcp", to, 10, time.Second); err == nil {
		t.Error("echo from a closed server")
	}
}
