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

// The slot of a pod whose link was renamed stays, and while a link does not tell
// whose it is all stay.
func TestSweepKeepsRenamedLinks(t *testing.T) {
	ns, dir := netlab.TestNamespace(t), t.TempDir()
	subnets := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
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
	defer func() { _ = pool.Close() }()
	for _, c := range []string{"gone", "renamed", "half"} {
		if _, err := pool.Acquire(t.Context(), ipam.Request{Key: ipam.Key{Container: c, IfName: "eth0"}}); err != nil {
			t.Fatal(err)
		}
	}
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
	s := sweeper{dir: dir, bridge: f.Bridge, log: slog.New(slog.DiscardHandler), journal: &journal{}}
	sweep := func() string {
		t.Helper()
		var suspects map[ipam.Key]bool
		err := ns.Do(func() error {
			for range 3 {
				suspects = s.sweep(t.Context(), suspects, 0)
			}
			return nil
		})
		slots, lerr := ipam.List(t.Context(), dir)
		if err != nil || lerr != nil {
			t.Fatal(err, lerr)
		}
		var held []string
		for _, s := range slots {
			held = append(held, s.Key.Container)
		}
		return strings.Join(held, " ")
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
