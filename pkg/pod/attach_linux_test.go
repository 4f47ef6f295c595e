package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

const wantNode = `# ip -o link
lo: <LOOPBACK,UP> mtu 65536 mode DEFAULT group default link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
cni0: <BROADCAST,MULTICAST,UP> mtu 1450 mode DEFAULT group default link/ether 0a:58:0a:f4:01:01 brd ff:ff:ff:ff:ff:ff alias vxlan-cni bridge
vethb58de6d9c62@peer: <BROADCAST,MULTICAST,UP> mtu 1450 master cni0 mode DEFAULT group 30275 link/ether MAC brd ff:ff:ff:ff:ff:ff alias vxlan-cni 0000000000000000000000000000000000000000000000000000000000000007/eth0 pods default/web-7
# ip -o addr
lo inet 127.0.0.1/8 scope host lo valid_lft forever preferred_lft forever
lo inet6 ::1/128 scope host  valid_lft forever preferred_lft forever
cni0 inet 10.244.1.1/24 brd 10.244.1.255 scope global cni0 valid_lft forever preferred_lft forever
cni0 inet6 fd00:1::1/64 scope global nodad  valid_lft forever preferred_lft forever
cni0 inet6 fe80::858:aff:fef4:101/64 scope link nodad  valid_lft forever preferred_lft forever
# ip route
10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1
# ip -6 route
fd00:1::/64 dev cni0 proto kernel metric 256
# ip neigh show nud permanent
# bridge -d link
vethb58de6d9c62@peer: <BROADCAST,MULTICAST,UP> mtu 1450 master cni0 state forwarding
 hairpin on guard off root_block off fastleave off learning on flood on mcast_flood on bcast_flood on mcast_router 1 mcast_to_unicast off neigh_suppress off vlan_tunnel off isolated off locked off`

const wantPod = `# ip -o link
lo: <LOOPBACK,UP> mtu 65536 mode DEFAULT group default link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
eth0@peer: <BROADCAST,MULTICAST,UP> mtu 1450 mode DEFAULT group default link/ether 0a:58:0a:f4:01:07 brd ff:ff:ff:ff:ff:ff
# ip -o addr
lo inet 127.0.0.1/8 scope host lo valid_lft forever preferred_lft forever
lo inet6 ::1/128 scope host  valid_lft forever preferred_lft forever
eth0 inet 10.244.1.7/24 brd 10.244.1.255 scope global eth0 valid_lft forever preferred_lft forever
eth0 inet6 fd00:1::7/64 scope global nodad  valid_lft forever preferred_lft forever
# ip route
default via 10.244.1.1 dev eth0
10.244.1.0/24 dev eth0 proto kernel scope link src 10.244.1.7
# ip -6 route
fd00:1::/64 dev eth0 proto kernel metric 256
default via fd00:1::1 dev eth0 metric 1024
# ip neigh show nud permanent
10.244.1.1 dev eth0 lladdr 0a:58:0a:f4:01:01 PERMANENT
fd00:1::1 dev eth0 lladdr 0a:58:0a:f4:01:01 PERMANENT
# bridge -d link`

func TestAttachState(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	bare := state(t, ns)
	e := ensure(t, node, testBridge())
	empty := state(t, node)
	a := testAttachment(ns, 7)
	r := attach(t, node, a, e)
	if got := strings.ReplaceAll(state(t, node), r.HostMAC.String(), "MAC"); got != wantNode {
		t.Errorf("node:\n%s\nwant\n%s", got, wantNode)
	}
	if got := state(t, ns); got != wantPod {
		t.Errorf("pod:\n%s\nwant\n%s", got, wantPod)
	}
	if r.HostName != HostName(a.Container, "eth0") || r.PodMAC.String() != "0a:58:0a:f4:01:07" ||
		!strings.HasPrefix(output(t, node, fmt.Sprintf("ip -o link show %s", r.HostName)), fmt.Sprintf("%d: ", r.HostIndex)) ||
		!strings.HasPrefix(output(t, ns, "ip -o link show eth0"), fmt.Sprintf("%d: ", r.PodIndex)) {
		t.Errorf("result %+v", r)
	}
	in(t, node, func() error { return Check(a, "cni0") })
	in(t, node, func() error {
		found, err := Detach(a.Container, a.IfName)
		if !found && err == nil {
			err = errors.New("no link found")
		}
		return err
	})
	in(t, node, func() error {
		found, err := Detach(a.Container, a.IfName)
		if found {
			err = errors.New("found a link that is gone")
		}
		return err
	})
	if got := state(t, node); got != empty {
		t.Errorf("node after detach:\n%s\nwant\n%s", got, empty)
	}
	if got := state(t, ns); got != bare {
		t.Errorf("pod after detach:\n%s\nwant\n%s", got, bare)
	}
}

// The first packet goes through, without a wait for anything.
func TestFirstPing(t *testing.T) {
	for name, test := range map[string]struct {
		keep int // which family, or -1 for both
		to   []netip.Addr
	}{
		"dual stack": {-1, addrs("10.244.1.1", "fd00:1::1", "10.244.1.8", "fd00:1::8")},
		"IPv4":       {0, addrs("10.244.1.1", "10.244.1.8")},
		"IPv6":       {1, addrs("fd00:1::1", "fd00:1::8")},
	} {
		t.Run(name, func(t *testing.T) {
			node, one, two := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
			b, a, c := testBridge(), testAttachment(one, 7), testAttachment(two, 8)
			if i := test.keep; i >= 0 {
				b.Gateways = b.Gateways[i : i+1]
				for _, p := range []*Attachment{&a, &c} {
					p.Addrs, p.Gateways = p.Addrs[i:i+1], p.Gateways[i:i+1]
				}
			}
			e := ensure(t, node, b)
			attach(t, node, c, e)
			attach(t, node, a, e)
			for _, to := range test.to {
				r, err := netlab.Ping(t.Context(), one, netlab.Pings{To: to, Count: 1})
				if err != nil || r.Sent() != 1 || r.Lost() != 0 {
					t.Errorf("ping %s: %+v %v", to, r, err)
				}
			}
			want := "0a:58:0a:f4:01:01"
			if test.keep == 1 {
				want = "0a:58:00:00:00:01"
			}
			if e.MAC.String() != want {
				t.Errorf("bridge's MAC %s, want %s", e.MAC, want)
			}
		})
	}
}

func TestAttachThatFailsLeavesNothing(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	output(t, ns, "ip link add name taken type bridge")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nodeBefore, podBefore := state(t, node), state(t, ns)
	for name, test := range map[string]struct {
		change func(*Attachment, *Ensured)
		is     error
		text   string
	}{
		"netns gone":         {func(a *Attachment, _ *Ensured) { a.Netns = "/run/netns/nosuch" }, ErrNetns, "/run/netns/nosuch"},
		"netns a file":       {func(a *Attachment, _ *Ensured) { a.Netns = file }, ErrNetns, "is not a network namespace"},
		"netns of another":   {func(a *Attachment, _ *Ensured) { a.Netns = "/proc/self/ns/uts" }, ErrNetns, "is not a network namespace"},
		"netns the node's":   {func(a *Attachment, _ *Ensured) { a.Netns = node.Path() }, ErrNetns, "is the node's own"},
		"name taken":         {func(a *Attachment, _ *Ensured) { a.IfName = "taken" }, ErrExists, "interface taken"},
		"name impossible":    {func(a *Attachment, _ *Ensured) { a.IfName = "a/b" }, nil, `interface name "a/b"`},
		"no container":       {func(a *Attachment, _ *Ensured) { a.Container = "" }, nil, "container id"},
		"container too long": {func(a *Attachment, _ *Ensured) { a.Container = strings.Repeat("a", 181) }, nil, "container id"},
		"network too long":   {func(a *Attachment, _ *Ensured) { a.Network = strings.Repeat("a", 48) }, nil, "network name"},
		"pod with spaces":    {func(a *Attachment, _ *Ensured) { a.Pod = "a b" }, nil, "pod"},
		"no address":         {func(a *Attachment, _ *Ensured) { a.Addrs = nil }, nil, "addresses"},
		"same address twice": {func(a *Attachment, _ *Ensured) { a.Addrs = append(a.Addrs, a.Addrs[0]) }, unix.EEXIST, "add address 10.244.1.7/24"},
		"MAC of a group":     {func(a *Attachment, _ *Ensured) { a.MAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} }, nil, "MAC 01:00:5e:00:00:01"},
		"MAC of zeros":       {func(a *Attachment, _ *Ensured) { a.MAC = make(net.HardwareAddr, 6) }, unix.EADDRNOTAVAIL, "create link pair"},
		"gateway elsewhere":  {func(a *Attachment, _ *Ensured) { a.Gateways = addrs("10.244.9.1") }, unix.ENETUNREACH, "add default route via 10.244.9.1"},
		"MTU too small":      {func(a *Attachment, _ *Ensured) { a.MTU = 1 }, unix.EINVAL, "create link pair"},
		"no such bridge":     {func(_ *Attachment, e *Ensured) { e.Index = 9999 }, nil, "create link pair"},
	} {
		t.Run(name, func(t *testing.T) {
			a, bridge := testAttachment(ns, 7), e
			test.change(&a, &bridge)
			err := node.Do(func() error { _, err := Attach(a, bridge); return err })
			if err == nil || !strings.Contains(err.Error(), test.text) || (test.is != nil && !errors.Is(err, test.is)) {
				t.Errorf("error %v, want %v with %q", err, test.is, test.text)
			}
			if got := state(t, node); got != nodeBefore {
				t.Errorf("node:\n%s\nwant\n%s", got, nodeBefore)
			}
			// lo may be up: it is the pod's own, and stays.
			if got := state(t, ns); got != podBefore {
				t.Errorf("pod:\n%s\nwant\n%s", got, podBefore)
			}
		})
	}
}

func TestAttachTwice(t *testing.T) {
	node, ns, other := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	a := testAttachment(ns, 7)
	attach(t, node, a, e)
	before := state(t, node)
	again := func(a Attachment) error {
		return node.Do(func() error { _, err := Attach(a, e); return err })
	}
	if err := again(a); !errors.Is(err, ErrAttached) || errors.Is(err, ErrExists) {
		t.Errorf("the same again: %v", err)
	}
	a.Netns = other.Path()
	if err := again(a); !errors.Is(err, ErrAttached) {
		t.Errorf("the same container in another namespace: %v", err)
	}
	if after := state(t, node); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	a.IfName = "eth1" // a second interface is another attachment
	a.Addrs, a.Gateways = prefixes("10.244.1.9/24"), nil
	attach(t, node, a, e)
}

// Thirty at once, and none of them finds a bridge.
func TestAttachInParallel(t *testing.T) {
	const pods = 30
	node := netlab.TestNamespace(t)
	var group sync.WaitGroup
	errs := make([]error, pods)
	for i := range pods {
		a := testAttachment(netlab.TestNamespace(t), i+2)
		group.Go(func() {
			errs[i] = node.Do(func() error {
				e, err := testBridge().Ensure()
				if err == nil {
					_, err = Attach(a, e)
				}
				return err
			})
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	var ports []Port
	in(t, node, func() (err error) { ports, err = List(); return err })
	if len(ports) != pods || slices.ContainsFunc(ports, func(p Port) bool { return p.Bridge == 0 || !p.Up || p.Container == "" }) {
		t.Errorf("%d ports, want %d, each named and on the bridge: %+v", len(ports), pods, ports)
	}
	for i := range pods {
		group.Go(func() {
			errs[i] = node.Do(func() error { _, err := Detach(testAttachment(node, i+2).Container, "eth0"); return err })
		})
	}
	group.Wait()
	in(t, node, func() (err error) { ports, err = List(); return errors.Join(append(errs, err)...) })
	if len(ports) != 0 {
		t.Errorf("left behind: %+v", ports)
	}
}

func BenchmarkAttach(b *testing.B) {
	b.Run("IPv4", func(b *testing.B) { benchmarkAttach(b, 1) })
	b.Run("dual-stack", func(b *testing.B) { benchmarkAttach(b, 2) })
}

func benchmarkAttach(b *testing.B, families int) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	a.Addrs, a.Gateways = a.Addrs[:families], a.Gateways[:families]
	for b.Loop() {
		attach(b, node, a, e)
		b.StopTimer()
		in(b, node, func() error { _, err := Detach(a.Container, a.IfName); return err })
		b.StartTimer()
	}
}

func BenchmarkDetach(b *testing.B) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	for b.Loop() {
		b.StopTimer()
		attach(b, node, a, e)
		b.StartTimer()
		in(b, node, func() error { _, err := Detach(a.Container, a.IfName); return err })
	}
}

func BenchmarkCheck(b *testing.B) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	attach(b, node, a, e)
	for b.Loop() {
		in(b, node, func() error { return Check(a, "cni0") })
	}
}
