package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// The rules follow the leases, and come back whoever takes them away. What they do
// to packets is pkg/firewall's to show.
func TestFirewallFollowsTheLeasesAndComesBack(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	r := start(t, store, nil)
	r.ready()
	r.inSync(1)
	rules := func(want ...string) {
		t.Helper()
		eventually(t, "rules", func() error {
			out := ip(t, "nft list ruleset")
			for _, w := range want {
				if !strings.Contains(out, w) {
					return fmt.Errorf("%q is not in\n%s", w, out)
				}
			}
			return nil
		})
	}
	rules("table inet vxlan-cni", "192.0.2.77", "masquerade", "10.244.0.0/16", "fd00::/48", "notrack")
	put(t, store, lease("b", "10.244.78.0/24", "192.0.2.78", 78))
	rules("192.0.2.77", "192.0.2.78")
	for _, line := range []string{"nft flush ruleset", "nft delete table inet vxlan-cni", "nft flush table inet vxlan-cni"} {
		ip(t, line)
		rules("table inet vxlan-cni", "192.0.2.78", "masquerade", "notrack")
	}
	events, err := r.client.Events(t.Context())
	if err != nil || !strings.Contains(fmt.Sprint(events), "foreign changed the firewall's rules") {
		t.Errorf("events: %v %v", events, err)
	}
	r.end()
	rules("table inet vxlan-cni") // fail static
	none := start(t, store, func(c *Config) { c.Firewall = firewall.None })
	none.ready()
	if out := ip(t, "nft list ruleset"); strings.Contains(out, "inet vxlan-cni") {
		t.Errorf("--firewall none leaves\n%s", out)
	}
}
