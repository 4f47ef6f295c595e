package netlab

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestUpload(t *testing.T) {
	l := testLab(t, Options{Nodes: 2})
	from, n := l.Nodes[0].Namespace, l.Nodes[1]
	s, err := StartSink(n.Namespace, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := StartSink(n.Namespace, 9); err == nil {
		t.Error("two sinks on one port")
	}
	for _, a := range n.Addrs() {
		before := s.Received()
		got, err := Send(from, netip.AddrPortFrom(a, s.Port), 5_000_001, 20*time.Second)
		if err != nil || got.Bytes != 5_000_001 || got.Took <= 0 || got.Pause <= 0 || got.Pause > got.Took || s.Received()-before != got.Bytes {
			t.Errorf("to %s: %v %v", a, got, err)
		}
	}
	to := netip.AddrPortFrom(n.Address, s.Port)
	u, err := StartUpload(from, to, 0, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	flowing := func() error {
		before := s.Received()
		return Eventually(10*time.Second, func() error {
			if s.Received() < before+1e6 {
				return errors.New("nothing comes")
			}
			return nil
		})
	}
	if err := flowing(); err != nil {
		t.Fatal(err)
	}
	if err := l.Underlay.IP("link set n1 down"); err != nil {
		t.Fatal(err)
	}
	down := time.Now()
	for time.Since(down) < 100*time.Millisecond {
		time.Sleep(10 * time.Millisecond)
	}
	if err := l.Underlay.IP("link set n1 up"); err != nil {
		t.Fatal(err)
	}
	away := time.Since(down)
	if err := flowing(); err != nil {
		t.Fatal(err)
	}
	if got, err := u.Stop(20 * time.Second); err != nil || got.Bytes < 2e6 || got.Pause < away/2 {
		t.Errorf("link down for %v: %v %v", away, got, err)
	}
}

func TestUploadThatIsCutOffFails(t *testing.T) {
	n := TestNamespace(t)
	s, err := StartSink(n, 9)
	if err != nil {
		t.Fatal(err)
	}
	u, err := StartUpload(n, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Port), 0, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	err = Eventually(10*time.Second, func() error {
		if s.Received() == 0 {
			return errors.New("nothing comes")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // also with an upload under way
		t.Error(err)
	}
	if got, err := u.Stop(5 * time.Second); err == nil || !strings.Contains(err.Error(), "upload from") {
		t.Errorf("sink closed: %v %v", got, err)
	}
}

func TestFlows(t *testing.T) {
	n := TestNamespace(t)
	// A rule that looks at connections turns tracking on.
	if err := n.NFT("table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"); err != nil {
		t.Fatal(err)
	}
	s, err := StartEcho(n, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, a := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(a), s.Port)
		if err := Exchange(n, "udp", to, 1, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		flows, err := n.Flows()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range flows {
			found = found || f.Protocol == 17 && f.To == to && f.From.Addr() == to.Addr() && f.From.Port() != 0
		}
		if !found {
			t.Errorf("no flow to %s among %v", to, flows)
		}
	}
}
