package rtnl_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// bad asks for a route that the kernel refuses, with words.
func bad() *nl.NetlinkRequest {
	req := route(netip.MustParseAddr("10.9.9.9"), 0)
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(1<<30)))
	return req
}

// Each request has its own answer: failures anywhere, any number of them.
func TestBatchTellsWhichFailed(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	next := netip.MustParseAddr("10.0.0.0")
	for name, fails := range map[string]func(i int) bool{
		"none":       func(int) bool { return false },
		"first":      func(i int) bool { return i == 0 },
		"middle":     func(i int) bool { return i == 150 },
		"last":       func(i int) bool { return i == 299 },
		"border":     func(i int) bool { return i == 127 || i == 128 },
		"each third": func(i int) bool { return i%3 == 1 },
		"all":        func(int) bool { return true },
	} {
		reqs := make([]*nl.NetlinkRequest, 300)
		for i := range reqs {
			next = next.Next()
			if reqs[i] = route(next, 0); fails(i) {
				reqs[i] = bad()
			}
		}
		for i, err := range c.Batch(reqs) {
			if (err != nil) != fails(i) {
				t.Errorf("%s: request %d: %v", name, i, err)
			}
		}
	}
	if errs := c.Batch(nil); len(errs) != 0 {
		t.Errorf("an empty batch: %v", errs)
	}
	if err := c.Batch([]*nl.NetlinkRequest{bad()})[0]; err == nil || strings.Contains(err.Error(), "receive") {
		t.Errorf("an error of the request reads %v", err)
	}
}

func TestEchoAndGet(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	bridge := func(kind int) *nl.NetlinkRequest {
		req := nl.NewNetlinkRequest(kind, 0)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("br0")))
		return req
	}
	create := bridge(unix.RTM_NEWLINK)
	create.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	create.AddData(info)
	indices := map[string]uint32{}
	note := func(what string) func([]byte) {
		return func(b []byte) { indices[what] = binary.NativeEndian.Uint32(b[4:]) }
	}
	if err := c.Echo(create, note("echo")); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(bridge(unix.RTM_GETLINK), note("get")); err != nil {
		t.Fatal(err)
	}
	if indices["echo"] == 0 || indices["echo"] != indices["get"] {
		t.Errorf("index of the new link: %v", indices)
	}
	if err := c.Echo(create, note("again")); !errors.Is(err, unix.EEXIST) || indices["again"] != 0 {
		t.Errorf("created twice: %v", err)
	}
	if err := c.Batch([]*nl.NetlinkRequest{bridge(unix.RTM_DELLINK)})[0]; err != nil {
		t.Fatal(err)
	}
	if err := c.Get(bridge(unix.RTM_GETLINK), note("gone")); !errors.Is(err, unix.ENODEV) || indices["gone"] != 0 {
		t.Errorf("read a link that is gone: %v", err)
	}
}

// Only the kernel is believed: a forged answer to a port id changes nothing.
func TestAnswersOfOthersAreIgnored(t *testing.T) {
	ns := netlab.TestNamespace(t)
	c := dial(t, ns)
	var fd int
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	req := route(netip.MustParseAddr("10.0.0.1"), 0)
	forged := make([]byte, unix.NLMSG_HDRLEN+20)
	binary.NativeEndian.PutUint32(forged, uint32(len(forged)))
	binary.NativeEndian.PutUint16(forged[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint32(forged[8:], req.Seq)
	refused := unix.EPERM
	binary.NativeEndian.PutUint32(forged[unix.NLMSG_HDRLEN:], uint32(-int32(refused)))
	if err := unix.Sendto(fd, forged, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: c.Port()}); err != nil {
		t.Fatal(err)
	}
	if err := c.Batch([]*nl.NetlinkRequest{req})[0]; err != nil {
		t.Errorf("a forged answer was believed: %v", err)
	}
}

// A closed socket is an error for each request, not a wait.
func TestBatchOnAClosedSocket(t *testing.T) {
	c := dial(t, netlab.TestNamespace(t))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range c.Batch([]*nl.NetlinkRequest{bad(), bad()}) {
		if !errors.Is(err, unix.EBADF) {
			t.Errorf("error %v", err)
		}
	}
}

// Many sockets in many namespaces from many goroutines: none gets lost.
func TestDialInIsSafeInParallel(t *testing.T) {
	spaces := []*netlab.Namespace{netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)}
	var group sync.WaitGroup
	for i := range 60 {
		group.Go(func() {
			c, err := rtnl.DialIn(spaces[i%len(spaces)].FD())
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			a := netip.AddrFrom4([4]byte{10, byte(i % len(spaces)), 0, byte(i)})
			if err := c.Batch([]*nl.NetlinkRequest{route(a, 0)})[0]; err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i, ns := range spaces {
		out, err := ns.Output("ip", "route")
		if err != nil || strings.Count(out, "blackhole") != 20 {
			t.Errorf("namespace %d has (%v)\n%s", i, err, out)
		}
	}
}
