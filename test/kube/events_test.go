package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
)

const eventsPath = "/api/v1/namespaces/default/events"

// told is what the tests read of an Event.
type told struct {
	Metadata              struct{ Name string }
	Type, Reason, Message string
	Count                 int
	Source                struct{ Component, Host string }
	FirstTimestamp        time.Time
	LastTimestamp         time.Time
	InvolvedObject        struct{ Kind, Name string }
	ReportingComponent    string
	ReportingInstance     string
}

// events are those on a Node.
func (c *cluster) events(t *testing.T, node string) []told {
	t.Helper()
	var list struct{ Items []told }
	c.Do(t, http.MethodGet, eventsPath+"?fieldSelector=involvedObject.kind=Node,involvedObject.name="+node, nil, &list)
	return list.Items
}

// testEvents: what is reported stands on the Node, once, with how often it was.
func testEvents(t *testing.T, c *cluster) {
	m := c.manager(t, nil)
	long := strings.Repeat("ä", 2000)
	for range 3 {
		m.Report("told", true, "Blocked", "a rule drops packets")
	}
	m.Report("told", false, "Ready", long)
	m.Report("other", true, "Blocked", "a rule drops packets")
	eventually(t, "Events", func() bool { return len(c.events(t, "other")) == 1 })
	all := c.events(t, "told")
	if len(all) != 2 {
		t.Fatalf("%d Events, want 2: %+v", len(all), all)
	}
	for _, e := range all {
		want := told{Type: "Warning", Reason: "Blocked", Message: "a rule drops packets", Count: 3}
		if e.Reason == "Ready" {
			want = told{Type: "Normal", Reason: "Ready", Message: e.Message, Count: 1}
			if len(e.Message) > 1024 || !strings.HasPrefix(long, strings.TrimSuffix(e.Message, "…")) {
				t.Errorf("a long text is %d bytes, %q", len(e.Message), e.Message)
			}
		}
		if e.Type != want.Type || e.Message != want.Message || e.Count != want.Count || e.Source.Host != "told" ||
			e.Source.Component != "overlayd" || e.ReportingComponent != "overlayd" || e.LastTimestamp.Before(e.FirstTimestamp) {
			t.Errorf("got %+v, want %+v", e, want)
		}
	}
	// One that somebody deleted is written anew.
	c.Do(t, http.MethodDelete, eventsPath+"?fieldSelector=involvedObject.name=told", nil, nil)
	m.Report("told", true, "Blocked", "a rule drops packets")
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if all := c.events(t, "told"); len(all) != 1 || all[0].Count != 1 {
		t.Errorf("after they were deleted: %+v", all)
	}
	m.Report("told", true, "Late", "after Close")
}

// testEventFlood: a node with trouble writes some Events, and not all.
func testEventFlood(t *testing.T, c *cluster) {
	m := c.manager(t, nil)
	for i := range 20 {
		m.Report("flooded", true, "Trouble", fmt.Sprint("number ", i))
		m.Report("flooded", true, "Again", "the same")
	}
	m.Report("flooded", true, "Other", "in between")
	eventually(t, "the last Event", func() bool {
		return slices.ContainsFunc(c.events(t, "flooded"), func(e told) bool { return e.Reason == "Other" })
	})
	count := map[string]int{}
	for _, e := range c.events(t, "flooded") {
		count[e.Reason]++
		if e.Reason == "Again" && e.Count != 5 {
			t.Errorf("written %d times, want 5", e.Count)
		}
	}
	if count["Trouble"] != 5 || count["Again"] != 1 || count["Other"] != 1 {
		t.Errorf("Events %v, want 5, 1 and 1", count)
	}
}

// testEventsOfLeases: a Node that waits for podCIDRs, and annotations that somebody
// takes away, are told of.
func testEventsOfLeases(t *testing.T, c *cluster) {
	c.register(t, "us")
	m := c.manager(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := m.Acquire(ctx, request("us", 1))
		ended <- err
	}()
	one := func(reason string) {
		t.Helper()
		eventually(t, reason, func() bool {
			for _, e := range c.events(t, "us") {
				if e.Reason == reason && e.Count == 1 && e.Type == "Warning" {
					return true
				}
			}
			return false
		})
	}
	one("NoPodCIDR")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.assign(t, "us", "10.244.1.0/24")
	acquire(t, m, request("us", 1))
	p, _ := run(t, m)
	p.waitFor(t, "the own lease", peers())
	c.annotate(t, "us", map[string]any{prefix + "backend-data": nil})
	one("AnnotationsChanged")
}

// testNoEventRight: whoever may write no Events does the rest.
func testNoEventRight(t *testing.T, c *cluster) {
	file := c.user(t, "silent", documented()[:2])
	c.register(t, "us", "10.244.1.0/24")
	m := c.manager(t, func(o *kube.Options) { o.Kubeconfig = file })
	m.Report("us", true, "Blocked", "a rule drops packets")
	acquire(t, m, request("us", 1))
	began := time.Now()
	if err := m.Close(); err != nil || time.Since(began) > 2*time.Second {
		t.Errorf("Close took %s: %v", time.Since(began), err)
	}
	if all := c.events(t, "us"); len(all) != 0 {
		t.Errorf("Events without a right to: %+v", all)
	}
}
