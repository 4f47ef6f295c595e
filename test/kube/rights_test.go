package kube

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
)

type rule struct {
	APIGroups []string `json:"apiGroups"`
	Resources []string `json:"resources"`
	Verbs     []string `json:"verbs"`
}

// The rights in the package's documentation.
func documented() []rule {
	return []rule{
		{[]string{""}, []string{"nodes"}, []string{"get", "list", "watch"}},
		{[]string{""}, []string{"nodes/status"}, []string{"patch"}},
		{[]string{""}, []string{"events"}, []string{"create", "patch"}},
	}
}

// user makes one with these rights and no others, and returns his kubeconfig.
func (c *cluster) user(t *testing.T, name string, rules []rule) string {
	t.Helper()
	const rbac = "/apis/rbac.authorization.k8s.io/v1/"
	meta := map[string]any{"name": name}
	c.Do(t, http.MethodPost, rbac+"clusterroles", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules}, nil)
	c.Do(t, http.MethodPost, rbac+"clusterrolebindings", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta,
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
		"subjects": []map[string]any{{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}},
	}, nil)
	return c.Kubeconfig(t, name)
}

// testRights: what the documentation says is enough for everything.
func testRights(t *testing.T, c *cluster) {
	taintRight := rule{[]string{""}, []string{"nodes"}, []string{"patch"}}
	file := c.user(t, "overlayd", append(documented(), taintRight))
	c.tainted(t, "us", "10.244.1.0/24")
	m := c.manager(t, func(o *kube.Options) { o.Kubeconfig, o.StartupTaint = file, taint })
	acquire(t, m, request("us", 1))
	p, stop := run(t, m)
	p.waitFor(t, "the own lease", peers())
	eventually(t, "announced", func() bool { return m.Announce(t.Context(), true) == nil })
	if s, _ := networkCondition(c.get(t, "us")); s != "False" {
		t.Errorf("condition %q", s)
	}
	m.Report("us", false, "Test", "twice")
	m.Report("us", false, "Test", "twice")
	eventually(t, "told twice", func() bool {
		return slices.ContainsFunc(c.events(t, "us"), func(e told) bool { return e.Reason == "Test" && e.Count == 2 })
	})
	stop()
	if err := m.Withdraw(t.Context(), "us"); err != nil {
		t.Error(err)
	}

	// Without rights Acquire waits: they may come.
	file = c.user(t, "nobody", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	m = c.manager(t, func(o *kube.Options) { o.Kubeconfig = file })
	if l, err := m.Acquire(ctx, request("us", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without rights: %+v, %v", l, err)
	}
}

// testNoTaintRight: the right to change Nodes is needed for the taint alone.
func testNoTaintRight(t *testing.T, c *cluster) {
	file := c.user(t, "modest", documented())
	c.tainted(t, "us", "10.244.1.0/24")
	m := c.manager(t, func(o *kube.Options) { o.Kubeconfig = file })
	acquire(t, m, request("us", 1))
	p, _ := run(t, m)
	p.waitFor(t, "the own lease", peers())
	eventually(t, "announced", func() bool { return m.Announce(t.Context(), true) == nil })

	m = c.manager(t, func(o *kube.Options) { o.Kubeconfig, o.StartupTaint = file, taint })
	acquire(t, m, request("us", 1))
	if err := m.Announce(t.Context(), true); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("the taint without the right to it: %v", err)
	}
}
