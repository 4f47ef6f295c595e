package kubee2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// What is installed, and where.
const (
	system    = "kube-system"
	daemonSet = "vxlan-cni"
)

// labNetwork is the network of the lab; that of another cluster is E2E_NETWORK.
const labNetwork = `{"Network":"` + kubelab.PodCIDR + `","EnableIPv6":true,"IPv6Network":"` + kubelab.PodCIDR6 + `","Backend":{"Type":"vxlan"}}`

// overlay writes a kustomization on top of one of deploy/kustomize, with this
// cluster's network and image, and returns its folder.
func overlay(t testing.TB, base, more string, components ...string) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [%q]\n%s", kustomization(t, dir, base), more)
	for i, c := range components {
		if i == 0 {
			text += "components:\n"
		}
		text += fmt.Sprintf("- %q\n", kustomization(t, dir, c))
	}
	if repository, tag := imageName(); repository != "" {
		text += fmt.Sprintf("images: [{name: localhost/vxlan-cni, newName: %q, newTag: %q}]\n", repository, tag)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// kustomization is one of deploy/kustomize as seen from dir: kustomize takes a base
// by a relative path only.
func kustomization(t testing.TB, dir, base string) string {
	t.Helper()
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(dir, filepath.Join(module, "../deploy/kustomize", base))
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// imageName is the image of IMAGE; empty if that is not set.
func imageName() (repository, tag string) {
	name := os.Getenv("IMAGE")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, "latest"
}

// kubeStore is the kustomization that keeps leases on the Nodes.
func kubeStore(t testing.TB) string {
	t.Helper()
	patch, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "vxlan-cni", "namespace": system},
		"data":     map[string]any{"net-conf.json": cmp.Or(os.Getenv("E2E_NETWORK"), labNetwork)},
	})
	if err != nil {
		t.Fatal(err)
	}
	var components []string
	if lab != nil { // whose nodes register with it
		components = append(components, "startup-taint")
	}
	return overlay(t, "kube", "patches:\n- patch: |\n    "+string(patch)+"\n", components...)
}

// chart renders the Helm chart with values, and returns the file.
func chart(t testing.TB, values map[string]any) string {
	t.Helper()
	if repository, tag := imageName(); repository != "" {
		values["image"] = map[string]any{"repository": repository, "tag": tag}
	}
	b, err := json.Marshal(values) // which is YAML, too
	if err != nil {
		t.Fatal(err)
	}
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "values.yaml")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := program.Go(t.Context(), filepath.Join(module, "../deploy/build"), "run", "./manifests", "-o", dir, "-values", file); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "helm.yaml")
}

// startupTaint is the one of the component startup-taint.
const startupTaint = "node.vxlan-cni.io/overlay-not-ready"

// testInstall is the first of all, and the others stand on it: the nodes become
// ready by what is installed, and a pod that was there before it starts.
func testInstall(t *testing.T) {
	c := open(t)
	if lab != nil {
		eventually(t, podsWithin, "all nodes registered", func() bool { return len(c.nodes(t)) >= labNodes })
	}
	for _, n := range c.nodes(t) {
		if ready(&n) {
			t.Skipf("%s is ready before anything is installed", n.Name)
		}
	}
	c.takePictures(t)
	s := c.space(t)
	early := c.nodes(t)[0].Name
	s.pod("early", early, server(), nil)
	began := time.Now()
	kubectl(t, "apply", "-k", kubeStore(t))
	c.noteRights(t)
	c.allReady(t)
	t.Logf("figure: manifest applied → all nodes Ready: %s", time.Since(began).Round(100*time.Millisecond))
	s.pods("early", 1)
	s.noFailedSandbox(began)
	eventually(t, time.Minute, "no Node has the start-up taint", func() bool {
		return !slices.ContainsFunc(c.nodes(t), func(n corev1.Node) bool {
			return slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == startupTaint })
		})
	})
	for _, p := range c.daemons(t, len(c.nodes(t))) {
		for _, k := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			leastPrivilege(t, p.Name+" "+k.Name, k.SecurityContext)
		}
		if p.Spec.HostPID || p.Spec.HostIPC {
			t.Errorf("%s sees the node's processes", p.Name)
		}
		t.Logf("figure: RSS of overlayd at rest on %s: %s", p.Spec.NodeName, c.rss(t, p))
	}
}

// leastPrivilege: a container that runs is not privileged, may not become so, and has
// no capability but NET_ADMIN.
func leastPrivilege(t testing.TB, name string, s *corev1.SecurityContext) {
	t.Helper()
	yes := func(b *bool) bool { return b != nil && *b }
	if s == nil || yes(s.Privileged) || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		!yes(s.ReadOnlyRootFilesystem) || s.Capabilities == nil ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		slices.ContainsFunc(s.Capabilities.Add, func(c corev1.Capability) bool { return c != "NET_ADMIN" }) {
		t.Errorf("%s has the security context %+v", name, s)
	}
}

// allReady waits until every node is ready.
func (c *cluster) allReady(t testing.TB) {
	t.Helper()
	eventually(t, podsWithin, "all nodes ready", func() bool {
		for _, n := range c.nodes(t) {
			if !ready(&n) {
				return false
			}
		}
		return true
	})
}

// daemons waits until n pods of the DaemonSet are ready, and returns them.
func (c *cluster) daemons(t testing.TB, n int) []corev1.Pod {
	t.Helper()
	return (&space{c, t, system}).podsOf("app.kubernetes.io/name="+daemonSet, n)
}

// daemon is the DaemonSet's pod on a node.
func (c *cluster) daemon(t testing.TB, node string) corev1.Pod {
	t.Helper()
	var found corev1.Pod
	eventually(t, podsWithin, "overlayd's pod on "+node, func() bool {
		list, err := c.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/name=" + daemonSet, FieldSelector: "spec.nodeName=" + node,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			if podReady(&p) {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// status is what overlayctl says on a node.
func (c *cluster) status(t testing.TB, node string) (s api.Status) {
	t.Helper()
	out, err := c.execIn(t.Context(), system, c.daemon(t, node).Name, "overlayctl", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rss is how much memory overlayd holds, as the machine sees it.
func (c *cluster) rss(t testing.TB, p corev1.Pod) string {
	t.Helper()
	if lab == nil {
		return "not known here"
	}
	out, err := node(t, p.Spec.NodeName).Output("sh", "-c", `for p in /proc/[0-9]*; do
  [ "$(cat $p/comm 2>/dev/null)" = overlayd ] && sed -n 's/^VmRSS:[[:space:]]*//p' $p/status; done; true`)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// A machine is what only the lab offers: to do to a node what happens to
// machines.
type machine interface {
	PowerOff() error
	Boot() error
	Kill(unit string) error
	Stop(unit string) error
	Start(unit string) error
	Output(argv ...string) (string, error)
}

// node is a node's machine. Without one the test is skipped.
func node(t testing.TB, name string) machine {
	t.Helper()
	if lab == nil {
		t.Skip("only the lab's machines can be switched off")
	}
	for _, n := range lab.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("the lab has no node %s", name)
	return nil
}
