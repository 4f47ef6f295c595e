package kubee2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// testDNS: pods on every node resolve Services by the cluster's DNS, whose pods
// reach the API server by its Service.
func testDNS(t *testing.T) {
	c := open(t)
	nodes := c.nodes(t)
	if lab != nil {
		c.dns(t)
	}
	s := c.space(t)
	s.deployment("web", int32(len(nodes)), server())
	web := s.service("web", "web", nil)
	s.service("headless", "web", func(v *corev1.Service) { v.Spec.ClusterIP = corev1.ClusterIPNone })
	var all []string
	for _, p := range s.pods("web", len(nodes)) {
		all = append(all, p.Status.PodIP)
	}
	slices.Sort(all)
	names := map[string]string{
		"dns://web": web.Spec.ClusterIP,
		"dns://web." + s.name + ".svc.cluster.local":      web.Spec.ClusterIP,
		"dns://headless." + s.name + ".svc.cluster.local": strings.Join(all, " "),
	}
	for i, n := range nodes {
		client := fmt.Sprint("client", i)
		s.pod(client, n.Name, server(), nil)
		p := s.pods(client, 1)[0]
		settle(s, []corev1.Pod{p}, "dns://headless."+s.name+".svc.cluster.local")
		for url, want := range names {
			if got := s.probe(client, url)[0].Text; got != want {
				t.Errorf("on %s: %s is %q, want %q", n.Name, url, got, want)
			}
		}
	}
}

// dns runs the lab's DNS, unless it does. testUninstall ends it.
func (c *cluster) dns(t *testing.T) {
	t.Helper()
	kubectl(t, "apply", "-f", "dns.yaml")
	(&space{c, t, system}).podsOf("k8s-app=kube-dns", 2)
}
