package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// withSlots is the sweeper of a node where these containers hold a slot each.
func withSlots(t *testing.T, containers ...string) sweeper {
	t.Helper()
	dir, subnets := t.TempDir(), []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	f := subnet.NodeFile{
		Schema: subnet.NodeFileSchema, Node: "self", MTU: 1450, Bridge: "overlay-br0",
		Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Subnets: subnets,
	}
	if err := f.Write(dir); err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.Open(dir, subnets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	for _, c := range containers {
		if _, err := pool.Acquire(t.Context(), ipam.Request{Key: ipam.Key{Container: c, IfName: "eth0"}}); err != nil {
			t.Fatal(err)
		}
	}
	return sweeper{dir: dir, bridge: f.Bridge, log: slog.New(slog.DiscardHandler), journal: &journal{}}
}

// held are the containers that hold a slot, as text.
func held(t *testing.T, s sweeper) string {
	t.Helper()
	slots, err := ipam.List(t.Context(), s.dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(slots))
	for i, s := range slots {
		names[i] = s.Key.Container
	}
	return strings.Join(names, " ")
}

// The slot of a pod whose link was renamed stays, and while a link does not tell
// whose it is all stay.
func TestSweepKeepsRenamedLinks(t *testing.T) {
	ns := netlab.TestNamespace(t)
	s := withSlots(t, "gone", "renamed", "half")
	run := func(command string, more ...string) {
		t.Helper()
		words := append(strings.Fields(command), more...)
		if out, err := ns.Output(words[0], words[1:]...); err != nil {
			t.Fatalf("%v: %v: %s", words, err, out)
		}
	}
	group := fmt.Sprint(pod.Group)
	run("ip link add renamed group " + group + " type veth peer name r2")
	run("ip link set renamed alias", "vxlan-cni renamed/eth0 pods default/renamed")
	run("ip link add " + pod.HostName("half", "eth0") + " group " + group + " type veth peer name h2")
	run("ip link add silent group " + group + " type veth peer name s2")
	sweep := func() string {
		t.Helper()
		var suspects map[ipam.Key]bool
		err := ns.Do(func() error {
			for range 3 {
				suspects = s.sweep(t.Context(), suspects, 0)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return held(t, s)
	}
	if held := sweep(); held != "gone renamed half" {
		t.Errorf("with a link that tells nothing: held %q", held)
	}
	run("ip link del silent")
	if held := sweep(); held != "renamed half" {
		t.Errorf("held %q, want renamed and half", held)
	}
	run("ip link del renamed")
	if held := sweep(); held != "half" {
		t.Errorf("held %q, want half", held)
	}
}
