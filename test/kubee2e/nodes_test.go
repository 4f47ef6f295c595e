package kubee2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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
func onNode(m machine, args string) (string, error) {
	return m.Output("sh", "-c", `for p in /proc/[0-9]*; do
  [ "$(cat $p/comm 2>/dev/null)" = overlayd ] && exec $p/root/usr/local/bin/overlayctl `+args+`; done; exit 1`)
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
	held := func(want bool) bool {
		out, err := onNode(m, "pods") // fails where the machine is too busy for an answer in time
		found := slices.ContainsFunc(strings.Fields(out), func(word string) bool { return strings.Trim(word, ",") == ip })
		return err == nil && found == want
	}
	eventually(t, time.Minute, "overlayctl pods names "+ip, func() bool { return held(true) })
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
		return held(false)
	})
}

// testUninstall: what was installed is taken off, and the nodes are as they
// were.
func testUninstall(t *testing.T) {
	c := open(t)
	for _, n := range c.nodes(t) {
		node(t, n.Name) // skips elsewhere
	}
	kubectl(t, "delete", "--ignore-not-found", "-f", "dns.yaml")
	eventually(t, podsWithin, "no pods of the DNS", func() bool {
		list, err := c.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
		return err == nil && len(list.Items) == 0
	})
	c.takeOff(t, []string{"-k", kubeStore(t)}, []string{"-k", overlay(t, "uninstall/kube", "")})
	deadline := time.Now().Add(podsWithin) // kubelet says within some seconds that there is no network
	for _, n := range c.nodes(t) {
		before, err := os.ReadFile(pictureFile(n.Name))
		if err != nil {
			t.Fatal(err)
		}
		after := c.picture(t, n.Name)
		for after != string(before) && time.Now().Before(deadline) {
			time.Sleep(500 * time.Millisecond)
			after = c.picture(t, n.Name)
		}
		if after != string(before) {
			t.Errorf("%s was\n%s\nand is\n%s", n.Name, before, after)
		}
	}
}

// takePictures keeps what every node of the lab is, once kubelet and kube-proxy have
// settled on it.
func (c *cluster) takePictures(t testing.TB) {
	t.Helper()
	if lab == nil {
		return
	}
	pictures := map[string]string{}
	eventually(t, podsWithin, "nodes that stay as they are", func() bool {
		same := true
		for _, n := range c.nodes(t) {
			now := c.picture(t, n.Name)
			same = same && pictures[n.Name] == now
			pictures[n.Name] = now
		}
		if !same {
			time.Sleep(3 * time.Second)
		}
		return same
	})
	for name, text := range pictures {
		if err := os.WriteFile(pictureFile(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// pictureFile is where testInstall leaves what a node was before.
func pictureFile(node string) string { return filepath.Join(lab.Dir, "before-"+node) }

// picture is all of a node that an installation could change, but for what
// kube-proxy and kubelet keep there, and the empty chains that the plugin portmap
// never takes away.
func (c *cluster) picture(t testing.TB, name string) string {
	t.Helper()
	n, err := c.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{fmt.Sprint("unschedulable ", n.Spec.Unschedulable)}
	for key := range n.Annotations {
		if key != corev1.ObjectTTLAnnotationKey {
			lines = append(lines, "annotation "+key)
		}
	}
	for key := range n.Labels {
		lines = append(lines, "label "+key)
	}
	for _, x := range n.Spec.Taints {
		// The one's use is to go, and the other follows the condition Ready in its time.
		if x.Key != startupTaint && x.Key != corev1.TaintNodeNotReady {
			lines = append(lines, "taint "+x.ToString())
		}
	}
	for _, x := range n.Status.Conditions {
		lines = append(lines, fmt.Sprintf("condition %s %s", x.Type, x.Status))
	}
	slices.Sort(lines)
	const script = `ls -A /etc/cni/net.d /opt/cni/bin; ls -A /run | grep -i vxlan
ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//'; ip -br addr | sed 's/@if[0-9]*//'
ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; ip neigh show nud permanent
nft list tables | grep -v kube-proxy | sort
for i in iptables-save ip6tables-save; do $i | grep -v '^#\|KUBE-\|CNI-HOSTPORT-' | sed 's/\[[0-9:]*\]//'; done
sysctl -a 2>/dev/null | grep '^net\.\(ipv4\|ipv6\|bridge\|netfilter\)' | grep -v 'stable_secret\|conntrack_count\|neigh.*base_reachable\|tcp_fastopen_key\|conf.all.route_localnet'
true`
	out, err := node(t, name).Output("sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n") + "\n" + out
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
