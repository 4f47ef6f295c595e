package kubee2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// churned is how many pods come and go.
const churned = 200

// podCount is how many pods of a node have a network of their own.
func (c *cluster) podCount(t testing.TB, node string) (n int) {
	t.Helper()
	list, err := c.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if !p.Spec.HostNetwork {
			n++
		}
	}
	return n
}

// testNoLeaks: after all that, also the node that was swept, every node holds what its
// pods need, and no more.
func testNoLeaks(t *testing.T) {
	c := open(t)
	for _, n := range c.nodes(t) {
		what := ""
		ok := func() bool {
			pods, slots := c.podCount(t, n.Name), c.slots(t, n.Name)
			links := c.podLinks(t, n.Name)
			what = fmt.Sprintf("%s: %d pods, %d slots, links %v", n.Name, pods, slots.Held, links)
			return slots.Held == pods && (lab == nil || len(links) == pods)
		}
		deadline := time.Now().Add(2 * time.Minute)
		for !ok() {
			if time.Now().After(deadline) {
				t.Errorf("leaked: %s", what)
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
}

// podLinks lists the links of pods on a node; none where they cannot be seen.
func (c *cluster) podLinks(t testing.TB, name string) (links []string) {
	t.Helper()
	if lab == nil {
		return nil
	}
	out, err := node(t, name).Output("ip", "-o", "link", "show", "type", "veth")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		link, _, _ := strings.Cut(strings.Fields(line)[1], "@")
		if link != "eth0" { // the machine's own
			links = append(links, strings.TrimSuffix(link, ":"))
		}
	}
	return links
}

// testChurn: many pods come and go. testNoLeaks sees what is left of them.
func testChurn(t *testing.T) {
	c := open(t)
	s := c.space(t)
	nodes := others(c.nodes(t))
	const batch = 40
	for from := 0; from < churned; from += batch {
		for i := range batch {
			s.pod(fmt.Sprint("churn", from+i), nodes[i%len(nodes)].Name, container("sleep"), func(p *corev1.Pod) {
				p.Labels = map[string]string{"app": fmt.Sprint("batch", from)}
			})
		}
		s.pods(fmt.Sprint("batch", from), batch)
		err := s.client.CoreV1().Pods(s.name).DeleteCollection(t.Context(), deleteNow, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, podsWithin, "all pods gone", func() bool {
		list, err := s.client.CoreV1().Pods(s.name).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 0
	})
}

// others are the nodes that testSweep leaves alone.
func others(nodes []corev1.Node) []corev1.Node { return nodes[min(1, len(nodes)-1):] }

// testStartTimes measures how long pods take from their creation until they
// run, one after the other: with ours on one node, and beside it with the reference
// plugins on another.
func testStartTimes(t *testing.T) {
	c := open(t)
	s := c.space(t)
	nodes := others(c.nodes(t))
	t.Run("Both", atOnce(
		testCase{"Ours", func(t *testing.T) {
			t.Logf("figure: pod start, ours: %s", (&space{c, t, s.name}).startTimes("ours", nodes[0].Name))
		}},
		testCase{"Reference", func(t *testing.T) {
			last := nodes[len(nodes)-1].Name
			defer installReference(t, node(t, last))() // skips where there are no machines
			s := &space{c, t, s.name}
			defer s.deleteAll("app=ref") // by the plugins that made them
			t.Logf("figure: pod start, bridge + host-local: %s", s.startTimes("ref", last))
		}},
	))
}

// installReference puts the reference plugins before ours. The function that it
// returns takes them away.
func installReference(t *testing.T, m machine) func() {
	t.Helper()
	const conf = "/etc/cni/net.d/00-bridge.conflist"
	list := `{"cniVersion":"1.0.0","name":"ref","plugins":[{"type":"bridge","bridge":"ref0","isGateway":true,"hairpinMode":true,` +
		`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/24"}],[{"subnet":"fd00:99::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},` +
		`{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`
	script := fmt.Sprintf("cp %s/bin/cni/bridge %[1]s/bin/cni/host-local /opt/cni/bin/ && cat > %s.tmp <<'E' && mv %[2]s.tmp %[2]s\n%s\nE\n", lab.Dir, conf, list)
	if _, err := m.Output("sh", "-c", script); err != nil {
		t.Fatal(err)
	}
	return func() {
		const undo = "rm -f " + conf + " /opt/cni/bin/bridge /opt/cni/bin/host-local; rm -rf /var/lib/cni/networks/ref; ip link del ref0"
		if _, err := m.Output("sh", "-c", undo); err != nil {
			t.Error(err)
		}
	}
}

// measured is how many pods a time is measured on.
const measured = 20

// startTimes starts pods one by one.
func (s *space) startTimes(app, node string) string {
	s.t.Helper()
	var took []time.Duration
	for i := range measured {
		name := fmt.Sprint(app, i)
		began := time.Now()
		s.pod(name, node, container("sleep"), func(p *corev1.Pod) { p.Labels["app"] = app })
		eventually(s.t, podsWithin, name+" runs", func() bool {
			p, err := s.client.CoreV1().Pods(s.name).Get(s.t.Context(), name, metav1.GetOptions{})
			return err == nil && p.Status.Phase == corev1.PodRunning
		})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return fmt.Sprintf("p50 %s, p99 %s", took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond))
}

// deleteAll deletes pods and waits until they are gone.
func (s *space) deleteAll(selector string) {
	s.t.Helper()
	o := metav1.ListOptions{LabelSelector: selector}
	if err := s.client.CoreV1().Pods(s.name).DeleteCollection(s.t.Context(), deleteNow, o); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, podsWithin, selector+" gone", func() bool {
		list, err := s.client.CoreV1().Pods(s.name).List(s.t.Context(), o)
		return err == nil && len(list.Items) == 0
	})
}
