package kubee2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// netConf is the network of the lab.
const netConf = `{"Network": "` + kubelab.PodCIDR + `", "EnableIPv6": true, "IPv6Network": "` + kubelab.PodCIDR6 + `", "Backend": {"Type": "vxlan"}}`

// installByHand puts what runs on a node there without a DaemonSet.
func installByHand(t testing.TB, c *cluster) {
	t.Helper()
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(lab.Dir, "ours")
	if _, err := program.Go(t.Context(), filepath.Dir(module), "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/..."); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(lab.Dir, "net-conf.json")
	if err := os.WriteFile(conf, []byte(netConf), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, n := range lab.Nodes {
		script := fmt.Sprintf("set -e; cp %[1]s/bin/cni/* %[2]s/vxlan-cni /opt/cni/bin/; cp %[2]s/overlayd %[2]s/overlayctl /usr/local/bin/", lab.Dir, dir)
		if _, err := n.Output("sh", "-c", script); err != nil {
			t.Fatal(err)
		}
		err := n.Run(kubelab.Unit{Name: "overlayd", Argv: []string{"/usr/local/bin/overlayd", "--kube-subnet-mgr",
			"--kubeconfig-file", lab.Kubeconfig(), "--node-id", n.Name, "--net-config-path", conf}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range lab.Nodes {
		eventually(t, time.Minute, "overlayd ready on "+n.Name, func() bool {
			_, err := n.Output("overlayctl", "status")
			return err == nil
		})
		list := filepath.Join(module, "../deploy/05-vxlan-cni.conflist")
		b, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.Dir, "conflist"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Output("cp", filepath.Join(n.Dir, "conflist"), "/etc/cni/net.d/05-vxlan-cni.conflist"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInstall is the first of all, and the others stand on it: the nodes become
// ready by what is installed.
func TestInstall(t *testing.T) {
	c := open(t)
	if lab != nil {
		eventually(t, podsWithin, "all nodes registered", func() bool { return len(c.nodes(t)) == len(lab.Nodes) })
	}
	for _, n := range c.nodes(t) {
		if ready(&n) {
			t.Skipf("%s is ready before anything is installed", n.Name)
		}
	}
	began := time.Now()
	installByHand(t, c)
	for _, n := range c.nodes(t) {
		eventually(t, podsWithin, n.Name+" ready", func() bool {
			for _, now := range c.nodes(t) {
				if now.Name == n.Name {
					return ready(&now)
				}
			}
			return false
		})
	}
	t.Logf("figure: installed → all nodes Ready: %s", time.Since(began).Round(100*time.Millisecond))
}
