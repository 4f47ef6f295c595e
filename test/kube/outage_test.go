package kube

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// TestOutages: what happens to an API server, in a row on one.
func TestOutages(t *testing.T) {
	c := newCluster(t, parse(t, config4))
	for i, name := range []string{"us", "one", "two"} {
		c.register(t, name, fmt.Sprintf("10.244.%d.0/24", i+1))
	}
	m := c.manager(t, nil)
	own := acquire(t, m, request("us", 1))
	acquire(t, c.manager(t, nil), request("one", 2))
	p, stop := run(t, m)
	p.waitFor(t, "a peer", peers("one"))

	// While it is away nothing is told, and Run does not end. Afterwards what
	// came is seen, at once.
	c.Stop()
	_, before := p.get()
	time.Sleep(3 * time.Second)
	if _, after := p.get(); after != before {
		t.Errorf("%d snapshots during an outage", after-before)
	}
	c.Start(t)
	began := time.Now()
	acquire(t, c.manager(t, nil), request("two", 3))
	p.waitFor(t, "both peers", peers("one", "two"))
	t.Logf("the peer that came is seen %s after the outage", time.Since(began).Round(time.Millisecond))

	// All is lost, and revisions begin anew: the own lease stays in use, and is
	// written to the Node when that is back.
	c.Wipe(t)
	s := p.waitFor(t, "no peers", func(s subnet.Snapshot) bool { return len(s.Peers) == 0 })
	if s.Own.Subnets[0] != own.Subnets[0] {
		t.Errorf("after the wipe the own lease is %+v", s.Own)
	}
	c.register(t, "us", own.Subnets[0].String())
	c.register(t, "one", "10.244.2.0/24")
	eventually(t, "annotations on the new Node", func() bool {
		return c.get(t, "us").Metadata.Annotations[prefix+"public-ip"] == "192.0.2.1"
	})
	acquire(t, c.manager(t, nil), request("one", 2))
	p.waitFor(t, "the peer", peers("one"))

	// The end is no matter of the server.
	c.Stop()
	began = time.Now()
	stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Run took %s to end during an outage", took)
	}
}

// TestMemoryOfAThousandNodes: 20 MB is the aim, measured with Nodes of a size
// that kubelets make: 50 images each.
func TestMemoryOfAThousandNodes(t *testing.T) {
	const nodes, limit = 1000, 20 << 20
	c := newCluster(t, parse(t, config4))
	bulky := bulkyStatus()
	for i := range nodes {
		name := fmt.Sprintf("node-%04d", i)
		c.Do(t, http.MethodPost, nodesPath, map[string]any{
			"apiVersion": "v1", "kind": "Node", "spec": spec([]string{fmt.Sprintf("10.244.%d.%d/26", i/4, i%4*64)}),
			"metadata": map[string]any{"name": name, "annotations": map[string]string{
				prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan",
				prefix + "public-ip":    fmt.Sprintf("192.0.%d.%d", 2+i/250, 1+i%250),
				prefix + "backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"0e:00:00:00:%02x:%02x"}`, i/256, i%256),
			}},
			"status": bulky,
		}, nil)
	}
	m := c.manager(t, nil)
	before := heap()
	acquire(t, m, subnet.Request{Node: "node-0000", MTU: 1450, VTEPs: request("node-0000", 1).VTEPs})
	began := time.Now()
	p, _ := run(t, m)
	p.waitFor(t, "all Nodes", func(s subnet.Snapshot) bool { return len(s.Peers) == nodes-1 })
	took := time.Since(began)
	held := int64(heap()) - int64(before)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	t.Logf("%d Nodes: %.1f MB held, first snapshot after %s, %.0f MB from the system", nodes, float64(held)/(1<<20),
		took.Round(time.Millisecond), float64(stats.Sys)/(1<<20))
	if held > limit {
		t.Errorf("%d MB held, want at most %d", held>>20, limit>>20)
	}
	runtime.KeepAlive(p)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func bulkyStatus() map[string]any {
	var images []map[string]any
	for i := range 50 {
		digest := strings.Repeat(fmt.Sprintf("%02x", i), 32)
		images = append(images, map[string]any{"sizeBytes": 1e8, "names": []string{
			fmt.Sprintf("registry.example.com/team/component-%d@sha256:%s", i, digest), fmt.Sprintf("registry.example.com/team/component-%d:v1.2.3", i)}})
	}
	return map[string]any{"images": images}
}
