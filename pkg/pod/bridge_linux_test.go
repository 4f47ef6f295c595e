package pod

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// drifts are what others may do to the bridge, and what Ensure does about it.
var drifts = []struct{ command, change string }{
	{"ip link set cni0 down", "set up"},
	{"ip link set cni0 mtu 1400", "set MTU 1450"},
	{"ip link set cni0 address 02:00:00:00:00:01", "set MAC 0a:58:0a:f4:01:01"},
	{"ip link set cni0 addrgenmode eui64", "no generated IPv6 addresses"},
	{"sysctl -qw net.ipv4.conf.cni0.forwarding=0", "forward IPv4"},
	{"ip addr del 10.244.1.1/24 dev cni0", "add address 10.244.1.1/24"},
	{"ip addr del fd00:1::1/64 dev cni0", "add address fd00:1::1/64"},
	{"ip addr del fe80::858:aff:fef4:101/64 dev cni0", "add address fe80::858:aff:fef4:101/64"},
	{"ip addr add 10.244.7.1/24 dev cni0", "remove address 10.244.7.1/24"},
	{"ip addr add fd00:7::1/64 dev cni0", "remove address fd00:7::1/64"},
	{"ip link del cni0", "create bridge cni0"},
}

// forwarding is what the output of ip does not show.
func forwarding(t testing.TB, node *netlab.Namespace) string {
	return output(t, node, "sysctl net.ipv4.conf.cni0.forwarding")
}

func TestEnsureRepairsEachDrift(t *testing.T) {
	node := netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	if !slices.Contains(e.Changes, "create bridge cni0") || e.MAC.String() != "0a:58:0a:f4:01:01" {
		t.Errorf("first: %+v", e)
	}
	want := state(t, node)
	if got := forwarding(t, node); got != "net.ipv4.conf.cni0.forwarding = 1\n" {
		t.Error(got)
	}
	for _, d := range drifts {
		t.Run(d.change, func(t *testing.T) {
			output(t, node, d.command)
			if e := ensure(t, node, testBridge()); !slices.Contains(e.Changes, d.change) {
				t.Errorf("after %s: changes %q, want %q", d.command, e.Changes, d.change)
			}
			if e := ensure(t, node, testBridge()); len(e.Changes) != 0 {
				t.Errorf("a second time: changes %q", e.Changes)
			}
			if got := state(t, node); got != want {
				t.Errorf("node:\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Whatever happened, in whatever order, one call ends in the same state.
func TestEnsureAfterRandomDrifts(t *testing.T) {
	node := netlab.TestNamespace(t)
	ensure(t, node, testBridge())
	want := state(t, node) + forwarding(t, node)
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 10 {
		var done []string
		for range 1 + random.IntN(5) {
			command := drifts[random.IntN(len(drifts))].command
			// A command may fail after another, such as on a bridge that is gone.
			if _, err := node.Output("sh", "-c", command); err == nil {
				done = append(done, command)
			}
		}
		ensure(t, node, testBridge())
		if got := state(t, node) + forwarding(t, node); got != want {
			t.Fatalf("round %d, after %q:\n%s\nwant\n%s", round, done, got, want)
		}
	}
}

func TestEnsureAfterTheSubnetChanged(t *testing.T) {
	node := netlab.TestNamespace(t)
	old := Bridge{Name: "cni0", Gateways: prefixes("172.16.5.1/24", "fd99::1/64"), MTU: 1400}
	ensure(t, node, old)
	output(t, node, "ip addr add 192.0.2.1/24 dev cni0") // the administrator's
	// The old network is not in Networks any more: our mark is all that tells.
	ensure(t, node, testBridge())
	var got []string
	for line := range strings.Lines(output(t, node, "ip -o addr show cni0")) {
		got = append(got, strings.Fields(line)[3])
	}
	slices.Sort(got)
	want := []string{"10.244.1.1/24", "192.0.2.1/24", "fd00:1::1/64", "fe80::858:aff:fef4:101/64"}
	if !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
}

// flannel's and the reference plugins' bridge is taken over as it is.
func TestEnsureAdoptsABridge(t *testing.T) {
	node := netlab.TestNamespace(t)
	output(t, node, "ip link add cni0 type bridge")
	output(t, node, "ip addr add 10.244.1.1/24 brd 10.244.1.255 dev cni0")
	output(t, node, "ip addr add 10.244.5.1/24 dev cni0") // of an earlier lease
	e := ensure(t, node, testBridge())
	if slices.Contains(e.Changes, "create bridge cni0") || !slices.Contains(e.Changes, "remove address 10.244.5.1/24") || slices.Contains(e.Changes, "add address 10.244.1.1/24") {
		t.Errorf("changes %q", e.Changes)
	}
}

func TestEnsureRefusesWhatIsNoBridge(t *testing.T) {
	node := netlab.TestNamespace(t)
	output(t, node, "ip link add cni0 type veth peer name other")
	before := state(t, node)
	err := node.Do(func() error { _, err := testBridge().Ensure(); return err })
	if err == nil || !strings.Contains(err.Error(), `bridge cni0: a link of that name is of kind "veth"`) {
		t.Errorf("error %v", err)
	}
	if after := state(t, node); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
}

// Somebody deleted the bridge: the pods come back with it, without an ADD.
func TestEnsureGivesPodsBack(t *testing.T) {
	node, one, two := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	off := testAttachment(one, 7)
	off.Hairpin = false
	attach(t, node, off, e)
	attach(t, node, testAttachment(two, 8), e)
	output(t, node, "ip link add foreign type veth peer name foreign2")
	before := state(t, node)
	output(t, node, "ip link del cni0")
	ensure(t, node, testBridge())
	if after := state(t, node); sorted(after) != sorted(before) {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	reached := func() bool {
		r, err := netlab.Ping(t.Context(), one, netlab.Pings{To: addrs("10.244.1.8")[0]})
		return err == nil && r.Lost() == 0
	}
	if !reached() {
		t.Error("the pods do not reach each other")
	}
	// Only one port was taken out: the bridge stands, so the daemon asks.
	port := HostName(testAttachment(two, 8).Container, "eth0")
	output(t, node, "ip link set "+port+" nomaster")
	var changes []string
	in(t, node, func() (err error) {
		if e, err = testBridge().Ensure(); err == nil {
			changes, err = Reattach(e.Index)
		}
		return err
	})
	if want := []string{"enslave " + port, "set hairpin of " + port}; !slices.Equal(changes, want) {
		t.Errorf("changes %q, want %q", changes, want)
	}
	if after := state(t, node); sorted(after) != sorted(before) || !reached() {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
}

// sorted is text with its lines in order: a new bridge comes last.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestBridgeMAC(t *testing.T) {
	for gateways, want := range map[string]string{
		"10.244.1.1/24":            "0a:58:0a:f4:01:01",
		"10.244.1.1/24 fd00::1/64": "0a:58:0a:f4:01:01",
		"fd00::1/64 10.244.1.1/24": "0a:58:0a:f4:01:01",
		"fd00::12:3456/64":         "0a:58:00:12:34:56",
	} {
		if got := (Bridge{Gateways: prefixes(strings.Fields(gateways)...)}).MAC().String(); got != want {
			t.Errorf("MAC of %s: %s, want %s", gateways, got, want)
		}
	}
	if got := fmt.Sprint(linkLocal(Bridge{Gateways: prefixes("10.244.1.1/24")}.MAC())); got != "fe80::858:aff:fef4:101/64" {
		t.Error(got)
	}
}

func BenchmarkEnsure(b *testing.B) {
	node := netlab.TestNamespace(b)
	ensure(b, node, testBridge())
	for b.Loop() {
		ensure(b, node, testBridge())
	}
}
