package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// picture is what the tools of the trade show of a node.
func picture(t *testing.T) string {
	t.Helper()
	var all []string
	for _, line := range []string{
		"ip -o link show", "ip addr show", "ip route show table all", "ip -6 route show table all", "ip neigh show", "nft list ruleset", "bridge fdb show", "bridge link show",
		"iptables-save", "ip6tables-save",
	} {
		out, err := try(line)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(out) {
			// Comments bear the time of day, lifetimes go on, and link-local addresses
			// come when the kernel has looked for them on the link.
			if !strings.HasPrefix(l, "#") && !slices.ContainsFunc([]string{"valid_lft", "fe80:", "multicast ff00", "anycast", "33:33:"}, func(w string) bool { return strings.Contains(l, w) }) {
				all = append(all, l)
			}
		}
	}
	return strings.Join(all, "")
}

func TestCleanupLeavesNothing(t *testing.T) {
	underlay6(t)
	for _, line := range []string{
		"nft add table inet mine", "nft add chain inet mine c", "iptables -t nat -N MINE", "ip link add mine0 type bridge",
		"ip link add mine1 type vxlan id 7 dstport 4789 local 192.0.2.10", "ip route add 10.99.0.0/24 via 192.0.2.1",
	} {
		ip(t, line)
	}
	t.Cleanup(func() {
		for _, line := range []string{"nft delete table inet mine", "iptables -t nat -X MINE", "ip link del mine0", "ip link del mine1"} {
			ip(t, line)
		}
	})
	before := picture(t)
	store := subnettest.NewStore(network(t))
	put(t, store, on6(lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77), "2001:db8::77", 78))
	dir := filepath.Join(t.TempDir(), "run")
	conf := t.TempDir()
	r := start(t, store, func(c *Config) { c.RunDir, c.CNIConfDir = dir, conf })
	r.ready()
	r.inSync(1)
	err := Cleanup(t.Context(), r.cfg, store.Manager(), func(string) { t.Error("something was done under a running daemon") })
	if err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("with a daemon that runs: %v", err)
	}
	elsewhere := r.cfg
	elsewhere.RunDir = filepath.Join(t.TempDir(), "nosuch")
	err = Cleanup(t.Context(), elsewhere, store.Manager(), func(string) { t.Error("something was done under a running daemon") })
	if err == nil || !strings.Contains(err.Error(), "another --run-dir") {
		t.Errorf("with a daemon that has another run folder: %v", err)
	}
	r.end()
	var did []string
	if err := Cleanup(t.Context(), r.cfg, store.Manager(), func(s string) { did = append(did, s) }); err != nil {
		t.Fatal(err)
	}
	if after := picture(t); after != before {
		t.Errorf("the node was\n%s\nand is\n%s\nafter\n%s", before, after, strings.Join(did, "\n"))
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("run folder: %v", err)
	}
	if left, err := os.ReadDir(conf); err != nil || len(left) > 0 {
		t.Errorf("left of the CNI configuration: %v, %v", left, err)
	}
	for _, want := range []string{"removed overlay.1", "removed overlay-v6.1", "removed bridge overlay-br0", "removed route 10.244.77.0/24", "removed " + dir} {
		if !slices.Contains(did, want) {
			t.Errorf("%q is not among\n%s", want, strings.Join(did, "\n"))
		}
	}
	foreign := filepath.Join(conf, "10-theirs.conflist")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	did = nil
	if err := Cleanup(context.Background(), r.cfg, store.Manager(), func(s string) { did = append(did, s) }); err != nil || len(did) > 1 {
		t.Errorf("a second time: %q, %v", did, err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("somebody else's network configuration: %v", err)
	}
}
