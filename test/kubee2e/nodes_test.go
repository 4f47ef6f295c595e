package kubee2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testNodeComesAndGoes: a new node is one like all others. When it is taken out
// of the cluster the others forget it.
func testNodeComesAndGoes(t *testing.T) {
	c := open(t)
	first := c.nodes(t)[0].Name
	node(t, first) // skips elsewhere
	s := c.space(t)
	began := time.Now()
	n, err := lab.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	gone := false
	defer func() {
		if !gone {
			_ = n.PowerOff()
		}
	}()
	eventually(t, podsWithin, n.Name+" ready", func() bool { return c.nodeReady(t, n.Name) })
	t.Logf("figure: new node booted → Ready: %s", time.Since(began).Round(100*time.Millisecond))
	nodes := c.nodes(t)
	s.deployment("web", int32(len(nodes)), server())
	pods := s.pods("web", len(nodes))
	for _, from := range pods {
		s.reachAll(from, pods)
	}
	var cidrs []string
	for _, o := range nodes {
		if o.Name == n.Name {
			cidrs = o.Spec.PodCIDRs
		}
	}
	if got := c.routes(t, first, cidrs); len(got) != len(cidrs) {
		t.Fatalf("%s has routes %q, want those to %v", first, got, cidrs)
	}
	// A Node that is deleted may be a slip: its routes stay for --grace, which the
	// rolling update has made short.
	if err := n.PowerOff(); err != nil {
		t.Fatal(err)
	}
	gone = true
	if err := c.client.CoreV1().Nodes().Delete(t.Context(), n.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, o := range nodes {
		if o.Name != n.Name {
			eventually(t, time.Minute, "no route to "+n.Name+" on "+o.Name, func() bool { return len(c.routes(t, o.Name, cidrs)) == 0 })
		}
	}
	// The pods that were there are deleted by the garbage collector, in minutes.
	err = c.client.CoreV1().Pods(s.name).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: new(int64)},
		metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil {
		t.Fatal(err)
	}
	err = c.client.CoreV1().Pods(system).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: new(int64)},
		metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil {
		t.Fatal(err)
	}
}

// routes are those of a node to subnets.
func (c *cluster) routes(t testing.TB, name string, subnets []string) (found []string) {
	t.Helper()
	for _, subnet := range subnets {
		family := "-4"
		if strings.Contains(subnet, ":") {
			family = "-6"
		}
		out, err := node(t, name).Output("ip", family, "route", "show", "exact", subnet)
		if err != nil {
			t.Fatal(err)
		}
		if out != "" {
			found = append(found, out)
		}
	}
	return found
}

// onNode runs overlayctl on a machine without the help of its kubelet.
func onNode(t testing.TB, m machine, args string) string {
	t.Helper()
	out, err := m.Output("sh", "-c", `for p in /proc/[0-9]*; do
  [ "$(cat $p/comm 2>/dev/null)" = overlayd ] && exec $p/root/usr/local/bin/overlayctl `+args+`; done; exit 1`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// testSweep: the runtime dies with a pod and never sends DEL; the address and
// the link come free all the same.
func testSweep(t *testing.T) {
	c := open(t)
	name := c.nodes(t)[0].Name
	m := node(t, name)
	s := c.space(t)
	s.pod("doomed", name, server(), nil)
	ip := s.pods("doomed", 1)[0].Status.PodIP
	held := func() bool {
		return slices.ContainsFunc(strings.Fields(onNode(t, m, "pods")), func(word string) bool { return strings.Trim(word, ",") == ip })
	}
	if !held() {
		t.Fatalf("overlayctl pods does not name %s:\n%s", ip, onNode(t, m, "pods"))
	}
	for _, unit := range []string{"kubelet", "containerd"} {
		if err := m.Stop(unit); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, unit := range []string{"containerd", "kubelet"} {
			if err := m.Start(unit); err != nil {
				t.Error(err)
			}
		}
		eventually(t, podsWithin, name+" ready", func() bool { return c.nodeReady(t, name) })
	}()
	// The namespace that has the pod's address, and all that runs in it.
	script := fmt.Sprintf(`for n in /run/netns/cni-*; do
  nsenter --net=$n ip -o addr show | grep -q ' %s/' || continue
  i=$(stat -L -c %%i $n)
  for p in /proc/[0-9]*; do [ "$(stat -L -c %%i $p/ns/net 2>/dev/null)" = $i ] && kill -9 ${p#/proc/}; done
  umount $n && rm $n && echo removed
done`, ip)
	if out, err := m.Output("sh", "-c", script); err != nil || !strings.Contains(out, "removed") {
		t.Fatalf("remove the pod's namespace: %q, %v", out, err)
	}
	eventually(t, 4*time.Minute, ip+" swept", func() bool {
		time.Sleep(time.Second) // to ask costs a look at all processes
		return !held()
	})
}

// testUninstall: what was installed is taken off, and the nodes are as they
// were.
func testUninstall(t *testing.T) {
	c := open(t)
	for _, n := range c.nodes(t) {
		node(t, n.Name) // skips elsewhere
	}
	c.takeOff(t, []string{"-k", kubeStore(t)}, []string{"-k", overlay(t, "uninstall/kube", "")})
	for _, n := range c.nodes(t) {
		out, err := node(t, n.Name).Output("sh", "-c",
			`ls -A /etc/cni/net.d; ls -A /opt/cni/bin; ls -d /run/vxlan-cni 2>/dev/null; ip -o link | grep -v ': lo:\|: eth0@'; ip route show proto 77; ip -6 route show proto 77; nft list tables | grep -v 'kube-proxy\|table ip[6]* \(nat\|filter\|mangle\)'; true`)
		if err != nil {
			t.Fatal(err)
		}
		// Reference plugins that a test put there are its own.
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" && line != "bridge" && line != "host-local" && !strings.Contains(line, "ref0") {
				t.Errorf("%s: left: %s", n.Name, line)
			}
		}
		for key := range n.Annotations {
			if strings.HasPrefix(key, "flannel.alpha.coreos.com/") {
				t.Errorf("%s: left: annotation %s", n.Name, key)
			}
		}
	}
	for _, n := range c.nodes(t) {
		eventually(t, podsWithin, n.Name+" not ready", func() bool { return !c.nodeReady(t, n.Name) })
	}
}

// takeOff removes an installation by its own means.
func (c *cluster) takeOff(t testing.TB, installed, remover []string) {
	t.Helper()
	kubectl(t, append([]string{"delete", "--wait"}, installed...)...)
	eventually(t, podsWithin, "no pods of the DaemonSet", func() bool {
		list, err := c.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + daemonSet})
		return err == nil && len(list.Items) == 0
	})
	kubectl(t, append([]string{"apply"}, remover...)...)
	c.noteRights(t)
	kubectl(t, "--namespace", system, "rollout", "status", "daemonset/vxlan-cni-uninstall", "--timeout=3m")
	kubectl(t, append([]string{"delete", "--wait"}, remover...)...)
}
