package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// echoPort is where pods, nodes and hosts of these tests answer.
const echoPort = 7

// patience bounds the waits for what takes milliseconds on an idle machine.
const patience = 20 * time.Second

// A stack is the families of a cluster's pods and of its underlay.
type stack struct{ pods, underlay string }

var networks = map[string]string{"4": cluster.Network, "6": cluster.Network6, "46": cluster.NetworkDual}

// families are those of "4", "6" or "46", IPv4 first; true is IPv4.
func families(s string) (is4 []bool) {
	for _, c := range s {
		is4 = append(is4, c == '4')
	}
	return is4
}

// both are the families that pods and underlay have in common: pods of these reach
// the world outside.
func (s stack) both() (is4 []bool) {
	for _, c := range families(s.pods) {
		if slices.Contains(families(s.underlay), c) {
			is4 = append(is4, c)
		}
	}
	return is4
}

// devices are the VXLAN devices that the cluster's nodes must have: one for each
// underlay family that carries pods.
func (s stack) devices() (names []string) {
	carriers := s.both()
	if len(carriers) == 0 {
		carriers = families(s.underlay)[:1]
	}
	for _, is4 := range carriers {
		names = append(names, map[bool]string{true: cluster.Device, false: cluster.Device6}[is4])
	}
	return names
}

// mtu is what pods may send in one packet: VXLAN takes 50 bytes of an IPv4
// underlay and 70 of an IPv6 one.
func (s stack) mtu(underlay int) int {
	if slices.Contains(s.devices(), cluster.Device6) {
		return underlay - 70
	}
	return underlay - 50
}

func (s stack) String() string { return fmt.Sprintf("pods %s over %s", s.pods, s.underlay) }

// Every combination of pod and underlay families is one code path, and all of it
// has to carry whatever a pod sends.
func TestStacks(t *testing.T) {
	t.Parallel()
	for _, s := range []stack{
		{"4", "4"}, {"4", "6"}, {"4", "46"},
		{"6", "4"}, {"6", "6"}, {"6", "46"},
		{"46", "4"}, {"46", "6"}, {"46", "46"},
	} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, cluster.Options{
				Network: networks[s.pods], Options: netlab.Options{Nodes: 2, Underlay: s.underlay},
			})
			pods := addPods(t, c, "a", "b")
			for _, p := range pods {
				serveEcho(t, p.NS)
			}
			wantDevices(t, c, s)
			wantMTU(t, c, s.mtu(1500), pods...)
			for _, is4 := range families(s.pods) {
				wantAllPairs(t, pods, is4, s.mtu(1500))
				wantAllSizes(t, pods[0], pods[1].Of(is4), s.mtu(1500)) // on one node
				wantAllSizes(t, pods[0], pods[3].Of(is4), s.mtu(1500)) // across nodes
				wantNodes(t, c, pods, is4)
				wantTransfer(t, pods[0], pods[2], is4)
			}
		})
	}
}

// serveEcho answers on echoPort for as long as the test runs.
func serveEcho(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	s, err := netlab.StartEcho(n, echoPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
}

// wantDevices fails the test unless each node has just those VXLAN devices that
// the stack needs.
func wantDevices(t *testing.T, c *cluster.Cluster, s stack) {
	t.Helper()
	for _, n := range c.Nodes {
		links, err := n.Links()
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, name := range []string{cluster.Device, cluster.Device6} {
			if slices.Contains(links, name) {
				have = append(have, name)
			}
		}
		if !slices.Equal(have, s.devices()) {
			t.Errorf("%s: %s has %v, want %v", s, n.Name, have, s.devices())
		}
	}
}

// linkMTU reads the MTU of a link.
func linkMTU(n *netlab.Namespace, link string) (mtu int, err error) {
	out, err := n.Output("ip", "-o", "link", "show", "dev", link)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(out, " mtu ")
	_, err = fmt.Sscan(rest, &mtu)
	return mtu, err
}

// mtuIs says what of nodes and pods has another MTU than it should: devices,
// bridge, and both ends of every pod's pair.
func mtuIs(c *cluster.Cluster, want int, pods ...*cluster.Pod) error {
	var errs []error
	is := func(n *netlab.Namespace, link string) {
		have, err := linkMTU(n, link)
		if err == nil && have != want {
			err = fmt.Errorf("%s: %s has MTU %d, want %d", n.Name, link, have, want)
		}
		errs = append(errs, err)
	}
	for _, n := range c.Nodes {
		links, err := n.Links()
		errs = append(errs, err)
		for _, l := range links {
			if l != "lo" && l != "eth0" {
				is(n.Namespace, l)
			}
		}
	}
	for _, p := range pods {
		is(p.NS, "eth0")
	}
	return errors.Join(errs...)
}

func wantMTU(t *testing.T, c *cluster.Cluster, want int, pods ...*cluster.Pod) {
	t.Helper()
	if err := mtuIs(c, want, pods...); err != nil {
		t.Error(err)
	}
}

// wantAllPairs fails the test unless each pod reaches each other by the first
// packet, and by packets of full size that nobody may fragment.
func wantAllPairs(t *testing.T, pods []*cluster.Pod, is4 bool, mtu int) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			a := to.Of(is4)
			if from == to || !a.IsValid() {
				continue
			}
			for _, p := range []netlab.Pings{
				{To: a, Count: 2, Interval: time.Millisecond},
				{To: a, Size: netlab.ICMPSize(a, mtu), Whole: true},
			} {
				if r, err := netlab.Ping(t.Context(), from.NS, p); err != nil || r.Lost() > 0 {
					t.Errorf("%s to %s, %d bytes: %v %v", from.Args.ContainerID, to.Args.ContainerID, p.Size, r, err)
				}
			}
		}
	}
}

// wantAllSizes sends packets from one byte to the full MTU, and wants to be told
// of what is one byte more: nothing may be swallowed.
func wantAllSizes(t *testing.T, from *cluster.Pod, to netip.Addr, mtu int) {
	t.Helper()
	full := netlab.ICMPSize(to, mtu) // UDP's header has as many bytes as that of an echo
	at := netip.AddrPortFrom(to, echoPort)
	for _, size := range []int{1, 2, 63, 64, 511, 512, 1000, 1231, 1232, 1233, full - 1, full} {
		for _, network := range []string{"udp", "tcp"} {
			if err := netlab.Exchange(from.NS, network, at, size, patience); err != nil {
				t.Error(err)
			}
		}
		p := netlab.Pings{To: to, Size: size, Whole: true}
		if r, err := netlab.Ping(t.Context(), from.NS, p); err != nil || r.Lost() > 0 {
			t.Errorf("%d bytes of %d: %v %v", size, full, r, err)
		}
	}
	// More than one packet: TCP cuts it up, UDP is fragmented inside the tunnel.
	for network, size := range map[string]int{"udp": 20_000, "tcp": 1 << 20} {
		if err := netlab.Exchange(from.NS, network, at, size, patience); err != nil {
			t.Error(err)
		}
	}
	wantTooBig(t, from.NS, to, mtu)
}

// wantTooBig fails the test unless the sender of a packet of more than mtu bytes,
// that must not be fragmented, is told so.
func wantTooBig(t *testing.T, from *netlab.Namespace, to netip.Addr, mtu int) {
	t.Helper()
	r, err := netlab.Ping(t.Context(), from, netlab.Pings{
		To: to, Size: netlab.ICMPSize(to, mtu+1), Whole: true, Count: 1, Timeout: time.Millisecond,
	})
	if err != nil || !errors.Is(r.SendError, syscall.EMSGSIZE) {
		t.Errorf("%s to %s, %d bytes: %v %v; want %v", from.Name, to, mtu+1, r, err, syscall.EMSGSIZE)
	}
}

// wantNodes fails the test unless pods and nodes reach each other, at every address
// that the nodes have of the family.
func wantNodes(t *testing.T, c *cluster.Cluster, pods []*cluster.Pod, is4 bool) {
	t.Helper()
	for i, n := range c.Nodes {
		addrs := nodeAddrs(t, n, is4)
		if len(addrs) == 0 {
			t.Errorf("%s has no address of IPv4 %t", n.Name, is4)
		}
		for _, p := range pods {
			for _, a := range addrs {
				if r, err := netlab.Ping(t.Context(), p.NS, netlab.Pings{To: a}); err != nil || r.Lost() > 0 {
					t.Errorf("%s to node %s: %v %v", p.Args.ContainerID, n.Name, r, err)
				}
			}
			to := netip.AddrPortFrom(p.Of(is4), echoPort)
			r, err := netlab.Ping(t.Context(), n.Namespace, netlab.Pings{To: to.Addr()})
			if err != nil || r.Lost() > 0 {
				t.Errorf("node %s to %s: %v %v", n.Name, p.Args.ContainerID, r, err)
			}
			for network, size := range map[string]int{"udp": 1000, "tcp": 100_000} {
				if err := netlab.Exchange(n.Namespace, network, to, size, patience); err != nil {
					t.Error(err)
				}
			}
		}
		wantNodeAnswers(t, n.Namespace, pods[(2*i+2)%len(pods)], addrs)
	}
}

// wantNodeAnswers fails the test unless a server on the node answers a pod of the
// other node.
func wantNodeAnswers(t *testing.T, n *netlab.Namespace, from *cluster.Pod, addrs []netip.Addr) {
	t.Helper()
	s, err := netlab.StartEcho(n, echoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, a := range addrs {
		for network, size := range map[string]int{"udp": 1000, "tcp": 100_000} {
			if err := netlab.Exchange(from.NS, network, netip.AddrPortFrom(a, echoPort), size, patience); err != nil {
				t.Error(err)
			}
		}
	}
}

// nodeAddrs are the node's addresses that pods of a family may want to reach: that
// of the bridge, and that of eth0 if there is one.
func nodeAddrs(t *testing.T, n *netlab.Node, is4 bool) (addrs []netip.Addr) {
	t.Helper()
	out, err := n.Output("ip", "-o", "address", "show", "scope", "global")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		p, err := netip.ParsePrefix(words[3])
		if err != nil || p.Addr().Is4() != is4 {
			continue
		}
		if words[1] == cluster.Bridge || words[1] == "eth0" {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}

// wantTransfer sends 100 MB and compares them by hash.
func wantTransfer(t *testing.T, from, to *cluster.Pod, is4 bool) {
	t.Helper()
	s, err := netlab.StartSink(to.NS, echoPort+1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	got, err := netlab.Send(from.NS, netip.AddrPortFrom(to.Of(is4), s.Port), 100e6, 2*time.Minute)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s to %s: %v", from.Args.ContainerID, to.Of(is4), got)
}
