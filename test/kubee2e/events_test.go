package kubee2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeEvents are overlayd's Events of a reason on a Node.
func (c *cluster) nodeEvents(t testing.TB, node, reason string) []corev1.Event {
	t.Helper()
	list, err := c.client.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{
		FieldSelector: "involvedObject.kind=Node,source=overlayd,involvedObject.name=" + node + ",reason=" + reason,
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// testEvents: the Nodes say that the network is up, and what somebody did to it.
func testEvents(t *testing.T) {
	c := open(t)
	nodes := c.nodes(t)
	node(t, nodes[0].Name) // skips elsewhere
	for _, n := range nodes {
		eventually(t, time.Minute, n.Name+" says that it is ready", func() bool {
			all := c.nodeEvents(t, n.Name, "OverlayReady")
			return len(all) > 0 && all[0].Type == corev1.EventTypeNormal
		})
	}
	// Twice the same: one Event, counted.
	peer := nodes[1].Spec.PodCIDRs[0]
	for range 2 {
		if _, err := node(t, nodes[0].Name).Output("ip", "route", "del", peer); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "route to "+peer+" is back", func() bool { return len(c.routes(t, nodes[0].Name, []string{peer})) == 1 })
	}
	defer func() {
		for _, e := range c.nodeEvents(t, nodes[0].Name, "OverlayRepaired") {
			t.Log(e.Count, e.Message)
		}
	}()
	eventually(t, time.Minute, "the repair is told, and told to have happened twice", func() bool {
		return slices.ContainsFunc(c.nodeEvents(t, nodes[0].Name, "OverlayRepaired"), func(e corev1.Event) bool {
			return e.Type == corev1.EventTypeWarning && e.Count >= 2 && strings.Contains(e.Message, peer)
		})
	})
}
