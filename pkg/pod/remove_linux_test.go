package pod

import (
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// RemoveAll takes the links of our pods, the filter and a bridge of ours; it
// leaves a bridge that was there before us, with the links that others made.
func TestRemoveAllTakesOursOnly(t *testing.T) {
	for name, made := range map[string][]string{
		"our bridge":   nil,
		"another's":    {"ip link add cni0 type bridge", "ip link set cni0 up"},
		"without pods": {},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := netlab.TestNamespace(t), netlab.TestNamespace(t)
			for _, line := range append(made, "ip link add other type veth peer name otherpeer", "ip link add br7 type bridge") {
				output(t, node, line)
			}
			before := output(t, node, "ip -br link")
			bridge := ensure(t, node, testBridge())
			if name != "without pods" {
				a := testAttachment(pod, 7)
				a.Filter = true
				attach(t, node, a, bridge)
			}
			var did []string
			in(t, node, func() (err error) { did, err = RemoveAll(); return err })
			after := output(t, node, "ip -br link")
			if len(made) > 0 {
				// The bridge is kept, and what we set on it is the node's matter.
				if !strings.Contains(after, "cni0") || slices.Contains(did, "removed bridge cni0") {
					t.Errorf("did %q, left\n%s", did, after)
				}
			} else if after != before {
				t.Errorf("links were\n%s\nand are\n%s", before, after)
			}
			if strings.Contains(after, "veth") || strings.Contains(output(t, node, "nft list ruleset"), "vxlan-cni") {
				t.Errorf("left is\n%s", after)
			}
			if name != "without pods" && !slices.Contains(did, "removed the source filter") {
				t.Errorf("did %q", did)
			}
			in(t, node, func() (err error) { did, err = RemoveAll(); return err })
			if len(did) != 0 {
				t.Errorf("a second time: %q", did)
			}
		})
	}
}
