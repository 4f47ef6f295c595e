package kubee2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeEvents are overlayd's Events on a Node, by reason.
func (c *cluster) nodeEvents(t testing.TB, node string) map[string]corev1.Event {
	t.Helper()
	list, err := c.client.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{
		FieldSelector: "involvedObject.kind=Node,source=overlayd,involvedObject.name=" + node,
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]corev1.Event{}
	for _, e := range list.Items {
		found[e.Reason] = e
	}
	return found
}

// testEvents: the Nodes say that the network is up, and what somebody did to it.
func testEvents(t *testing.T) {
	c := open(t)
	nodes := c.nodes(t)
	node(t, nodes[0].Name) // skips elsewhere
	for _, n := range nodes {
		eventually(t, time.Minute, n.Name+" says that it is ready", func() bool {
			e := c.nodeEvents(t, n.Name)["OverlayReady"]
			return e.Type == corev1.EventTypeNormal && e.InvolvedObject.Name == n.Name
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
	last := ""
	eventually(t, time.Minute, "the repair is told", func() bool {
		e := c.nodeEvents(t, nodes[0].Name)["OverlayRepaired"]
		last = fmt.Sprint(e.Type, " ", e.Count, " ", e.Message)
		return e.Type == corev1.EventTypeWarning && e.Count == 2
	})
	t.Log(last)
}
