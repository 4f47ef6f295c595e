package kubee2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// roles are the ClusterRoles that the installations bring, each of its service
// account's name.
var roles = []string{"vxlan-cni", "vxlan-cni-uninstall"}

func account(role string) string { return "system:serviceaccount:" + system + ":" + role }

func accounts() (all []string) {
	for _, r := range roles {
		all = append(all, account(r))
	}
	return all
}

// granted are the rules that were seen in the cluster, by role.
var granted = map[string][]rbacv1.PolicyRule{}

// noteRights remembers the ClusterRoles that there are now.
func (c *cluster) noteRights(t testing.TB) {
	t.Helper()
	for _, name := range roles {
		r, err := c.client.RbacV1().ClusterRoles().Get(t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue // of an installation that has none, as with etcd
		}
		if err != nil {
			t.Fatal(err)
		}
		granted[name] = r.Rules
	}
}

// testRights comes last: what the roles gave is what was used, by the account of the
// API server. A right that no test needs is one too many.
func testRights(t *testing.T) {
	if lab == nil {
		t.Skip("only the lab's API server writes down who did what")
	}
	if len(granted) == 0 {
		t.Skip("this run has installed nothing")
	}
	used := usedRights(t)
	for _, name := range roles {
		given := map[string]bool{}
		for _, r := range granted[name] {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						given[strings.TrimSpace(verb+" "+resource+" "+group)] = true
					}
				}
			}
		}
		if len(given) == 0 {
			t.Errorf("%s: no rules were seen", name)
		}
		for right := range given {
			if !used[name][right] {
				t.Errorf("%s may %s, and nothing needed it", name, right)
			}
		}
		for right := range used[name] {
			if !given[right] {
				t.Errorf("%s wanted to %s, which its role does not say", name, right)
			}
		}
		t.Logf("%s: %d rights, all used", name, len(given))
	}
}

// usedRights reads the audit log: by role, what its account asked for.
func usedRights(t testing.TB) map[string]map[string]bool {
	t.Helper()
	b, err := os.ReadFile(lab.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]map[string]bool{}
	for _, name := range roles {
		used[name] = map[string]bool{}
	}
	for line := range strings.Lines(string(b)) {
		var e struct {
			Verb, RequestURI string
			User             struct{ Username string }
			ObjectRef        *struct{ Resource, Subresource, APIGroup string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Logf("%v in %s", err, line) // the API server was killed as it wrote
			continue
		}
		role := strings.TrimPrefix(e.User.Username, account(""))
		if used[role] == nil {
			t.Fatalf("a request of %s", e.User.Username)
		}
		right := e.Verb + " " + e.RequestURI
		if o := e.ObjectRef; o != nil {
			if o.Subresource != "" {
				o.Resource += "/" + o.Subresource
			}
			right = strings.TrimSpace(e.Verb + " " + o.Resource + " " + o.APIGroup)
		}
		used[role][right] = true
	}
	return used
}
