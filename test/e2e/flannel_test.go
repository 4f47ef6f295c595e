package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// flannelParts are what a flannel node has of each family: the device's name and MAC,
// and the node's subnet.
var flannelParts = map[bool]struct{ device, mac, subnet, network string }{
	true:  {"flannel.1", "2a:67:92:2b:6c:d5", "10.244.77.0/24", "10.244.0.0/16"},
	false: {"flannel-v6.1", "2a:67:92:2b:6c:d6", "fd00:244:0:77::/64", "fd00:244::/48"},
}

// A flannelNode is a node as flannel and its chain leave it: record, device and
// tables are made by hand, for nothing of flannel's keeps them right either;
// pods hang on it by the reference plugins.
type flannelNode struct {
	*netlab.Node
	runtime cluster.Runtime // attaches pods by bridge and host-local
	data    string          // host-local's folder of all networks
	is4     []bool          // its families
	env     string          // subnet.env
}

// newFlannelNode makes the cluster's first node one that runs flannel, for pods of
// those families; the others run overlayd.
func newFlannelNode(t *testing.T, c *cluster.Cluster, pods string, flags ...string) *flannelNode {
	t.Helper()
	f := &flannelNode{Node: c.Nodes[0], runtime: *c.Runtimes[0], is4: families(pods)}
	f.data, f.env = filepath.Join(f.Dir, "networks"), filepath.Join(f.Dir, "subnet.env")
	err := errors.Join(
		c.StartEtcd(),
		c.Put(t.Context(), "config", networks[pods]),
		os.WriteFile(f.env, []byte("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	f.lease(t, c)
	for _, n := range c.Nodes[1:] {
		if err := errors.Join(n.Start(flags...), n.Ready(cluster.ReadyWithin)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes[1:] {
		if err := cluster.InSync(t.Context(), n, 2); err != nil {
			t.Fatal(err)
		}
	}
	f.program(t, c)
	f.runtime.List = f.chain(t)
	return f
}

// lease writes the node's record, on an etcd lease of its own, as flannel does.
func (f *flannelNode) lease(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	lease, err := client.Grant(ctx, 86400)
	if err != nil {
		t.Fatal(err)
	}
	value := fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, f.Address, flannelParts[true].mac)
	key := "10.244.77.0-24"
	if len(f.is4) == 2 {
		key += "&fd00:244:0:77::-64"
		value = fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":"%s","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"},"BackendV6Data":{"VNI":1,"VtepMAC":"%s"}}`,
			f.Address, f.Address6, flannelParts[true].mac, flannelParts[false].mac)
	}
	if _, err := client.Put(ctx, cluster.Prefix+"/subnets/"+key, value, clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
}

// records reads all leases of the cluster.
func records(t *testing.T, c *cluster.Cluster) (list []subnet.Record) {
	t.Helper()
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	prefix := cluster.Prefix + "/subnets/"
	resp, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		list = append(list, subnet.ParseRecord(strings.TrimPrefix(string(kv.Key), prefix), kv.Value))
	}
	return list
}

// mtu is what flannel gives a pod.
func (f *flannelNode) mtu() int { return map[int]int{1: 1450, 2: 1430}[len(f.is4)] }

// program makes flannel's devices and, for each other lease, what flannel programs
// on each: a PERMANENT neighbour and FDB entry and the route via .0.
func (f *flannelNode) program(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for i, is4 := range f.is4 {
		part, local := flannelParts[is4], map[bool]netip.Addr{true: f.Address, false: f.Address6}[is4]
		own := netip.MustParsePrefix(part.subnet).Addr()
		dev := part.device
		lines := []string{
			fmt.Sprintf("link add %s address %s mtu %d type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", dev, part.mac, f.mtu(), local),
			fmt.Sprintf("address add %s/%d dev %s", own, own.BitLen(), dev),
			fmt.Sprintf("link set %s up", dev),
		}
		var entries []string
		for _, r := range records(t, c) {
			if r.Err != nil || r.Lease.Node == "" {
				continue
			}
			s, v := r.Lease.Subnets[i], r.Lease.VTEPs[i]
			lines = append(lines,
				fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev %s", s.Addr(), v.MAC, dev),
				fmt.Sprintf("route replace %s via %s dev %s onlink", s, s.Addr(), dev))
			entries = append(entries, fmt.Sprintf("fdb replace %s dst %s dev %s self permanent", v.MAC, v.Underlay, dev))
		}
		if len(entries) != 2 {
			t.Fatalf("flannel knows %d peers, want 2", len(entries))
		}
		if err := errors.Join(f.IP(lines...), f.Bridge(entries...)); err != nil {
			t.Fatal(err)
		}
	}
}

// chain is what flannel's CNI plugin hands to the reference plugins.
func (f *flannelNode) chain(t *testing.T) *libcni.NetworkConfigList {
	t.Helper()
	var ranges, routes []string
	for _, is4 := range f.is4 {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet":%q}]`, flannelParts[is4].subnet))
		routes = append(routes, fmt.Sprintf(`{"dst":%q}`, flannelParts[is4].network))
	}
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{
		"type":"bridge","bridge":"cni0","isGateway":true,"isDefaultGateway":true,"hairpinMode":true,"ipMasq":false,"mtu":%d,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[%s],"routes":[%s]}}]}`, f.mtu(), f.data, strings.Join(ranges, ","), strings.Join(routes, ",")))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *flannelNode) add(t *testing.T, name string) *cluster.Pod {
	t.Helper()
	p, err := f.runtime.Add(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// migrate runs overlayctl migrate on the node.
func (f *flannelNode) migrate(t *testing.T, more ...string) string {
	t.Helper()
	args := append([]string{
		"migrate", "--from", "flannel", "--run-dir", f.RunDir, "--subnet-env", f.env, "--cni-networks", f.data,
		"--cni-results", filepath.Join(f.Dir, "cni", "results"),
	}, more...)
	out, err := f.Output(filepath.Join(binDir, "overlayctl"), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// allPairs pings from each pod to each address of each other.
func allPairs(t *testing.T, when string, pods ...*cluster.Pod) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			for _, addr := range to.Addrs {
				r, err := netlab.Ping(t.Context(), from.NS, netlab.Pings{To: addr, Count: 2, Interval: time.Millisecond})
				if err != nil || r.Lost() > 0 {
					t.Errorf("%s: %s to %s: %v %v", when, from.Args.ContainerID, to.Args.ContainerID, r, err)
				}
			}
		}
	}
}

// A stream is a TCP connection on which numbers go there and back all the time.
type stream struct {
	name string
	conn net.Conn
	stop chan struct{}
	done sync.WaitGroup

	trips int
	gap   time.Duration // the longest between two answers
	err   error         // why it ended early
}

// startStream opens a stream from one pod to another, which has an EchoServer.
func startStream(t *testing.T, name string, from, to *cluster.Pod, port uint16) *stream {
	t.Helper()
	conn, err := from.NS.Dial("tcp", netip.AddrPortFrom(to.Addr, port).String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	s := &stream{name: name, conn: conn, stop: make(chan struct{})}
	s.done.Go(s.run)
	t.Cleanup(func() { s.end() })
	return s
}

func (s *stream) run() {
	out, in := make([]byte, 1024), make([]byte, 1024)
	for last := time.Now(); ; {
		select {
		case <-s.stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		binary.BigEndian.PutUint64(out, uint64(s.trips))
		s.err = s.conn.SetDeadline(time.Now().Add(30 * time.Second))
		if s.err == nil {
			_, s.err = s.conn.Write(out)
		}
		if s.err == nil {
			_, s.err = io.ReadFull(s.conn, in)
		}
		if s.err == nil && !bytes.Equal(in, out) {
			s.err = errors.New("other bytes came back")
		}
		if s.err != nil {
			return
		}
		now := time.Now()
		s.trips, s.gap, last = s.trips+1, max(s.gap, now.Sub(last)), now
	}
}

// end stops the stream and waits for it; a second call does nothing.
func (s *stream) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.done.Wait()
	_ = s.conn.Close()
}

// openSilent opens a connection on which nothing is said until the function that
// it returns is called: one trip, of which it tells the time.
func openSilent(t *testing.T, from, to *cluster.Pod, port uint16) func(*testing.T) time.Duration {
	t.Helper()
	conn, err := from.NS.Dial("tcp", netip.AddrPortFrom(to.Addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func(t *testing.T) time.Duration {
		t.Helper()
		began := time.Now()
		err := conn.SetDeadline(began.Add(30 * time.Second))
		if err == nil {
			_, err = conn.Write([]byte{7})
		}
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			t.Errorf("a connection that was silent during the take-over: %v", err)
		}
		return time.Since(began)
	}
}

// serve runs an EchoServer in a pod.
func serve(t *testing.T, p *cluster.Pod, port uint16) {
	t.Helper()
	s, err := netlab.StartEcho(p.NS, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
}

// A dual-stack node of flannel's has a device for each family, and reaches ours over
// both, as ours reach it.
func TestBesideFlannelInDualStack(t *testing.T) {
	c := newCluster(t, threeNodes())
	f := newFlannelNode(t, c, "46")
	pods := []*cluster.Pod{f.add(t, "old")}
	for _, r := range c.Runtimes[1:] {
		p, err := r.Add(t.Context(), "p", nil)
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, p)
	}
	// The reference plugins leave a pod while its addresses are still being looked for
	// on the link.
	err := netlab.Eventually(patience, func() error {
		r, err := netlab.Ping(t.Context(), pods[0].NS, netlab.Pings{To: pods[1].Of(false)})
		if err == nil && r.Lost() > 0 {
			err = errors.New(r.String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	allPairs(t, "dual stack beside flannel", pods...)
	// Each family rides its own tunnel.
	for dev, subnet := range map[string]string{cluster.Device: flannelParts[true].subnet, cluster.Device6: flannelParts[false].subnet} {
		out, err := c.Nodes[1].Output("ip", "route", "get", netip.MustParsePrefix(subnet).Addr().Next().Next().String())
		if err != nil || !strings.Contains(out, "dev "+dev+" ") {
			t.Errorf("to %s: %s %v, want by %s", subnet, out, err, dev)
		}
	}
}

// TestTakeOverFromFlannel is the way of one node from flannel to overlayd, with
// pods that run and talk all the time.
func TestTakeOverFromFlannel(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { testTakeOver(t, mode) })
	}
}

func testTakeOver(t *testing.T, mode string) {
	c := newCluster(t, threeNodes())
	f := newFlannelNode(t, c, "4", "--resolve", mode)
	// The bridge took the MAC of the first port, and that one goes: so nobody but
	// the bridge takes frames for it.
	first := f.add(t, "first")
	old := []*cluster.Pod{f.add(t, "old1"), f.add(t, "old2")}
	if err := f.runtime.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	var others []*cluster.Pod
	for _, r := range c.Runtimes[1:] {
		p, err := r.Add(t.Context(), "p", nil)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, p)
	}
	allPairs(t, "beside flannel", append(old, others...)...)
	if t.Failed() {
		return
	}

	const port = 7
	for _, p := range append(old, others...) {
		serve(t, p, port)
	}
	streams := []*stream{
		startStream(t, "out", old[0], others[0], port), startStream(t, "in", others[1], old[0], port),
		startStream(t, "out, other pod", old[1], others[1], port), startStream(t, "same node", old[0], old[1], port),
		startStream(t, "same node, back", old[1], old[0], port),
	}
	// A pod that is silent meanwhile hears no ARP request of its gateway: what it
	// knows of that must still be right when it speaks first.
	silent := openSilent(t, old[1], others[0], port)
	bridgeMAC := linkMAC(t, f.Node, "cni0")
	wait(t, 300*time.Millisecond) // of traffic

	if out := f.migrate(t, "--dry-run"); !strings.Contains(out, "dry run") || strings.Count(out, " import ") != 2 || !strings.Contains(out, "lab/old1") {
		t.Fatalf("dry run:\n%s", out)
	}
	if out := f.migrate(t); !strings.Contains(out, "2 addresses entered. Now start overlayd with: --device flannel.1 --bridge cni0") {
		t.Fatalf("migrate:\n%s", out)
	}
	if err := f.Start("--resolve", mode, "--device", "flannel.1", "--bridge", "cni0"); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, 2*time.Second) // of traffic after it
	for _, s := range streams {
		s.end()
		t.Logf("stream %s: %d trips, longest pause %v", s.name, s.trips, s.gap.Round(time.Millisecond))
		if s.err != nil || s.trips < 100 {
			t.Errorf("stream %s: %d trips, then %v", s.name, s.trips, s.err)
		}
	}
	if d := silent(t); d > time.Second {
		t.Errorf("a connection that was silent during the take-over answers after %v", d)
	}
	wantTakenOver(t, c, f, bridgeMAC)
	allPairs(t, "after the take-over", append(old, others...)...)

	var fresh []*cluster.Pod
	for i := range 5 {
		p, err := c.Runtimes[0].Add(t.Context(), fmt.Sprintf("new%d", i), nil)
		if err != nil {
			t.Fatal(err)
		}
		fresh = append(fresh, p)
		if p.Addr == old[0].Addr || p.Addr == old[1].Addr {
			t.Errorf("%s got %s, which an old pod has", p.Name, p.Addr)
		}
	}
	if out, err := fresh[0].NS.Output("ip", "neigh", "show", "10.244.77.1"); err != nil || !strings.Contains(out, bridgeMAC+" PERMANENT") {
		t.Errorf("a new pod knows its gateway as %q, %v; want %s", out, err, bridgeMAC)
	}
	allPairs(t, "old and new", slices.Concat(old, fresh[:2], others)...)
	wantNothingAfterDel(t, c, f, append(old, fresh...))
}

func linkMAC(t *testing.T, n *netlab.Node, link string) (mac string) {
	t.Helper()
	err := n.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err == nil {
			mac = l.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// wantTakenOver looks at record, device, tables and bridge of the node that was
// taken over.
func wantTakenOver(t *testing.T, c *cluster.Cluster, f *flannelNode, bridgeMAC string) {
	t.Helper()
	mac := subnet.VTEPMAC(f.Name, true).String()
	if got := linkMAC(t, f.Node, "flannel.1"); got != mac {
		t.Errorf("flannel.1 has MAC %s, want %s of the node's", got, mac)
	}
	if got := linkMAC(t, f.Node, "cni0"); got != bridgeMAC {
		t.Errorf("cni0 has MAC %s, had %s: pods know it", got, bridgeMAC)
	}
	all := records(t, c)
	i := slices.IndexFunc(all, func(r subnet.Record) bool { return r.Key == "10.244.77.0-24" })
	if i < 0 || len(all) != 3 || all[i].Lease.Node != f.Name || all[i].Lease.VTEPs[0].MAC.String() != mac {
		t.Errorf("records %+v, want three, and that of 10.244.77.0/24 the node's", all)
	}
	for _, command := range []string{"ip route show dev flannel.1", "ip neigh show dev flannel.1", "bridge fdb show dev flannel.1"} {
		words := strings.Fields(command)
		out, err := f.Output(words[0], words[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if words[1] == "route" && !strings.Contains(line, "proto 77") {
				t.Errorf("%s: %s is flannel's", command, strings.TrimSpace(line))
			}
		}
	}
	for _, n := range c.Nodes[1:] {
		if text := tables(t, n); strings.Contains(text, flannelParts[true].mac) {
			t.Errorf("%s still knows flannel's MAC:\n%s", n.Name, text)
		}
	}
}

// wantNothingAfterDel deletes all pods of the node by vxlan-cni, whoever attached
// them.
func wantNothingAfterDel(t *testing.T, c *cluster.Cluster, f *flannelNode, pods []*cluster.Pod) {
	t.Helper()
	held, err := f.API().Pods(t.Context())
	if err != nil || len(held) != len(pods) {
		t.Errorf("%d slots are held, %v, want %d", len(held), err, len(pods))
	}
	for _, h := range held {
		if h.Link == "" {
			t.Errorf("pod %s, %v, has no link", h.Container, h.Addresses)
		}
	}
	for _, p := range pods {
		for range 2 { // kubelet sends several
			if err := c.Runtimes[0].Detach(t.Context(), nil, p); err != nil {
				t.Error(err)
			}
		}
		if links, err := p.NS.Links(); err != nil || slices.Contains(links, "eth0") {
			t.Errorf("%s: the pod has the links %v, %v", p.Name, links, err)
		}
	}
	if held, err := f.API().Pods(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("after DEL of all pods %+v is held, %v", held, err)
	}
	links, err := f.Links()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(links)
	if want := []string{"cni0", "eth0", "flannel.1", "lo"}; !slices.Equal(links, want) {
		t.Errorf("after DEL of all pods the node has the links %v, want %v", links, want)
	}
}
