package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// firewalls are overlayd's back ends. What holds with one holds with the other.
var firewalls = []string{"auto", "iptables"}

// witnessPort is where who asks is told which source address is seen.
const witnessPort = 13

// A site is two nodes with pods, a host outside, and one on the nodes' link that
// is no node. All of it has both families.
type site struct {
	*cluster.Cluster
	pods     []*cluster.Pod // a and b of the first node, then of the second
	outside  *netlab.Host
	stranger *netlab.Host
	ears     uint16 // how many have listened
}

func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	o := cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 2}}
	s := &site{Cluster: startCluster(t, o, flags...)}
	s.pods = addPods(t, s.Cluster, "a", "b")
	var err error
	if s.outside, err = s.NewOutside(); err != nil {
		t.Fatal(err)
	}
	if s.stranger, err = s.NewNeighbour(250); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*netlab.Namespace{s.outside.Namespace, s.Nodes[0].Namespace, s.Nodes[1].Namespace} {
		serveWitness(t, n)
	}
	for _, p := range s.pods {
		serveWitness(t, p.NS)
		serveEcho(t, p.NS)
	}
	return s
}

// serveWitness runs a witness for as long as the test runs.
func serveWitness(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	w, err := netlab.StartWitness(n, witnessPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
}

// wantSeen fails the test unless a witness on an address sees n under another one,
// by TCP and by UDP.
func wantSeen(t *testing.T, n *netlab.Namespace, at, as netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		from, err := netlab.Seen(n, network, netip.AddrPortFrom(at, witnessPort), patience)
		if err != nil || from.Addr() != as {
			t.Errorf("%s by %s is seen by %s as %s, want %s: %v", n.Name, network, at, from, as, err)
		}
	}
}

func TestFirewall(t *testing.T) {
	t.Parallel()
	for _, mode := range firewalls {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "--firewall", mode)
			for _, is4 := range []bool{true, false} {
				s.wantSources(t, is4)
				s.wantServices(t, is4)
				s.wantUnheard(t, is4, s.strangers())
			}
			s.wantNoOuterFlows(t)
			for _, f := range flushes {
				t.Run(f.name, func(t *testing.T) { s.wantRepaired(t, f.command) })
			}
		})
	}
}

// wantSources is what masquerading is about: outside the cluster's network pods have
// their node's address, inside it their own.
func (s *site) wantSources(t *testing.T, is4 bool) {
	t.Helper()
	for i, p := range s.pods {
		own, other := s.Nodes[i/2], s.Nodes[1-i/2]
		wantSeen(t, p.NS, s.outside.Addr(is4), own.Addr(is4))
		wantSeen(t, p.NS, other.Addr(is4), own.Addr(is4))
		wantSeen(t, p.NS, own.Addr(is4), p.Of(is4))
		for _, q := range s.pods {
			wantSeen(t, p.NS, q.Of(is4), p.Of(is4))
		}
		to := s.outside.Addr(is4)
		r, err := netlab.Ping(t.Context(), p.NS, netlab.Pings{To: to, Size: netlab.ICMPSize(to, 1430), Whole: true})
		if err != nil || r.Lost() > 0 {
			t.Errorf("%s to outside: %v %v", p.Args.ContainerID, r, err)
		}
	}
}

// Addresses of Services, outside of all networks of the lab.
var serviceAddrs = map[bool]string{true: "10.96.0.10", false: "fd00:96::10"}

// service is what kube-proxy does for a Service with one endpoint, with a node
// port, in nftables: what a pod sends to itself, and what comes by the node port,
// is marked and masqueraded.
const service = `
table inet service%[1]s {
	chain prerouting {
		type nat hook prerouting priority dstnat
		%[2]s daddr %[3]s %[2]s saddr %[4]s meta mark set meta mark or 0x4000
		%[2]s daddr %[3]s meta l4proto { tcp, udp } th dport 80 dnat %[2]s to %[5]s
		fib daddr type local meta l4proto { tcp, udp } th dport 30080 meta mark set meta mark or 0x4000
		fib daddr type local meta l4proto { tcp, udp } th dport { 30080, 30081 } dnat %[2]s to %[5]s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0x4000 masquerade
	}
}
`

// wantServices makes the first pod a Service on both nodes: pods reach it from
// everywhere, itself included, and so does the world by a node port.
func (s *site) wantServices(t *testing.T, is4 bool) {
	t.Helper()
	pod := s.pods[0]
	name, vip := "ip", netip.MustParseAddr(serviceAddrs[is4])
	if !is4 {
		name = "ip6"
	}
	for _, n := range s.Nodes {
		rules := fmt.Sprintf(service, name, name, vip, pod.Of(is4), netip.AddrPortFrom(pod.Of(is4), witnessPort))
		if err := n.NFT(rules); err != nil {
			t.Fatal(err)
		}
	}
	seen := func(from *netlab.Namespace, network string, to netip.Addr, port uint16) netip.Addr {
		t.Helper()
		as, err := netlab.Seen(from, network, netip.AddrPortFrom(to, port), patience)
		if err != nil {
			t.Errorf("service %s, IPv4 %t: %v", network, is4, err)
		}
		return as.Addr()
	}
	for _, network := range []string{"tcp", "udp"} {
		if as := seen(pod.NS, network, vip, 80); as == pod.Of(is4) {
			t.Errorf("%s to itself is seen as %s: it cannot answer that", network, as)
		}
		for _, p := range s.pods[1:] {
			if as := seen(p.NS, network, vip, 80); as != p.Of(is4) {
				t.Errorf("%s of %s to a service is seen as %s, want %s", network, p.Args.ContainerID, as, p.Of(is4))
			}
		}
		for _, n := range s.Nodes {
			if as := seen(s.outside.Namespace, network, n.Addr(is4), 30080); as == s.outside.Addr(is4) {
				t.Errorf("%s by %s's node port is not masqueraded", network, n.Name)
			}
		}
		// With externalTrafficPolicy Local the pod sees who it is.
		if as := seen(s.outside.Namespace, network, s.Nodes[0].Addr(is4), 30081); as != s.outside.Addr(is4) {
			t.Errorf("%s by the node port of the pod's own node is seen as %s, want %s", network, as, s.outside.Addr(is4))
		}
	}
	for _, n := range s.Nodes {
		if err := n.NFT("delete table inet service" + name); err != nil {
			t.Error(err)
		}
	}
}

// strangers are those that send to nodes and are none.
func (s *site) strangers() map[string]*netlab.Namespace {
	return map[string]*netlab.Namespace{
		"a host on the link": s.stranger.Namespace, "a host outside": s.outside.Namespace, "the router": s.Underlay,
		"a pod of the node": s.pods[1].NS,
	}
}

// wantUnheard has others put packets for a pod into the tunnel: only a node's
// arrive.
func (s *site) wantUnheard(t *testing.T, is4 bool, others map[string]*netlab.Namespace) {
	t.Helper()
	to, node := s.pods[0], s.Nodes[0]
	s.ears++
	e := listen(t, to.NS, 4000+s.ears)
	device := map[bool]string{true: cluster.Device, false: cluster.Device6}[is4]
	say := func(from *netlab.Namespace, text string) {
		tunnel(t, from, node.Addr(is4), datagram{
			fromMAC: macOf(t, s.Nodes[1].Namespace, device), toMAC: macOf(t, node.Namespace, device),
			from: netip.AddrPortFrom(s.pods[2].Of(is4), 9), to: netip.AddrPortFrom(to.Of(is4), e.port), text: text,
		}.frame())
	}
	for name, n := range others {
		say(n, name)
	}
	// What a node says afterwards is heard: the frames are right, and the others
	// would have been there before.
	say(s.Nodes[1].Namespace, "a node")
	if err := netlab.Eventually(patience, func() error { return e.has("a node") }); err != nil {
		t.Fatal(err)
	}
	for name := range others {
		if e.has(name) == nil {
			t.Errorf("IPv4 %t: %s has put a packet into a pod", is4, name)
		}
	}
}

// What a pod sends to another node has its own node's address there, which is a
// leased one: VXLAN of a pod has to be stopped before.
func TestPodsForgeNoTunnel(t *testing.T) {
	t.Parallel()
	for _, mode := range firewalls {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "--firewall", mode)
			for _, is4 := range []bool{true, false} {
				s.wantUnheard(t, is4, map[string]*netlab.Namespace{
					"a pod of the node": s.pods[0].NS, "a pod of another node": s.pods[2].NS,
				})
			}
		})
	}
}

// wantNoOuterFlows makes many connections through the tunnel, and wants the
// tunnel's own packets not to be tracked.
func (s *site) wantNoOuterFlows(t *testing.T) {
	t.Helper()
	const connections = 1000
	var failed atomic.Int64
	parallel(connections, func(i int) {
		to := s.pods[2+i%2].Addrs[i/2%2]
		err := netlab.Exchange(s.pods[i/4%2].NS, "tcp", netip.AddrPortFrom(to, echoPort), 100, patience)
		if err != nil && failed.Add(1) == 1 {
			t.Error(err)
		}
	})
	if failed.Load() > 0 {
		t.Errorf("%d of %d connections failed", failed.Load(), connections)
	}
	for _, n := range s.Nodes {
		flows, err := n.Flows()
		if err != nil {
			t.Fatal(err)
		}
		inner, outer := 0, 0
		for _, f := range flows {
			switch {
			case f.To.Port() == vxlanPort || f.From.Port() == vxlanPort:
				outer++
			case f.To.Port() == echoPort:
				inner++
			}
		}
		if outer > 0 {
			t.Errorf("%s: %d entries of connection tracking for the tunnel, want none", n.Name, outer)
		}
		if inner < connections/2 {
			t.Errorf("%s: %d entries for %d connections: nothing is tracked here", n.Name, inner, connections)
		}
	}
}

// flushes are what other tools do to the rules. A chain that is deleted may be
// back, and in use, in the middle of it.
var flushes = []struct{ name, command string }{
	{"nft flush", "nft flush ruleset"},
	{"iptables-nft flush", "for i in iptables-nft ip6tables-nft; do for t in raw nat filter; do $i -w -t $t -F; $i -w -t $t -X || true; done; done"},
	{"iptables-legacy flush", "for i in iptables-legacy ip6tables-legacy; do for t in raw nat filter; do $i -w -t $t -F; $i -w -t $t -X || true; done; done"},
	{"firewall closed", "nft flush ruleset; iptables-nft -w -P FORWARD DROP; ip6tables-nft -w -P FORWARD DROP"},
}

// repaired is the target: how long rules may be away that another tool flushed.
const repaired = time.Second

// wantRepaired flushes a node's rules, and wants new connections of pods to be
// masqueraded again soon.
func (s *site) wantRepaired(t *testing.T, command string) {
	n := s.Nodes[0]
	var longest time.Duration
	// Other work on the machine can hold up the daemon: the best of three counts.
	for range 3 {
		stop4, stop6 := s.ask(t, true), s.ask(t, false)
		flush(t, n, command)
		longest = max(stop4(), stop6())
		t.Logf("new connections were cut off for %v", longest)
		if longest <= repaired {
			break
		}
	}
	if longest > repaired {
		t.Errorf("%s: new connections were cut off for %v, want at most %v\n%s", command, longest, repaired, story(t, n))
	}
	flush(t, n, "iptables-nft -w -P FORWARD ACCEPT; ip6tables-nft -w -P FORWARD ACCEPT")
	s.wantUnheard(t, true, s.strangers())
}

// ask makes connections from a pod to the outside, one after the other, until stop
// is called and some more have succeeded since. stop returns the longest time
// without success.
func (s *site) ask(t *testing.T, is4 bool) (stop func() time.Duration) {
	t.Helper()
	at, as := netip.AddrPortFrom(s.outside.Addr(is4), witnessPort), s.Nodes[0].Addr(is4)
	flushed := make(chan struct{})
	result := make(chan time.Duration, 1)
	seen := func() error {
		from, err := netlab.Seen(s.pods[0].NS, "udp", at, 20*time.Millisecond)
		if err == nil && from.Addr() != as {
			err = fmt.Errorf("seen as %s, want %s", from, as)
		}
		return err
	}
	if err := netlab.Eventually(patience, seen); err != nil {
		t.Fatal(err)
	}
	go func() {
		var longest time.Duration
		last, more := time.Now(), 20
		for more > 0 && time.Since(last) < patience {
			if seen() != nil {
				continue
			}
			longest, last = max(longest, time.Since(last)), time.Now()
			select {
			case <-flushed:
				more--
			default:
			}
		}
		result <- max(longest, time.Since(last))
	}()
	return func() time.Duration {
		close(flushed)
		return <-result
	}
}

// A node whose FORWARD drops what it does not know, before the start or later, in
// either flavour of iptables.
func TestFirewallOpensForward(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{
		"policy, nft":    "iptables-nft -w -P FORWARD DROP; ip6tables-nft -w -P FORWARD DROP",
		"policy, legacy": "iptables-legacy -w -P FORWARD DROP; ip6tables-legacy -w -P FORWARD DROP",
		"reject, nft":    "iptables-nft -w -A FORWARD -j REJECT; ip6tables-nft -w -A FORWARD -j REJECT",
		"reject, legacy": "iptables-legacy -w -A FORWARD -j REJECT; ip6tables-legacy -w -A FORWARD -j REJECT",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 2}}
			c := newCluster(t, o)
			before, later := c.Nodes[0], c.Nodes[1]
			flush(t, before, command)
			err := errors.Join(c.StartEtcd(), c.Put(t.Context(), "config", o.Network), c.StartDaemons(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			pods := addPods(t, c, "a")
			for _, p := range pods {
				serveWitness(t, p.NS)
			}
			flush(t, later, command)
			outside, err := c.NewOutside()
			if err != nil {
				t.Fatal(err)
			}
			serveWitness(t, outside.Namespace)
			for _, is4 := range []bool{true, false} {
				for i, p := range pods {
					other := pods[1-i]
					err := netlab.Eventually(patience, func() error {
						at := netip.AddrPortFrom(other.Of(is4), witnessPort)
						_, err := netlab.Seen(p.NS, "udp", at, 100*time.Millisecond)
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
					wantSeen(t, p.NS, other.Of(is4), p.Of(is4))
					wantSeen(t, p.NS, outside.Addr(is4), c.Nodes[i].Addr(is4))
				}
			}
		})
	}
}

// idle is how long a daemon must not run a program.
const idle = 60 * time.Second

func TestIdleDaemonRunsNoProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	count(t, dir, log)
	runs := func() []string {
		b, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	o := cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{
		Nodes: 1, Env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
	}}
	c := startCluster(t, o, "--firewall", "iptables")
	addPods(t, c, "a")
	before := runs()
	if len(before) < 2 {
		t.Fatalf("programs that the daemon has run: %q; this test counts nothing", before)
	}
	wait(t, idle)
	if after := runs(); len(after) != len(before) {
		t.Errorf("in %v of idleness the daemon has run %q", idle, after[len(before):])
	}
}

// count puts programs into dir that write a line to log and then are those of the
// same name.
func count(t *testing.T, dir, log string) {
	t.Helper()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"", "-nft", "-legacy"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				name := family + flavour + verb
				script := fmt.Sprintf("#!/bin/sh\necho \"%s $*\" >> %s\nPATH=%s exec %[1]s \"$@\"\n", name, log, os.Getenv("PATH"))
				if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
