package kubee2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// kubectlPath is kubectl, in the program that is all of Kubernetes.
func kubectlPath(t testing.TB) string {
	t.Helper()
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	path, err := program.Path(t.Context(), filepath.Join(module, "k8s"), ".")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// kubectl runs kubectl as an administrator does.
func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), kubectlPath(t), append([]string{"kubectl"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// testKubectlOverlay: kubectl finds overlayctl as its plugin, and that the nodes.
func testKubectlOverlay(t *testing.T) {
	c := open(t)
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(kubectlPath(t), filepath.Join(dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	if _, err := program.Go(t.Context(), filepath.Dir(module), "build", "-o", filepath.Join(dir, "kubectl-overlay"), "./cmd/overlayctl"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "kubectl", append([]string{"overlay"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl overlay %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	nodes := c.nodes(t)
	all := run("status")
	for _, n := range nodes {
		if !strings.Contains(all, "node "+n.Name+"\n") {
			t.Errorf("kubectl overlay status does not tell of %s:\n%s", n.Name, all)
		}
	}
	var s api.Status
	if err := json.Unmarshal([]byte(run("--node", nodes[0].Name, "status", "-o", "json")), &s); err != nil || !s.Ready || s.Node != nodes[0].Name {
		t.Errorf("%v: %+v, want %s ready", err, s, nodes[0].Name)
	}
}
