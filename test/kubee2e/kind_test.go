package kubee2e

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/yaml"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
)

// TestKindConfig: kind would take the file, and its network is the one that the
// tests install. kind itself needs Docker.
func TestKindConfig(t *testing.T) {
	b, err := os.ReadFile("kind.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c v1alpha4.Cluster
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		t.Fatal(err)
	}
	v1alpha4.SetDefaultsCluster(&c)
	if !c.Networking.DisableDefaultCNI || c.Networking.IPFamily != v1alpha4.DualStackFamily {
		t.Errorf("networking is %+v, want both families and no CNI of kind's", c.Networking)
	}
	if want := strings.Join([]string{kubelab.PodCIDR, kubelab.PodCIDR6}, ","); c.Networking.PodSubnet != want {
		t.Errorf("podSubnet is %q, want %q, as in labNetwork", c.Networking.PodSubnet, want)
	}
	if len(c.Nodes) != labNodes {
		t.Errorf("%d nodes, want %d", len(c.Nodes), labNodes)
	}
}
