package rtnl_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

func dial(t *testing.T, ns *netlab.Namespace) *rtnl.Conn {
	t.Helper()
	c, err := rtnl.DialIn(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// route asks for a blackhole route to one address, with padding bytes of a
// metric table behind it.
func route(a netip.Addr, padding int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: 32, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_BLACKHOLE,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	// An attribute of a number that the kernel does not know, and ignores.
	req.AddData(nl.NewRtAttr(99, make([]byte, padding)))
	return req
}

// Whatever the sizes of the messages, the last of each batch is answered:
// otherwise Batch would wait for ten seconds.
func TestBatchOfAnySize(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	next := netip.MustParseAddr("10.0.0.0")
	for _, n := range []int{1, 2, 31, 32, 33, 127, 128, 129, 300} {
		// With these sizes a batch ends by its number of messages or by its
		// bytes, and before, at or behind the last one.
		for _, padding := range []int{0, 1, 2, 3, 4, 200, 965, 966, 967, 968, 969, 3000} {
			reqs := make([]*nl.NetlinkRequest, n)
			for i := range reqs {
				next = next.Next()
				reqs[i] = route(next, padding)
			}
			reqs = append(reqs, route(next, padding)) // exists already
			start := time.Now()
			errs := c.Batch(reqs)
			for i, err := range errs[:n] {
				if err != nil {
					t.Fatalf("%d messages of %d bytes more: message %d: %v", n, padding, i, err)
				}
			}
			if !errors.Is(errs[n], unix.EEXIST) {
				t.Fatalf("%d messages of %d bytes more: the last one: %v", n, padding, errs[n])
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Fatalf("%d messages of %d bytes more took %v", n, padding, took)
			}
		}
	}
}

func TestErrorBearsTheKernelsWords(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Dst_len: 24, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, []byte{10, 0, 0, 0}))
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, []byte{192, 0, 2, 1}))
	err := c.Batch([]*nl.NetlinkRequest{req})[0]
	var e *rtnl.Error
	if !errors.As(err, &e) || e.Errno == 0 || e.Message == "" {
		t.Errorf("got %v (%+v), want an errno and words", err, e)
	}
}

func TestDumpReadsAll(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	const n = 3000
	reqs := make([]*nl.NetlinkRequest, n)
	a := netip.MustParseAddr("10.0.0.0")
	for i := range reqs {
		a = a.Next()
		reqs[i] = route(a, 0)
	}
	if err := errors.Join(c.Batch(reqs)...); err != nil {
		t.Fatal(err)
	}
	seen := 0
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET}})
	if err := c.Dump(req, func() { seen = 0 }, func(b []byte) {
		if len(b) >= unix.SizeofRtMsg && b[7] == unix.RTN_BLACKHOLE {
			seen++
		}
	}); err != nil || seen != n {
		t.Errorf("read %d routes, want %d: %v", seen, n, err)
	}
}

func TestWatcherEndsWithClose(t *testing.T) {
	ns := netlab.TestNamespace(t)
	var w *rtnl.Watcher
	if err := ns.Do(func() (err error) {
		w, err = rtnl.Watch(unix.RTNLGRP_LINK)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- w.Next(func(rtnl.Notification) {}) }()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("a Next that waits says %v", err)
		}
	case <-time.After(time.Second):
		t.Fatal("Next waits on a closed socket")
	}
	if err := w.Next(func(rtnl.Notification) {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next on a closed socket says %v", err)
	}
}

func TestWithinComesBack(t *testing.T) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns := netlab.TestNamespace(t)
	var there string
	wrong := errors.New("wrong")
	err = rtnl.Within(ns.FD(), func() (err error) {
		there, err = os.Readlink("/proc/thread-self/ns/net")
		return errors.Join(err, wrong)
	})
	if !errors.Is(err, wrong) || there == "" || there == here {
		t.Errorf("in %q (from %q): %v", there, here, err)
	}
	if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != here {
		t.Errorf("back in %q, want %q", now, here)
	}
	if err := rtnl.Within(-1, func() error { t.Error("called"); return nil }); err == nil {
		t.Error("a namespace that is none was entered")
	}
}

func FuzzEachAttr(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4, 5, 0, 2, 0x80, 9})
	f.Add([]byte{3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		rtnl.EachAttr(b, func(_ uint16, v []byte) { total += len(v) + unix.SizeofRtAttr })
		if total > len(b) {
			t.Errorf("%d bytes hold attributes of %d", len(b), total)
		}
	})
}
