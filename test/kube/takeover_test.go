package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
)

const flannelMAC = "8a:00:00:00:00:09"

// flannels are a Node's annotations as flannel writes and compares them.
func flannels(address, mac string) map[string]string {
	return map[string]string{
		prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan", prefix + "public-ip": address,
		prefix + "backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"%s"}`, mac),
	}
}

// flannel does on a Node what flannel does when it starts there.
func (c *cluster) flannel(t *testing.T, name, address string) {
	t.Helper()
	set := map[string]any{}
	for key, v := range flannels(address, flannelMAC) {
		set[key] = v
	}
	c.Do(t, http.MethodPatch, nodesPath+"/"+name+"/status", map[string]any{"metadata": map[string]any{"annotations": set}}, nil)
	now := time.Now().UTC().Format(time.RFC3339)
	c.Do(t, http.MethodPatch, nodesPath+"/"+name+"/status", map[string]any{"status": map[string]any{"conditions": []map[string]any{{
		"type": corev1.NodeNetworkUnavailable, "status": "False", "reason": "FlannelIsUp", "message": "Flannel is running on this node",
		"lastHeartbeatTime": now, "lastTransitionTime": now,
	}}}}, nil)
}

// testTakeOver: on a Node that ran flannel the subnet stays, peers see our MAC
// in the place of flannel's and no moment without the node, and what flannel reads
// is as flannel would have written it.
func testTakeOver(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.77.0/24")
	c.register(t, "peer", "10.244.2.0/24")
	c.register(t, "old", "10.244.3.0/24")
	c.flannel(t, "us", "192.0.2.1")
	c.flannel(t, "old", "192.0.2.3")
	c.annotate(t, "old", map[string]any{prefix + "backend-data": `{"VNI":1,"VtepMAC":"8a:00:00:00:00:03"}`})
	c.annotate(t, "us", map[string]any{"mine": "stays"})

	m := c.manager(t, nil)
	acquire(t, m, request("peer", 2))
	ctx, cancel := context.WithCancel(t.Context())
	snaps, done := make(chan subnet.Snapshot, 1000), make(chan error, 1)
	go func() { done <- m.Run(ctx, func(s subnet.Snapshot) { snaps <- s }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	// Each snapshot from the one on that has both Nodes must have both.
	follow := func(what string, ok func(subnet.Lease) bool) {
		t.Helper()
		for begun, deadline := false, time.After(20*time.Second); ; {
			select {
			case s := <-snaps:
				both := peers("old", "us")(s)
				if begun && !both {
					t.Fatalf("peers %+v in between", s.Peers)
				}
				begun = begun || both
				if both && s.Peers[1].Subnets[0].String() != "10.244.77.0/24" {
					t.Fatalf("us has %s", s.Peers[1].Subnets)
				}
				if both && ok(s.Peers[1]) {
					return
				}
			case <-deadline:
				t.Fatal("not seen: " + what)
			}
		}
	}
	follow("flannel's node", func(l subnet.Lease) bool { return l.VTEPs[0].MAC.String() == flannelMAC })

	us := c.manager(t, nil)
	own := acquire(t, us, request("us", 1))
	if own.Subnets[0].String() != "10.244.77.0/24" {
		t.Errorf("took %s, flannel's pods have 10.244.77.0/24", own.Subnets)
	}
	follow("our MAC", func(l subnet.Lease) bool { return l.VTEPs[0] == own.VTEPs[0] && l.MTU == own.MTU })
	want := flannels("192.0.2.1", own.VTEPs[0].MAC.String())
	maps.Copy(want, map[string]string{"mine": "stays", prefix + "mtu": "1450", prefix + "schema": "1"})
	if have := c.get(t, "us").Metadata.Annotations; !maps.Equal(have, want) {
		t.Errorf("annotations %q\nwant        %q", have, want)
	}
	if s, reason := networkCondition(c.get(t, "us")); s != "False" || reason != "FlannelIsUp" {
		t.Errorf("before it is ready the condition is %s %s", s, reason)
	}
	p, _ := run(t, us)
	p.waitFor(t, "flannel's node and ours", peers("old", "peer"))
	if err := us.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if s, reason := networkCondition(c.get(t, "us")); s != "False" || reason != "OverlayIsUp" {
		t.Errorf("condition %s %s", s, reason)
	}
}

func testWithdraw(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	c.register(t, "peer", "10.244.2.0/24")
	c.register(t, "bare", "10.244.3.0/24")
	c.Do(t, http.MethodPatch, nodesPath+"/us/status", map[string]any{"status": map[string]any{
		"conditions": []map[string]string{{"type": "Ready", "status": "True"}},
	}}, nil)
	c.annotate(t, "us", map[string]any{"mine": "stays", prefix + "public-ip-overwrite": "192.0.2.1"})
	m := c.manager(t, nil)
	acquire(t, m, request("us", 1))
	peer := c.manager(t, nil)
	acquire(t, peer, request("peer", 2))
	p, _ := run(t, peer)
	p.waitFor(t, "us", peers("us"))
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	m = c.manager(t, nil) // one that has acquired nothing
	for range 2 {
		if err := m.Withdraw(t.Context(), "us"); err != nil {
			t.Fatal(err)
		}
		n := c.get(t, "us")
		if s, r := networkCondition(n); s != "True" || r != "OverlayIsDown" {
			t.Errorf("condition %s %s", s, r)
		}
		if a := n.Metadata.Annotations; len(a) != 2 || a["mine"] != "stays" || a[prefix+"public-ip-overwrite"] == "" {
			t.Errorf("annotations %q, want the operator's alone", a)
		}
	}
	p.waitFor(t, "no peers", peers())
	// Who brings another network finds nothing of this one.
	for range 2 {
		if err := m.Forget(t.Context(), "us"); err != nil {
			t.Fatal(err)
		}
		if n := c.get(t, "us"); len(n.Status.Conditions) != 1 || n.Status.Conditions[0].Type != "Ready" {
			t.Errorf("conditions %+v, want kubelet's alone", n.Status.Conditions)
		}
	}
	if err := m.Forget(t.Context(), "nobody"); err != nil {
		t.Error(err)
	}
	for _, none := range []string{"bare", "nobody"} {
		if err := m.Withdraw(t.Context(), none); err != nil {
			t.Errorf("%s: %v", none, err)
		}
	}
	if s, _ := networkCondition(c.get(t, "bare")); s != "" {
		t.Errorf("a Node that had no lease gets the condition %s", s)
	}

	// Where nobody answers, the end says why.
	m = c.manager(t, func(o *kube.Options) { o.APIURL = "https://127.0.0.1:1" })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.Withdraw(ctx, "us"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not reachable") {
		t.Errorf("without a server: %v", err)
	}
}

// testWithdrawBesideFlannel: who went back to flannel keeps flannel's lease.
func testWithdrawBesideFlannel(t *testing.T, c *cluster) {
	c.register(t, "us", "10.244.1.0/24")
	m := c.manager(t, nil)
	acquire(t, m, request("us", 1))
	if err := m.Announce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c.flannel(t, "us", "192.0.2.1")
	if err := m.Withdraw(t.Context(), "us"); err != nil {
		t.Fatal(err)
	}
	n := c.get(t, "us")
	if want := flannels("192.0.2.1", flannelMAC); !maps.Equal(n.Metadata.Annotations, want) {
		t.Errorf("annotations %q\nwant        %q", n.Metadata.Annotations, want)
	}
	if err := m.Forget(t.Context(), "us"); err != nil {
		t.Error(err)
	}
	if s, r := networkCondition(c.get(t, "us")); s != "False" || r != "FlannelIsUp" {
		t.Errorf("condition %s %s", s, r)
	}
}
