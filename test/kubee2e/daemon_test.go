package kubee2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// held is what `etool hold` tells of its connections.
type held struct {
	Open, Echoes int
	Lost         []string
	Gap          time.Duration
}

// connections is how many each holder keeps.
const connections = 20

// holders runs, on each node, a pod that keeps connections to a pod on the next.
func (s *space) holders() (names []string) {
	s.t.Helper()
	nodes := s.nodes(s.t)
	for i, n := range nodes {
		s.pod(fmt.Sprint("echo", i), n.Name, server(), nil)
	}
	for i := range nodes {
		to := s.pods(fmt.Sprint("echo", (i+1)%len(nodes)), 1)[0]
		name := fmt.Sprint("hold", i)
		s.pod(name, nodes[i].Name, container("hold", fmt.Sprint(connections), at(to.Status.PodIP, tcpPort)), nil)
		names = append(names, name)
	}
	for _, name := range names {
		s.pods(name, 1)
		eventually(s.t, time.Minute, name+" is busy", func() bool { h, err := s.held(name); return err == nil && h.Echoes > 10*connections })
	}
	return names
}

func (s *space) held(name string) (h held, err error) {
	out, err := s.exec(name, "probe", "http://"+at("127.0.0.1", holdPort)+"/")
	if err != nil {
		return h, err
	}
	var r result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return h, err
	}
	if r.Error != "" {
		return h, fmt.Errorf("%s: %s", name, r.Error)
	}
	return h, json.Unmarshal([]byte(r.Text), &h)
}

// wantHeld: every connection lives, and still carries.
func (s *space) wantHeld(names []string) {
	s.t.Helper()
	for _, name := range names {
		before, err := s.held(name)
		if err != nil {
			s.t.Fatal(err)
		}
		eventually(s.t, time.Minute, name+" goes on", func() bool {
			h, err := s.held(name)
			return err == nil && h.Echoes > before.Echoes+connections
		})
		h, err := s.held(name)
		if err != nil {
			s.t.Fatal(err)
		}
		if h.Open != connections || len(h.Lost) > 0 {
			s.t.Errorf("%s: %d of %d connections live: %q", name, h.Open, connections, h.Lost)
		}
		s.t.Logf("figure: %s: %d echoes, the longest took %s", name, h.Echoes, h.Gap.Round(time.Millisecond))
	}
}

// testOpenConnections does this and that to the cluster while pods on every node keep
// connections to pods on the next one. None is lost.
func testOpenConnections(t *testing.T) {
	s := open(t).space(t)
	names := s.holders()
	for _, tt := range []struct {
		name string
		fn   func(*space)
	}{
		{"RollingUpdate", testRollingUpdate},
		{"Crash", testCrash},
		{"RuntimeAndKubeletKilled", testRuntimeAndKubeletKilled},
		{"APIServerKilled", testAPIServerKilled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &space{s.cluster, t, s.name}
			tt.fn(s)
			s.wantHeld(names)
		})
	}
}

// late starts a pod on every node, and waits until they are ready.
func (s *space) late() {
	s.t.Helper()
	nodes := s.nodes(s.t)
	for _, n := range nodes {
		s.pod("late-"+n.Name, n.Name, server(), nil)
	}
	for _, n := range nodes {
		s.pods("late-"+n.Name, 1)
	}
	for _, n := range nodes {
		s.delete("late-" + n.Name)
	}
}

// testRollingUpdate: the DaemonSet's pods are replaced.
func testRollingUpdate(s *space) {
	c, t := s.cluster, s.t
	nodes := len(c.nodes(t))
	before := map[string]bool{}
	for _, p := range c.daemons(t, nodes) {
		before[p.Name] = true
	}
	if lab != nil { // with what makes tests that follow wait less
		kubectl(t, "--namespace", system, "set", "env", "daemonset/"+daemonSet, "OVERLAYD_GRACE=2s", "OVERLAYD_SWEEP_INTERVAL=30s")
	} else {
		kubectl(t, "--namespace", system, "rollout", "restart", "daemonset/"+daemonSet)
	}
	kubectl(t, "--namespace", system, "rollout", "status", "daemonset/"+daemonSet, "--timeout=3m")
	for _, p := range c.daemons(t, nodes) {
		if before[p.Name] {
			t.Errorf("%s was not replaced", p.Name)
		}
	}
}

// testCrash: overlayd is killed everywhere at once; it comes back, and pods can
// start.
func testCrash(s *space) {
	c, t := s.cluster, s.t
	nodes := c.nodes(t)
	before := map[string]corev1.Pod{}
	for _, n := range nodes {
		m := node(t, n.Name) // skips elsewhere
		before[n.Name] = c.daemon(t, n.Name)
		killDaemon(t, m)
	}
	s.late()
	for name, old := range before {
		c.cameBack(t, name, old)
	}
}

// cameBack waits until the container of a daemon's pod was started again and is ready.
func (c *cluster) cameBack(t testing.TB, node string, old corev1.Pod) {
	t.Helper()
	eventually(t, podsWithin, "overlayd's container started again on "+node, func() bool {
		p := c.daemon(t, node)
		return p.UID == old.UID && p.Status.ContainerStatuses[0].RestartCount > old.Status.ContainerStatuses[0].RestartCount
	})
}

// killDaemon kills overlayd on a machine.
func killDaemon(t testing.TB, m machine) {
	t.Helper()
	out, err := m.Output("sh", "-c", `for p in /proc/[0-9]*; do
  [ "$(cat $p/comm 2>/dev/null)" = overlayd ] && kill -9 ${p#/proc/} && echo killed; done; true`)
	if err != nil || !strings.Contains(out, "killed") {
		t.Fatalf("kill overlayd: %q, %v", out, err)
	}
}

// testRuntimeAndKubeletKilled: what runs goes on, with the addresses that it
// had, and new pods start.
func testRuntimeAndKubeletKilled(s *space) {
	m := node(s.t, s.nodes(s.t)[0].Name)
	before := s.pods("echo0", 1)[0]
	for _, unit := range []string{"containerd", "kubelet"} {
		if err := m.Kill(unit); err != nil {
			s.t.Fatal(err)
		}
	}
	s.late()
	after := s.pods("echo0", 1)[0]
	if after.Status.PodIP != before.Status.PodIP || after.Status.ContainerStatuses[0].RestartCount != 0 {
		s.t.Errorf("echo0: address %s and %d restarts, want %s and 0",
			after.Status.PodIP, after.Status.ContainerStatuses[0].RestartCount, before.Status.PodIP)
	}
}

// testAPIServerKilled: nodes stay as they are without an API server, and news come
// when there is one again.
func testAPIServerKilled(s *space) {
	nodes := s.nodes(s.t)
	node(s.t, nodes[0].Name) // skips elsewhere
	if err := lab.Kill("apiserver"); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, time.Minute, "an API server", func() bool {
		_, err := s.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(s.t.Context())
		return err == nil
	})
	s.late()
	s.daemons(s.t, len(nodes))
}

// testPowerCut: a node loses its power and boots again. Its pods come back, and
// no attempt to start one fails while overlayd is not up yet.
func testPowerCut(t *testing.T) {
	c := open(t)
	nodes := c.nodes(t)
	last := nodes[len(nodes)-1].Name
	m := node(t, last)
	s := c.space(t)
	s.deployment("web", int32(3*len(nodes)), server())
	pods := s.pods("web", 3*len(nodes))
	old := c.daemon(t, last)
	if err := m.PowerOff(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, last+" not ready", func() bool { return !c.nodeReady(t, last) })
	cut := time.Now()
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	eventually(t, podsWithin, last+" ready", func() bool { return c.nodeReady(t, last) })
	t.Logf("figure: boot → node Ready: %s", time.Since(cut).Round(100*time.Millisecond))
	// The API goes on telling of the pods what was true before the power went.
	c.cameBack(t, last, old)
	s.restarted(pods, last)
	t.Logf("figure: boot → its pods Ready again: %s", time.Since(cut).Round(100*time.Millisecond))
	after := s.pods("web", 3*len(nodes))
	for _, from := range after {
		s.reachAll(from, after)
	}
	s.noFailedSandbox(cut)
}

// restarted waits until each of the pods that a node had runs there again.
func (s *space) restarted(pods []corev1.Pod, node string) {
	s.t.Helper()
	for _, p := range pods {
		if p.Spec.NodeName != node {
			continue
		}
		eventually(s.t, podsWithin, p.Name+" restarted", func() bool {
			now, err := s.client.CoreV1().Pods(s.name).Get(s.t.Context(), p.Name, metav1.GetOptions{})
			return err == nil && podReady(now) && now.Status.ContainerStatuses[0].RestartCount > p.Status.ContainerStatuses[0].RestartCount
		})
	}
}

// noFailedSandbox: no pod's network failed since then.
func (s *space) noFailedSandbox(since time.Time) {
	s.t.Helper()
	events, err := s.client.CoreV1().Events(s.name).List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.Reason == "FailedCreatePodSandBox" && e.LastTimestamp.After(since) {
			s.t.Errorf("%s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

func (c *cluster) nodeReady(t testing.TB, name string) bool {
	t.Helper()
	n, err := c.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil && ready(n)
}

// testUnreadyNode: while a node cannot attach pods its runtime says so, and the
// node is not ready; and is again afterwards.
func testUnreadyNode(t *testing.T) {
	c := open(t)
	name := c.nodes(t)[0].Name
	m := node(t, name)
	const file = "/run/vxlan-cni/node.json"
	// Without overlayd, which would write the file again.
	s := c.space(t)
	if _, err := m.Output("sh", "-c", "mv "+file+" "+file+".away && mkdir "+file); err != nil {
		t.Fatal(err)
	}
	restore := func() error {
		_, err := m.Output("sh", "-c", "rmdir "+file+" && mv "+file+".away "+file)
		return err
	}
	restored := false
	defer func() {
		if !restored {
			_ = restore()
		}
	}()
	eventually(t, podsWithin, name+" not ready", func() bool { return !c.nodeReady(t, name) })
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	restored = true
	eventually(t, podsWithin, name+" ready", func() bool { return c.nodeReady(t, name) })
	s.pod("late", name, server(), nil)
	s.pods("late", 1)
}

// slots is how many addresses pods of a node hold.
func (c *cluster) slots(t testing.TB, node string) api.Slots {
	t.Helper()
	return c.status(t, node).Slots
}
