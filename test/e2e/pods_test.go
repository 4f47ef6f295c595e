package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

const (
	manyPods = 200
	workers  = 16

	// roomy is a network whose subnets hold manyPods twice: released slots rest.
	roomy = `{"Network": "10.244.0.0/16", "SubnetLen": 22, "Backend": {"Type": "vxlan"}}`
)

func oneNode() cluster.Options {
	return cluster.Options{Options: netlab.Options{Nodes: 1}, Network: roomy}
}

// parallel calls fn for 0 to n-1 from several workers.
func parallel(n int, fn func(i int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range next {
				fn(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

func TestManyPodsInParallelLeaveNothing(t *testing.T) {
	c := startCluster(t, oneNode())
	r := c.Runtimes[0]
	pods := make([]*cluster.Pod, manyPods)
	began := time.Now()
	parallel(manyPods, func(i int) {
		p, err := r.Add(t.Context(), fmt.Sprintf("p%d", i), nil)
		if err != nil {
			t.Error(err)
			return
		}
		pods[i] = p
	})
	t.Logf("%d pods added by %d workers in %v", manyPods, workers, time.Since(began))
	if t.Failed() {
		return
	}
	wantApart(t, r.Node, pods)
	// Each reaches the next, over the bridge.
	for i, p := range pods {
		rep, err := netlab.Ping(t.Context(), p.NS, netlab.Pings{To: pods[(i+1)%manyPods].Addr})
		if err != nil || rep.Lost() > 0 {
			t.Errorf("%s: %v %v", p.Name, rep, err)
		}
	}
	parallel(manyPods, func(i int) {
		if err := r.Delete(t.Context(), pods[i]); err != nil {
			t.Error(err)
		}
	})
	wantEmpty(t, r.Node)
}

// wantApart fails the test if two pods share an address, or if the node holds
// other slots or links than those of the pods.
func wantApart(t *testing.T, n *netlab.Node, pods []*cluster.Pod) {
	t.Helper()
	owner := map[netip.Addr]string{}
	for _, p := range pods {
		if was, ok := owner[p.Addr]; ok {
			t.Errorf("%s and %s both have %s", was, p.Name, p.Addr)
		}
		owner[p.Addr] = p.Name
	}
	held, err := n.API().Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range held {
		if len(h.Addresses) != 1 || h.Link == "" || "lab/"+owner[h.Addresses[0]] != h.Pod {
			t.Errorf("slot %+v: no pod has it, or no link", h)
		}
	}
	if links := podLinks(t, n); len(held) != len(pods) || len(links) != len(pods) {
		t.Errorf("%d slots and %d links for %d pods", len(held), len(links), len(pods))
	}
}

// When ADD returns, packets pass. The kernel starts to send on a link some time
// after the link is up, in a worker, and until then drops. Where many processes
// start, as on a node that starts many pods, that worker is late; a dropped ARP
// request then costs the pod a second.
func TestFirstPingOfAPodOnABusyNode(t *testing.T) {
	c := startCluster(t, oneNode())
	r := c.Runtimes[0]
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	for range 10 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := r.Node.Command("true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	to, err := r.Add(t.Context(), "to", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		p, err := r.Add(t.Context(), fmt.Sprintf("p%d", i), nil)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := netlab.Ping(t.Context(), p.NS, netlab.Pings{To: to.Addr, Count: 1, Timeout: 3 * time.Second})
		if err != nil || rep.Lost() > 0 || rep.RTT() > 500*time.Millisecond {
			t.Errorf("first ping of %s: %v %v", p.Name, rep, err)
		}
		if err := r.Delete(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
}

// A killer runs plugins and kills each, by SIGKILL, after a random time.
type killer struct {
	version.PluginDecoder
	invoke.RawExec
	most time.Duration
}

var errKilled = errors.New("killed")

func (k *killer) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, rand.N(k.most), errKilled)
	defer cancel()
	out, err := k.RawExec.ExecPlugin(ctx, path, stdin, env) // CommandContext kills by SIGKILL
	if err != nil && ctx.Err() != nil {
		return nil, errKilled
	}
	return out, err
}

func (k *killer) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func TestKilledPluginsLeaveNothingAfterGC(t *testing.T) {
	c := startCluster(t, oneNode())
	r := c.Runtimes[0]
	// Half of the additions are over after the middle of this range.
	kill := &killer{most: 2 * addTime(t, r)}
	var mu sync.Mutex
	var alive []*cluster.Pod
	killed := 0
	parallel(manyPods, func(i int) {
		name := fmt.Sprintf("p%d", i)
		ns, err := c.NewPod(name)
		if err != nil {
			t.Error(err)
			return
		}
		p := &cluster.Pod{Name: name, NS: ns, Args: r.Args(name, ns.Path())}
		err = r.Attach(t.Context(), kill, p)
		if err == nil && i%3 == 0 {
			// A deletion that is killed, after which the pod is gone all the same.
			if err = r.Detach(t.Context(), kill, p); err == nil {
				err = errKilled
			}
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			alive = append(alive, p)
		case errors.Is(err, errKilled):
			killed++
		default:
			t.Error(err)
		}
	})
	t.Logf("%d pods alive, %d attachments killed", len(alive), killed)
	if killed < manyPods/10 || len(alive) < manyPods/10 {
		t.Errorf("%d of %d killed: this tests too little", killed, manyPods)
	}
	if err := r.GC(t.Context(), alive...); err != nil {
		t.Fatal(err)
	}
	wantApart(t, r.Node, alive)
	for i, p := range alive {
		rep, err := netlab.Ping(t.Context(), p.NS, netlab.Pings{To: alive[(i+1)%len(alive)].Addr})
		if err != nil || rep.Lost() > 0 {
			t.Errorf("%s after GC: %v %v", p.Name, rep, err)
		}
		if err := r.Check(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range alive {
		if err := r.Delete(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, r.Node)
}

// addTime is how long an ADD takes while the machine is as busy as in the test.
func addTime(t *testing.T, r *cluster.Runtime) time.Duration {
	t.Helper()
	took := make([]time.Duration, workers)
	parallel(workers, func(i int) {
		at := time.Now()
		p, err := r.Add(t.Context(), fmt.Sprintf("warm%d", i), nil)
		took[i] = time.Since(at)
		if err == nil {
			err = r.Delete(t.Context(), p)
		}
		if err != nil {
			t.Error(err)
		}
	})
	slices.Sort(took)
	return took[workers/2]
}

func TestLibcniDrivesThePlugin(t *testing.T) {
	c := startCluster(t, oneNode())
	r := c.Runtimes[0]
	ctx := t.Context()
	if err := r.Status(ctx); err != nil {
		t.Errorf("status: %v", err)
	}
	own, err := r.Node.API().Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mac, ip := "0e:11:22:33:44:55", own.Lease.Subnets[0].Addr().Next().Next().Next().String()
	p, err := r.Add(ctx, "a", map[string]any{"mac": mac, "ips": []string{ip}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(ctx, p); err != nil {
		t.Error(err)
	}
	if err := r.Attach(ctx, nil, p); err == nil {
		t.Error("added twice: no error")
	}
	out, err := p.NS.Output("ip", "-o", "link", "show", "eth0")
	if err != nil || !strings.Contains(out, mac) || p.Addr.String() != ip {
		t.Errorf("asked for %s and %s, got %s and %s %v", mac, ip, p.Addr, out, err)
	}
	if _, err := p.NS.Output("ip", "link", "set", "eth0", "down"); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(ctx, p); err == nil {
		t.Error("check of a pod whose eth0 is down: no error")
	}
	for range 2 {
		if err := r.Detach(ctx, nil, p); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	wantEmpty(t, r.Node)

	// A pod whose namespace went first, as after a crash of the runtime.
	q, err := r.Add(ctx, "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemovePod(q.NS); err != nil {
		t.Fatal(err)
	}
	for _, netns := range []string{q.Args.NetNS, ""} {
		q.Args.NetNS = netns
		if err := r.Detach(ctx, nil, q); err != nil {
			t.Errorf("delete with CNI_NETNS %q: %v", netns, err)
		}
	}
	wantEmpty(t, r.Node)
}

func TestStatusBeforeTheFirstLease(t *testing.T) {
	c := newCluster(t, oneNode())
	var e *types.Error
	if err := c.Runtimes[0].Status(t.Context()); !errors.As(err, &e) || e.Code != types.ErrPluginNotAvailable {
		t.Errorf("status: %v, want code %d", err, types.ErrPluginNotAvailable)
	}
}

func TestChainedPortmapAndBandwidth(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatal("this test needs nft, Debian's package nftables: ", err)
	}
	o := cluster.Options{Options: netlab.Options{Nodes: 2}}
	o.Chain = []cluster.Plugin{
		{"type": "portmap", "backend": "nftables", "snat": true, "capabilities": map[string]bool{"portMappings": true}},
		{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
	}
	c := startCluster(t, o)
	r := c.Runtimes[0]
	p, err := r.Add(t.Context(), "a", map[string]any{
		// As containerd writes them: structs without JSON tags.
		"portMappings": []map[string]any{{"HostPort": 8080, "ContainerPort": 7, "Protocol": "tcp", "HostIP": ""}},
		"bandwidth":    map[string]any{"IngressRate": 8_000_000, "IngressBurst": 8_000_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := netlab.StartEcho(p.NS, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	host := netip.AddrPortFrom(r.Node.Address, 8080)
	if err := netlab.Exchange(c.Nodes[1].Namespace, "tcp", host, 1000, 5*time.Second); err != nil {
		t.Errorf("host port from another node: %v", err)
	}
	if out, err := r.Node.Output("tc", "qdisc", "show"); err != nil || !strings.Contains(out, "tbf") {
		t.Errorf("bandwidth set no tbf: %s %v", out, err)
	}
	if err := r.Check(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := r.Delete(t.Context(), p); err != nil {
		t.Error(err)
	}
	wantEmpty(t, r.Node)
	if err := netlab.Exchange(c.Nodes[1].Namespace, "tcp", host, 10, time.Second); err == nil {
		t.Error("the host port is open after the deletion")
	}
}
