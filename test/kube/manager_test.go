package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
	"github.com/vxlan-cni/vxlan-cni/test/apitest"
)

// TestManager runs its cases on one API server; each has Nodes of its own.
func TestManager(t *testing.T) {
	server := apitest.New(t)
	for name, run := range map[string]func(*testing.T, *cluster){
		"config is waited for":          testConfigFile,
		"podCIDRs are waited for":       testLateAssignment,
		"podCIDRs outside the network":  testOutside,
		"only changes are written":      testWritesNothingTwice,
		"overwrite":                     testOverwrite,
		"annotations come back":         testReassert,
		"heartbeats are no news":        testHeartbeats,
		"node is lost":                  testNodeLost,
		"hostile annotations":           testHostileAnnotations,
		"flannel beside us":             testFlannelNode,
		"announce":                      testAnnounce,
		"announced again":               testAnnouncedAgain,
		"release":                       testRelease,
		"withdraw":                      testWithdraw,
		"withdraw after flannel's":      testWithdrawBesideFlannel,
		"take-over from flannel":        testTakeOver,
		"rights":                        testRights,
		"rights without the taint's":    testNoTaintRight,
		"another prefix is another net": testPrefix,
		"events":                        testEvents,
		"events, too many":              testEventFlood,
		"events of leases":              testEventsOfLeases,
		"events without a right to":     testNoEventRight,
	} {
		t.Run(name, func(t *testing.T) {
			c := onServer(t, server, parse(t, config4))
			t.Cleanup(func() {
				c.Do(t, http.MethodDelete, nodesPath, nil, nil)
				c.Do(t, http.MethodDelete, eventsPath, nil, nil)
			})
			run(t, c)
		})
	}
}

func testConfigFile(t *testing.T, c *cluster) {
	file := filepath.Join(t.TempDir(), "net-conf.json")
	m := c.manager(t, func(o *kube.Options) { o.ConfigPath = file })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() {
		_, err := m.Config(ctx)
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("without a file: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := os.WriteFile(file+"~", []byte(config4), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+"~", file); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte(`{"Network":"10.244.0.0/33"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, err := m.Config(ctx); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "Network") {
		t.Errorf("an invalid file: %+v, %v", cfg, err)
	}
}

func testLateAssignment(t *testing.T, c *cluster) {
	m := c.manager(t, nil)
	got := make(chan subnet.Lease, 1)
	go func() {
		l, err := m.Acquire(t.Context(), request("late", 1))
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	for _, step := range []func(){
		func() {},
		func() { c.register(t, "late") },
	} {
		step()
		select {
		case l := <-got:
			t.Fatalf("lease without podCIDRs: %+v", l)
		case <-time.After(300 * time.Millisecond):
		}
	}
	c.assign(t, "late", "10.244.9.0/24")
	if l := <-got; l.Subnets[0].String() != "10.244.9.0/24" {
		t.Errorf("got %+v", l)
	}
}

func testOutside(t *testing.T, c *cluster) {
	c.register(t, "outside", "10.99.1.0/24")
	_, err := c.manager(t, nil).Acquire(t.Context(), request("outside", 1))
	for _, want := range []string{"outside", "spec.podCIDRs", "10.99.1.0/24", "10.244.0.0/16"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
	if len(c.get(t, "outside").Metadata.Annotations) != 0 {
		t.Error("annotations were written")
	}
}

func testWritesNothingTwice(t *testing.T, c *cluster) {
	c.register(t, "calm", "10.244.1.0/24")
	first := acquire(t, c.manager(t, nil), request("calm", 1))
	before := c.get(t, "calm").Metadata
	m := c.manager(t, nil)
	if again := acquire(t, m, request("calm", 1)); again.Revision != first.Revision {
		t.Errorf("revision %d, then %d", first.Revision, again.Revision)
	}
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	announced := c.get(t, "calm").Metadata.ResourceVersion
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if after := c.get(t, "calm").Metadata; after.ResourceVersion != announced || announced == before.ResourceVersion {
		t.Errorf("revisions: %s lease, %s announced, %s announced again", before.ResourceVersion, announced, after.ResourceVersion)
	}
}

func testOverwrite(t *testing.T, c *cluster) {
	c.register(t, "nat", "10.244.1.0/24")
	c.annotate(t, "nat", map[string]any{prefix + "public-ip-overwrite": "198.51.100.1", "mine": "stays"})
	l := acquire(t, c.manager(t, nil), request("nat", 1))
	a := c.get(t, "nat").Metadata.Annotations
	if l.VTEPs[0].Underlay != netip.MustParseAddr("198.51.100.1") || a[prefix+"public-ip"] != "198.51.100.1" || a["mine"] != "stays" {
		t.Errorf("lease %+v, annotations %q", l, a)
	}
	c.annotate(t, "nat", map[string]any{prefix + "public-ip-overwrite": "nonsense"})
	if l, err := c.manager(t, nil).Acquire(t.Context(), request("nat", 1)); err == nil || !strings.Contains(err.Error(), "public-ip-overwrite") {
		t.Errorf("a bad address: %+v, %v", l, err)
	}
}

func testReassert(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	m := c.manager(t, nil)
	own := acquire(t, m, request("us", 1))
	p, _ := run(t, m)
	p.waitFor(t, "the own lease", peers())
	want := c.get(t, "us").Metadata.Annotations
	for _, change := range []map[string]any{
		{prefix + "public-ip": "192.0.2.66"},
		{prefix + "backend-data": nil},
		{prefix + "kube-subnet-manager": "false", prefix + "backend-type": "udp"},
	} {
		c.annotate(t, "us", change)
		eventually(t, fmt.Sprint("annotations back after ", change), func() bool {
			return fmt.Sprint(c.get(t, "us").Metadata.Annotations) == fmt.Sprint(want)
		})
		if s, _ := p.get(); s.Own.VTEPs[0] != own.VTEPs[0] || s.Own.Subnets[0] != own.Subnets[0] {
			t.Errorf("own lease in between: %+v", s.Own)
		}
	}
}

func testHeartbeats(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "peer", "10.244.2.0/24")
	m := c.manager(t, nil)
	acquire(t, m, request("us", 1))
	acquire(t, c.manager(t, nil), request("peer", 2))
	p, _ := run(t, m)
	p.waitFor(t, "the peer", peers("peer"))
	_, before := p.get()
	for i := range 20 {
		c.Do(t, http.MethodPatch, nodesPath+"/peer/status", map[string]any{"status": map[string]any{
			"nodeInfo": map[string]any{"kernelVersion": fmt.Sprint(i)}}}, nil)
	}
	// What comes after them has been seen, so they have.
	c.annotate(t, "peer", map[string]any{prefix + "public-ip": "192.0.2.77"})
	p.waitFor(t, "the peer's new address", func(s subnet.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].VTEPs[0].Underlay.String() == "192.0.2.77"
	})
	if _, after := p.get(); after != before+1 {
		t.Errorf("%d snapshots for 20 heartbeats and a change, want 1", after-before)
	}
}

func testNodeLost(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	m := c.manager(t, nil)
	own := acquire(t, m, request("us", 1))
	p, _ := run(t, m)
	p.waitFor(t, "the own lease", peers())
	c.delete(t, "us")
	c.register(t, "other", "10.244.2.0/24")
	acquire(t, c.manager(t, nil), request("other", 2))
	if s := p.waitFor(t, "the other", peers("other")); s.Own.Subnets[0] != own.Subnets[0] {
		t.Errorf("without a Node the own lease is %+v", s.Own)
	}
	// The Node comes back bare, and gets another subnet later.
	c.register(t, "us")
	c.assign(t, "us", "10.244.3.0/24")
	p.waitFor(t, "the new subnet", func(s subnet.Snapshot) bool { return s.Own.Subnets[0].String() == "10.244.3.0/24" })
	if c.get(t, "us").Metadata.Annotations[prefix+"kube-subnet-manager"] != "true" {
		t.Error("the new Node has no annotations")
	}
}

func testHostileAnnotations(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "peer", "10.244.2.0/24")
	c.register(t, "bad", "10.244.3.0/24")
	m := c.manager(t, nil)
	own := acquire(t, m, request("us", 1))
	acquire(t, c.manager(t, nil), request("peer", 2))
	p, _ := run(t, m)
	p.waitFor(t, "the peer", peers("peer"))
	good := map[string]any{"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.0.2.9", "backend-data": `{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}`}
	for _, h := range []struct{ name, value, reason string }{
		{"backend-data", "{", "backend-data"},
		{"backend-data", "", "BackendData"},
		{"backend-data", `{"VNI":7,"VtepMAC":"0e:00:00:00:00:09"}`, "VNI 7"},
		{"backend-data", `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`, "group"},
		{"backend-data", `{"VNI":1,"VtepMAC":"` + own.VTEPs[0].MAC.String() + `"}`, "this node"},
		{"public-ip", "224.0.0.1", "multicast"},
		{"public-ip", "10.244.9.9", "pod network"},
		{"public-ip", own.VTEPs[0].Underlay.String(), "this node"},
		{"public-ip", strings.Repeat("x", 100_000), "PublicIP"},
		{"backend-type", "udp", "udp"},
		{"backend-type", "host-gw", "host-gw"},
		{"mtu", "-7", "MTU"},
		{"schema", "99", "schema"},
	} {
		set := map[string]any{prefix + "mtu": nil, prefix + "schema": nil}
		for name, v := range good {
			set[prefix+name] = v
		}
		set[prefix+h.name] = h.value
		c.annotate(t, "bad", set)
		p.waitFor(t, h.reason, func(s subnet.Snapshot) bool {
			return len(s.Ignored) == 1 && s.Ignored[0].Key == "nodes/bad" && strings.Contains(s.Ignored[0].Reason, h.reason) && peers("peer")(s)
		})
	}
}

func testFlannelNode(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "flannel", "10.244.2.0/24")
	c.annotate(t, "flannel", map[string]any{prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan",
		prefix + "public-ip": "192.0.2.9", prefix + "backend-data": `{"VNI":1,"VtepMAC":"8a:00:00:00:00:09"}`})
	m := c.manager(t, nil)
	acquire(t, m, request("us", 1))
	p, _ := run(t, m)
	l := p.waitFor(t, "flannel's node", peers("flannel")).Peers[0]
	if l.VTEPs[0].MAC.String() != "8a:00:00:00:00:09" || l.VTEPs[0].Underlay.String() != "192.0.2.9" || l.Subnets[0].String() != "10.244.2.0/24" || time.Since(l.Since).Abs() > time.Minute {
		t.Errorf("got %+v", l)
	}
}

func networkCondition(n object) (status, reason string) {
	for _, c := range n.Status.Conditions {
		if c.Type == string(corev1.NodeNetworkUnavailable) {
			return c.Status, c.Reason
		}
	}
	return "", ""
}

const taint = "node.example.com/overlay-not-ready"

func withTaint(o *kube.Options) { o.StartupTaint = taint }

// tainted registers a Node with the start-up taint twice among others.
func (c *cluster) tainted(t *testing.T, name, podCIDR string) {
	t.Helper()
	c.register(t, name, podCIDR)
	c.Do(t, http.MethodPatch, nodesPath+"/"+name, map[string]any{"spec": map[string]any{"taints": []map[string]string{
		{"key": taint, "effect": "NoSchedule"}, {"key": "keep", "value": "v", "effect": "NoSchedule"}, {"key": taint, "effect": "NoExecute"},
	}}}, nil)
}

func testAnnounce(t *testing.T, c *cluster) {
	c.tainted(t, "us", "10.244.1.0/24")
	m := c.manager(t, withTaint)
	acquire(t, m, request("us", 1))
	if s, _ := networkCondition(c.get(t, "us")); s != "" {
		t.Errorf("before it was announced: %s", s)
	}
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n := c.get(t, "us")
	if s, r := networkCondition(n); s != "False" || r != "OverlayIsUp" {
		t.Errorf("condition %s %s", s, r)
	}
	if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != "keep" || n.Spec.Taints[0].Value != "v" {
		t.Errorf("taints %+v", n.Spec.Taints)
	}
	if err := m.Announce(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if s, r := networkCondition(c.get(t, "us")); s != "True" || r != "OverlayIsDown" {
		t.Errorf("condition after removal %s %s", s, r)
	}
}

func testAnnouncedAgain(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	m := c.manager(t, withTaint)
	acquire(t, m, request("us", 1))
	_, _ = run(t, m)
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c.delete(t, "us")
	c.tainted(t, "us", "10.244.1.0/24")
	eventually(t, "the new Node is announced", func() bool {
		n := c.get(t, "us")
		s, _ := networkCondition(n)
		return s == "False" && len(n.Spec.Taints) == 1
	})
}

func testRelease(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "gone", "10.244.2.0/24")
	c.register(t, "bare", "10.244.3.0/24")
	m := c.manager(t, nil)
	acquire(t, m, request("us", 1))
	acquire(t, c.manager(t, nil), request("gone", 2))
	p, _ := run(t, m)
	seen := p.waitFor(t, "the peer", peers("gone")).Peers[0].Revision
	for _, none := range []string{"bare", "nobody"} {
		if err := m.Release(t.Context(), none, 0); !errors.Is(err, subnet.ErrNoLease) {
			t.Errorf("%s: %v, want %v", none, err, subnet.ErrNoLease)
		}
	}
	// A change of the lease counts, another one of the Node does not.
	c.annotate(t, "gone", map[string]any{prefix + "public-ip": "192.0.2.77"})
	if err := m.Release(t.Context(), "gone", seen); !errors.Is(err, subnet.ErrChanged) {
		t.Errorf("changed: %v, want %v", err, subnet.ErrChanged)
	}
	now := p.waitFor(t, "the new address", func(s subnet.Snapshot) bool { return s.Peers[0].Revision > seen }).Peers[0].Revision
	c.annotate(t, "gone", map[string]any{"mine": "stays"})
	if err := m.Release(t.Context(), "gone", now); err != nil {
		t.Fatal(err)
	}
	n := c.get(t, "gone")
	if s, _ := networkCondition(n); s != "True" || len(n.Metadata.Annotations) != 1 {
		t.Errorf("condition %q, annotations %q", s, n.Metadata.Annotations)
	}
	p.waitFor(t, "no peers", peers())
}

func testPrefix(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "flannel", "10.244.2.0/24")
	acquire(t, c.manager(t, nil), request("flannel", 2))
	m := c.manager(t, func(o *kube.Options) { o.AnnotationPrefix = "example.com/net" })
	acquire(t, m, request("us", 1))
	if a := c.get(t, "us").Metadata.Annotations; a["example.com/net-public-ip"] != "192.0.2.1" {
		t.Errorf("annotations %q", a)
	}
	p, _ := run(t, m)
	p.waitFor(t, "nobody", peers())
}
