package kube

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
	"github.com/vxlan-cni/vxlan-cni/test/apitest"
)

const (
	nodesPath = "/api/v1/nodes"
	prefix    = kube.DefaultAnnotationPrefix + "/"
	config4   = `{"Network":"10.244.0.0/16"}`
)

// object is what the tests read of a Node.
type object struct {
	Metadata struct {
		Name, UID, ResourceVersion string
		CreationTimestamp          time.Time
		Annotations                map[string]string
	}
	Spec struct {
		PodCIDRs []string
		Taints   []struct{ Key, Value, Effect string }
	}
	Status struct {
		Conditions []struct{ Type, Status, Reason string }
	}
}

// A cluster is an API server with what the tests play: kubelets, which register
// Nodes, and the controller-manager, which assigns subnets.
type cluster struct {
	*apitest.Server
	cfg    subnet.Config
	config string // file of it
	file   string // kubeconfig

	mu      sync.Mutex
	subnets map[string][]netip.Prefix // by Node
}

func newCluster(t testing.TB, cfg subnet.Config) *cluster {
	t.Helper()
	return onServer(t, apitest.New(t), cfg)
}

// onServer uses a server that has no Nodes yet, or whose Nodes do not matter.
func onServer(t testing.TB, s *apitest.Server, cfg subnet.Config) *cluster {
	t.Helper()
	c := &cluster{Server: s, cfg: cfg, subnets: map[string][]netip.Prefix{}, file: s.Kubeconfig(t, "")}
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.config = filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(c.config, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func parse(t testing.TB, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// manager makes a Manager; change may be nil.
func (c *cluster) manager(t testing.TB, change func(*kube.Options)) *kube.Manager {
	t.Helper()
	o := kube.Options{Kubeconfig: c.file, ConfigPath: c.config}
	if change != nil {
		change(&o)
	}
	m, err := kube.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// register makes a Node, as its kubelet does.
func (c *cluster) register(t testing.TB, name string, podCIDRs ...string) {
	t.Helper()
	c.Do(t, http.MethodPost, nodesPath, map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name}, "spec": spec(podCIDRs),
	}, nil)
}

func spec(podCIDRs []string) map[string]any {
	if len(podCIDRs) == 0 {
		return map[string]any{}
	}
	return map[string]any{"podCIDR": podCIDRs[0], "podCIDRs": podCIDRs}
}

// assign gives a Node its subnets, as the controller-manager does.
func (c *cluster) assign(t testing.TB, name string, podCIDRs ...string) {
	t.Helper()
	c.Do(t, http.MethodPatch, nodesPath+"/"+name, map[string]any{"spec": spec(podCIDRs)}, nil)
}

// annotate changes annotations as kubectl does; nil removes one.
func (c *cluster) annotate(t testing.TB, name string, annotations map[string]any) {
	t.Helper()
	c.Do(t, http.MethodPatch, nodesPath+"/"+name, map[string]any{"metadata": map[string]any{"annotations": annotations}}, nil)
}

func (c *cluster) delete(t testing.TB, name string) {
	t.Helper()
	c.Do(t, http.MethodDelete, nodesPath+"/"+name, nil, nil)
}

func (c *cluster) get(t testing.TB, name string) object {
	t.Helper()
	var n object
	if code := c.Do(t, http.MethodGet, nodesPath+"/"+name, nil, &n); code != http.StatusOK {
		t.Fatalf("node %s: %d", name, code)
	}
	return n
}

// allocate is the controller-manager's part for a Node that is new: it gets
// what nobody has, want first, and keeps it when it is registered again. The
// real one has no wishes, and goes through the range in order.
func (c *cluster) allocate(name string, want []netip.Prefix) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, ok := c.subnets[name]
	if !ok {
		var err error
		taken := []netip.Prefix{}
		for _, s := range c.subnets {
			taken = append(taken, s...)
		}
		if got, err = subnet.Allocate(c.cfg, name, want, taken); err != nil {
			return nil, err
		}
		c.subnets[name] = got
	}
	return texts(got), nil
}

func texts(subnets []netip.Prefix) []string {
	list := make([]string, len(subnets))
	for i, s := range subnets {
		list[i] = s.String()
	}
	return list
}

// holder returns the Node that has the subnets that a key names.
func (c *cluster) holder(t testing.TB, key string) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, s := range c.subnets {
		if subnet.Key(s) == key {
			return name
		}
	}
	t.Fatalf("no Node has %s", key)
	return ""
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func request(name string, last byte) subnet.Request {
	return subnet.Request{Node: name, MTU: 1450, VTEPs: []subnet.VTEP{{
		Underlay: netip.AddrFrom4([4]byte{192, 0, 2, last}), MAC: subnet.VTEPMAC(name, true), VNI: 1,
	}}}
}

func acquire(t testing.TB, m subnet.Manager, want subnet.Request) subnet.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := m.Acquire(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A picture is the newest snapshot of a Run on a goroutine.
type picture struct {
	mu    sync.Mutex
	snap  subnet.Snapshot
	count int
}

func (p *picture) get() (subnet.Snapshot, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snap, p.count
}

// run runs m until the test ends, or stop is called.
func run(t testing.TB, m subnet.Manager) (p *picture, stop func()) {
	t.Helper()
	p = &picture{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx, func(s subnet.Snapshot) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.snap, p.count = s, p.count+1
		})
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v, want nil", err)
			}
		})
	}
	t.Cleanup(stop)
	return p, stop
}

// waitFor waits for a snapshot that ok accepts.
func (p *picture) waitFor(t testing.TB, what string, ok func(subnet.Snapshot) bool) subnet.Snapshot {
	t.Helper()
	var last subnet.Snapshot
	deadline := time.Now().Add(20 * time.Second)
	for {
		if last, _ = p.get(); ok(last) {
			return last
		}
		if time.Now().After(deadline) {
			t.Fatalf("no snapshot with %s; the last: %+v", what, last)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func peers(names ...string) func(subnet.Snapshot) bool {
	return func(s subnet.Snapshot) bool {
		var have []string
		for _, p := range s.Peers {
			have = append(have, p.Node)
		}
		return s.Revision > 0 && slices.Equal(slices.Sorted(slices.Values(have)), names)
	}
}
