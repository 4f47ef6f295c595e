package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A variant is a back end that the suite runs on.
type variant struct {
	name   string
	mode   Mode
	legacy bool // the iptables that is found first is of the legacy flavour
}

var variants = []variant{
	{"auto", Auto, false},
	{"nftables", NFTables, false},
	{"iptables-nft", IPTables, false},
	{"iptables-legacy", IPTables, true},
}

// each runs a test on every back end.
func each(t *testing.T, fn func(*testing.T, variant)) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			usePrograms(t, v.legacy)
			fn(t, v)
		})
	}
}

// usePrograms has the names iptables and ip6tables mean one flavour, whatever
// the machine's alternatives are.
func usePrograms(t testing.TB, legacy bool) {
	t.Helper()
	dir := t.TempDir()
	flavour := "nft"
	if legacy {
		flavour = "legacy"
	}
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, end := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(base + "-" + flavour + end)
			if err != nil {
				t.Fatalf("%v: install Debian's iptables", err)
			}
			if err := os.Symlink(path, filepath.Join(dir, base+end)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// A site is a node with a pod, a peer of the cluster with a pod of its own, and
// somebody outside. All of them have addresses of both families.
type site struct {
	node, pod, peer, outside *netlab.Namespace
}

// Addresses of a site, by family.
type place struct {
	node, peer, stranger netip.Addr // on the underlay; the stranger is the peer's host, too
	gateway, pod         netip.Addr // in the node's pod subnet
	peerPod              netip.Addr
	nodeOut, outside     netip.Addr // on the link to the outside
	group                netip.Addr // a multicast group
}

var places = map[string]place{
	"ipv4": {
		node: addr("192.0.2.1"), peer: addr("192.0.2.2"), stranger: addr("192.0.2.66"),
		gateway: addr("10.244.1.1"), pod: addr("10.244.1.2"), peerPod: addr("10.244.2.2"),
		nodeOut: addr("203.0.113.1"), outside: addr("203.0.113.9"), group: addr("239.1.2.3"),
	},
	"ipv6": {
		node: addr("2001:db8::1"), peer: addr("2001:db8::2"), stranger: addr("2001:db8::66"),
		gateway: addr("fd00:0:0:1::1"), pod: addr("fd00:0:0:1::2"), peerPod: addr("fd00:0:0:2::2"),
		nodeOut: addr("2001:db8:1::1"), outside: addr("2001:db8:1::9"), group: addr("ff15::1:2:3"),
	},
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// testRules is all that a node can want.
func testRules() Rules {
	return Rules{
		Networks:   prefixes("10.244.0.0/16", "fd00::/48"),
		Subnets:    prefixes("10.244.1.0/24", "fd00:0:0:1::/64"),
		Masquerade: true, Forward: true,
		Port: 8472, Filter: true, Peers: []netip.Addr{addr("192.0.2.2"), addr("2001:db8::2")},
	}
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)}
	for _, ns := range []*netlab.Namespace{s.node, s.pod, s.peer, s.outside} {
		must(t, ns.Sysctl(
			"net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1", "net/ipv4/conf/all/rp_filter", "0",
			"net/ipv6/conf/default/accept_dad", "0", "net/ipv6/conf/all/accept_dad", "0"))
	}
	for link, other := range map[string]*netlab.Namespace{"p0": s.pod, "u0": s.peer, "o0": s.outside} {
		must(t, s.node.IP(fmt.Sprintf("link add %s type veth peer name eth0 netns %s", link, other.Name)))
	}
	four, six := places["ipv4"], places["ipv6"]
	up := func(ns *netlab.Namespace, link string, four, six netip.Addr, more ...string) {
		must(t, ns.IP(append([]string{
			fmt.Sprintf("addr add %s/24 dev %s", four, link), fmt.Sprintf("addr add %s/64 dev %s nodad", six, link), "link set " + link + " up",
		}, more...)...))
	}
	up(s.node, "p0", four.gateway, six.gateway)
	up(s.node, "u0", four.node, six.node)
	up(s.node, "o0", four.nodeOut, six.nodeOut)
	up(s.pod, "eth0", four.pod, six.pod, fmt.Sprintf("route add default via %s", four.gateway), fmt.Sprintf("route add default via %s", six.gateway))
	up(s.peer, "eth0", four.peer, six.peer,
		fmt.Sprintf("addr add %s/24 dev eth0", four.stranger), fmt.Sprintf("addr add %s/64 dev eth0 nodad", six.stranger),
		fmt.Sprintf("addr add %s/32 dev lo", four.peerPod), fmt.Sprintf("addr add %s/128 dev lo nodad", six.peerPod),
		fmt.Sprintf("route add default via %s", four.node), fmt.Sprintf("route add default via %s", six.node))
	up(s.outside, "eth0", four.outside, six.outside, fmt.Sprintf("route add default via %s", four.nodeOut), fmt.Sprintf("route add default via %s", six.nodeOut))
	must(t, s.node.IP("route add 10.244.2.0/24 via "+four.peer.String(), "route add fd00:0:0:2::/64 via "+six.peer.String()))
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a Firewall inside the namespace, for as long as the test takes.
func open(t testing.TB, ns *netlab.Namespace, mode Mode) *Firewall {
	t.Helper()
	var f *Firewall
	must(t, ns.Do(func() (err error) {
		f, err = Open(mode, slog.New(slog.NewTextHandler(t.Output(), nil)))
		return err
	}))
	t.Cleanup(func() { must(t, f.Close()) })
	return f
}

// ensure makes the rules right, and fails the test if that is refused.
func ensure(t testing.TB, ns *netlab.Namespace, f *Firewall, r Rules) (did []string) {
	t.Helper()
	must(t, ns.Do(func() (err error) {
		did, err = f.Ensure(r)
		return err
	}))
	return did
}

// quiet fails the test if the rules are not right as they are.
func quiet(t testing.TB, ns *netlab.Namespace, f *Firewall, r Rules) {
	t.Helper()
	if did := ensure(t, ns, f, r); len(did) > 0 {
		t.Errorf("ensured once more, it did %q, want nothing", did)
	}
}

// start runs f until the test ends.
func start(t *testing.T, f *Firewall) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// run carries out a line of shell inside the namespace.
func run(t testing.TB, ns *netlab.Namespace, line string) {
	t.Helper()
	if out, err := ns.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

var (
	counters = regexp.MustCompile(`counter packets \d+ bytes \d+|\[\d+:\d+\]`)
	comments = regexp.MustCompile(`(?m)^#.*\n`)
)

// ruleset is everything that the namespace has of nftables and iptables, without
// what was counted.
func ruleset(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	var all strings.Builder
	for _, line := range []string{"nft list ruleset", "iptables-legacy-save", "ip6tables-legacy-save"} {
		words := strings.Fields(line)
		out, err := ns.Output(words[0], words[1:]...)
		must(t, err)
		all.WriteString(comments.ReplaceAllString(counters.ReplaceAllString(out, "counter"), ""))
	}
	return all.String()
}

// serve answers each UDP packet with the address that it seems to come from.
func serve(t testing.TB, ns *netlab.Namespace, at netip.AddrPort) {
	t.Helper()
	conn := listen(t, ns, at)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

func listen(t testing.TB, ns *netlab.Namespace, at netip.AddrPort) (conn *net.UDPConn) {
	t.Helper()
	must(t, ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// whoami asks a server whom it sees. A packet that is dropped is an error after
// 200 ms.
func whoami(t testing.TB, ns *netlab.Namespace, from netip.Addr, to netip.AddrPort) (string, error) {
	t.Helper()
	conn := listen(t, ns, netip.AddrPortFrom(from, 0))
	defer func() { _ = conn.Close() }()
	must(t, conn.SetDeadline(time.Now().Add(200*time.Millisecond)))
	if _, err := conn.WriteToUDPAddrPort([]byte("who am I?"), to); err != nil {
		return "", err
	}
	b := make([]byte, 2048)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// sees fails the test unless the server at to is reached from the address and
// sees want. It tries more than once: the machine may be slow.
func sees(t testing.TB, ns *netlab.Namespace, from netip.Addr, to netip.AddrPort, want netip.Addr) {
	t.Helper()
	var got string
	err := netlab.Eventually(5*time.Second, func() (err error) {
		got, err = whoami(t, ns, from, to)
		return err
	})
	if err != nil {
		t.Errorf("from %s to %s: %v", from, to, err)
	} else if got != want.String() {
		t.Errorf("from %s to %s: it is seen as %s, want %s", from, to, got, want)
	}
}
