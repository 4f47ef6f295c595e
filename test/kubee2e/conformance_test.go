package kubee2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// conformanceProcs is how many cases run at once: most of their time they wait.
const conformanceProcs = "8"

// conformanceCases is how many cases Kubernetes 1.37 has, without those of
// notHere.
const conformanceCases = 45

// notHere are the cases, in part of their name, that need what the lab has not.
var notHere = []string{
	// nginx's image. The package of Debian starts a server on the machine.
	"should create Endpoints for Pods matching a Service",
	"should create Endpoints and EndpointSlices for Pods matching a Service",
}

// A suiteReport is what is wanted of a report of Ginkgo.
type suiteReport struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		RunTime                 time.Duration
		Failure                 struct{ Message string }
	}
}

// testConformance: Kubernetes' own tests say that this is a network.
func testConformance(t *testing.T) {
	if lab == nil {
		t.Skip("only the lab's nodes get the images without a registry")
	}
	c := open(t)
	c.dns(t)
	defer c.routePods(t)()
	module, err := program.Module()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The runner takes a program with a test's name only.
	suite := filepath.Join(dir, "conformance.test")
	path, err := program.Path(t.Context(), filepath.Join(module, "conformance"), ".")
	if err == nil {
		err = os.Symlink(path, suite)
	}
	if err != nil {
		t.Fatal(err)
	}
	runner, err := program.Path(t.Context(), filepath.Join(module, "conformance"), "github.com/onsi/ginkgo/v2/ginkgo")
	if err != nil {
		t.Fatal(err)
	}
	registries := filepath.Join(dir, "registries.yaml")
	if err := os.WriteFile(registries, []byte(kubelab.ConformanceRegistries), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBE_TEST_REPO_LIST", registries)
	names, err := exec.CommandContext(t.Context(), suite, "-images").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.AddConformance(t.Context(), strings.Fields(string(names))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var skip []string
	for _, name := range notHere {
		skip = append(skip, regexp.QuoteMeta(name))
	}
	out, failed := exec.CommandContext(t.Context(), runner, "--procs", conformanceProcs, "--no-color", "--timeout", "10m",
		"--focus", `\[sig-network\].*\[Conformance\]`, "--skip", strings.Join(skip, "|"),
		"--output-dir", dir, "--json-report", "report.json",
		suite, "--", "--kubectl-path", filepath.Join(lab.Dir, "bin", "kubectl")).CombinedOutput()
	took := time.Since(began)
	passed := report(t, filepath.Join(dir, "report.json"))
	if failed != nil || passed < conformanceCases {
		t.Errorf("%d cases passed, want %d; %v: %s", passed, conformanceCases, failed, out[max(0, len(out)-10000):])
	}
	t.Logf("figure: %d conformance cases passed in %.0f s", passed, took.Seconds())
	c.noSuites(t)
}

// routePods gives the API server, whose machine is no node, the routes to pods that
// a cloud gives it: it is the client of some cases. The function that it returns
// takes away what leads to them.
func (c *cluster) routePods(t testing.TB) func() {
	t.Helper()
	var routes []string
	for _, n := range c.nodes(t) {
		for _, cidr := range n.Spec.PodCIDRs {
			for _, a := range n.Status.Addresses {
				if a.Type == corev1.NodeInternalIP && strings.Contains(a.Address, ":") == strings.Contains(cidr, ":") {
					routes = append(routes, "route replace "+cidr+" via "+a.Address+" table 100")
				}
			}
		}
	}
	// For what comes from this machine alone: it is the gateway of the nodes, and
	// may not stand in for the overlay.
	rules := func(verb string) []string {
		return []string{"rule " + verb + " from 0.0.0.0/0 iif lo lookup 100", "rule " + verb + " from ::/0 iif lo lookup 100"}
	}
	ip := func(lines []string) error {
		cmd := lab.Within("ip", "-force", "-batch", "-") // all lines, whatever one says
		cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip -batch: %w: %s", err, out)
		}
		return nil
	}
	_ = ip(rules("del")) // of a run that was killed
	if err := ip(append(routes, rules("add")...)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := ip(rules("del")); err != nil {
			t.Error(err)
		}
	}
}

// report tells of every case that ran, and counts those that passed.
func report(t *testing.T, path string) (passed int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return 0
	}
	var suites []suiteReport
	if err := json.Unmarshal(b, &suites); err != nil {
		t.Fatal(err)
	}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			name := strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " ")
			switch {
			case r.State == "skipped" || r.LeafNodeType != "It":
			case r.State == "passed":
				passed++
				t.Logf("%5.1f s %s", r.RunTime.Seconds(), name)
			default:
				t.Errorf("%5.1f s %s: %s: %s", r.RunTime.Seconds(), name, r.State, r.Failure.Message)
			}
		}
	}
	return passed
}

// noSuites waits until nothing is left of such tests: the next one counts what is
// on the nodes.
func (c *cluster) noSuites(t testing.TB) {
	t.Helper()
	eventually(t, podsWithin, "namespaces of the conformance cases gone", func() bool {
		list, err := c.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{LabelSelector: "e2e-framework"})
		return err == nil && len(list.Items) == 0
	})
}
