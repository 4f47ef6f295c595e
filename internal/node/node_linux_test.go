package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// The daemon's sockets are opened wherever its goroutines run, so the whole
// process of these tests lives in a network namespace of its own.
func TestMain(m *testing.M) { os.Exit(netlab.Isolate(m)) }

// ip runs a command of iproute2 and returns what it wrote.
func ip(t *testing.T, line string) string {
	t.Helper()
	out, err := try(line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(line string) (string, error) {
	words := strings.Fields(line)
	if script, ok := strings.CutPrefix(line, "sh -c "); ok {
		words = []string{"sh", "-c", strings.Trim(script, "'")}
	}
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return string(out), nil
}

// underlay gives the namespace an interface with a default route.
func underlay(t *testing.T) {
	t.Helper()
	netlab.NeedRoot(t)
	ip(t, "ip link add eth0 type veth peer name wire")
	t.Cleanup(func() { // it may have gone with a namespace that its other end was moved to
		if out, err := try("ip link del eth0"); err != nil && !strings.Contains(err.Error(), "Cannot find device") {
			t.Error(out, err)
		}
	})
	for _, line := range []string{
		"ip addr add 192.0.2.10/24 dev eth0", "ip link set eth0 up", "ip link set wire up",
		"ip route add default via 192.0.2.1",
	} {
		ip(t, line)
	}
	t.Cleanup(func() {
		for _, name := range []string{"overlay.1", "overlay-br0"} {
			_ = exec.Command("ip", "link", "del", name).Run()
		}
	})
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A running daemon of a test.
type running struct {
	t      *testing.T
	client *api.Client
	cfg    Config
	log    *logBuffer
	stop   context.CancelFunc
	done   chan error
}

func network(t *testing.T) subnet.Config {
	t.Helper()
	c, err := subnet.ParseConfig([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, store *subnettest.Store, change func(*Config)) *running {
	t.Helper()
	return startWith(t, store.Manager(), change)
}

func startWith(t *testing.T, m subnet.Manager, change func(*Config)) *running {
	t.Helper()
	cfg := Default()
	cfg.Node, cfg.RunDir, cfg.Store = "self", t.TempDir(), "memory"
	if change != nil {
		change(&cfg)
	}
	r := &running{t: t, cfg: cfg, log: &logBuffer{}, done: make(chan error, 1)}
	r.client = api.New(filepath.Join(cfg.RunDir, api.SocketName))
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() {
		r.done <- Run(ctx, cfg, m, slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	t.Cleanup(func() {
		r.end()
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// end stops the daemon; a second call does nothing.
func (r *running) end() {
	r.t.Helper()
	r.stop()
	if r.done == nil {
		return
	}
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("the daemon ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		r.t.Error("the daemon does not end")
	}
	r.done = nil
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	if err := netlab.Eventually(5*time.Second, ok); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (r *running) status() api.Status {
	r.t.Helper()
	s, err := r.client.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *running) ready() api.Status {
	r.t.Helper()
	eventually(r.t, "ready", func() error {
		s, err := r.client.Status(r.t.Context())
		if err == nil && !s.Ready {
			err = fmt.Errorf("not ready: %v", s.NotReady)
		}
		return err
	})
	return r.status()
}

// inSync waits until the kernel holds n peers and all that they ask for.
func (r *running) inSync(n int) {
	r.t.Helper()
	eventually(r.t, fmt.Sprint(n, " peers in sync"), func() error {
		s, err := r.client.Status(r.t.Context())
		if err == nil && (s.Peers.Total != n || s.Peers.InSync != n) {
			err = fmt.Errorf("%d of %d in sync", s.Peers.InSync, s.Peers.Total)
		}
		return err
	})
}

// lease stores the lease of another node.
func put(t *testing.T, s *subnettest.Store, l subnet.Lease) {
	t.Helper()
	data, err := subnet.EncodeRecord(l)
	if err != nil {
		t.Fatal(err)
	}
	s.Put(subnet.Key(l.Subnets), data)
}

// tables is what the kernel holds for the overlay, as iproute2 shows it; where
// something cannot be shown, the reason stands.
func tables(t *testing.T) string {
	t.Helper()
	var all string
	for _, line := range []string{
		"ip -4 route show proto 77", "ip -6 route show proto 77",
		"ip neigh show dev overlay.1 nud permanent", "bridge fdb show dev overlay.1",
	} {
		out, err := try(line)
		if err != nil {
			out = err.Error()
		}
		all += out
	}
	return all
}

func TestNodeComesUpAndFollowsTheStore(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77))
	r := start(t, store, nil)
	s := r.ready()
	r.inSync(1)
	if s.Underlay.Interface != "eth0" || fmt.Sprint(s.Underlay.Addresses) != "[192.0.2.10]" || len(s.Devices) != 1 || s.Devices[0].MTU != 1450 || s.PodMTU != 1450 {
		t.Errorf("underlay %+v, devices %+v", s.Underlay, s.Devices)
	}
	if got := tables(t); strings.Count(got, "\n") != 5 || !strings.Contains(got, "10.244.77.0/24 via 10.244.77.0 dev overlay.1") || !strings.Contains(got, "dst 192.0.2.77") {
		t.Errorf("tables:\n%s", got)
	}
	f, err := subnet.ReadNodeFile(r.cfg.RunDir)
	if err != nil || f.Node != "self" || f.MTU != 1450 || f.Subnets[0] != s.Lease.Subnets[0] {
		t.Errorf("node file %+v, %v", f, err)
	}
	if got := ip(t, "ip -br addr show dev overlay-br0"); !strings.Contains(got, f.Subnets[0].Addr().Next().String()+"/24") {
		t.Errorf("bridge: %s", got)
	}

	events, err := r.client.Events(t.Context())
	if err != nil || strings.Contains(fmt.Sprint(events), "foreign") {
		t.Errorf("our own changes are told as others': %v, %v", events, err)
	}

	put(t, store, lease("b", "10.244.78.0/24 fd00:0:0:78::/64", "192.0.2.78", 78))
	r.inSync(2)
	store.Delete(subnet.Key(lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77).Subnets))
	r.inSync(2) // its grace time
	put(t, store, lease("c", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.79", 79))
	eventually(t, "the subnet moves at once", func() error {
		if got := tables(t); strings.Contains(got, "192.0.2.77") || !strings.Contains(got, "192.0.2.79") {
			return fmt.Errorf("tables:\n%s", got)
		}
		return nil
	})
}

func TestRestartChangesNothing(t *testing.T) {
	underlay(t)
	for _, mode := range []Resolve{Eager, OnMiss} {
		t.Run(string(mode), func(t *testing.T) {
			store := subnettest.NewStore(network(t))
			put(t, store, lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77))
			dir := t.TempDir()
			change := func(c *Config) { c.Resolve, c.RunDir = mode, dir }
			first := start(t, store, change)
			subnets := fmt.Sprint(first.ready().Lease.Subnets)
			first.inSync(1)
			first.end()
			before := tables(t)
			if strings.Count(before, "\n") != 5 {
				t.Errorf("without a daemon the kernel must hold everything, but has\n%s", before)
			}
			second := start(t, store, change)
			s := second.ready()
			if s.Kernel.Operations != 0 || fmt.Sprint(s.Lease.Subnets) != subnets {
				t.Errorf("%d operations, subnets %v, want 0 and %s", s.Kernel.Operations, s.Lease.Subnets, subnets)
			}
			if after := tables(t); after != before {
				t.Errorf("tables were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

func TestTamperingIsUndone(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77))
	r := start(t, store, nil)
	r.ready()
	r.inSync(1)
	want := tables(t)
	gateway := r.status().Lease.Subnets[0].Addr().Next().String() + "/24"
	for _, line := range []string{
		"ip link set overlay.1 down",
		"ip route flush dev overlay.1",
		"ip -6 route flush dev overlay.1",
		"ip neigh flush dev overlay.1 nud permanent",
		"bridge fdb del 02:00:00:00:00:4d dev overlay.1",
		"bridge fdb append 02:00:00:00:00:4d dev overlay.1 dst 192.0.2.99",
		"bridge fdb append 02:00:00:00:00:99 dev overlay.1 dst 192.0.2.99",
		"ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:99 dev overlay.1 nud permanent",
		"ip route replace 10.244.77.0/24 dev lo",
		"ip link set overlay.1 address 02:00:00:00:00:99",
		"ip link set overlay.1 mtu 1400",
		"ip addr flush dev overlay.1",
		"ip link set overlay.1 arp off",
		"ip link set overlay.1 name stolen0",
		"ip addr add 10.244.77.0/32 dev overlay.1",
		"sh -c 'echo 0 > /proc/sys/net/ipv4/conf/overlay.1/forwarding'",
		"sh -c 'echo 0 > /proc/sys/net/ipv4/conf/overlay-br0/forwarding'",
		"ip link del overlay.1",
		"ip link del overlay-br0",
		"ip addr del " + gateway + " dev overlay-br0",
	} {
		t.Run(line, func(t *testing.T) {
			ip(t, line)
			eventually(t, "repair", func() error {
				got := strings.ReplaceAll(tables(t), "linkdown ", "")
				if got != strings.ReplaceAll(want, "linkdown ", "") {
					return fmt.Errorf("tables are\n%s\nwant\n%s", got, want)
				}
				link, err := try("ip -d link show overlay.1")
				if err != nil {
					return err
				}
				if !strings.Contains(link, "mtu 1450") || strings.Contains(link, "02:00:00:00:00:99") {
					return fmt.Errorf("link is\n%s", link)
				}
				if strings.Contains(link, "NOARP") {
					return fmt.Errorf("link is\n%s", link)
				}
				for _, name := range []string{"overlay.1", "overlay-br0"} {
					if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/forwarding"); err != nil || string(b) != "1\n" {
						return fmt.Errorf("forwarding on %s: %q %w", name, b, err)
					}
				}
				if addrs := ip(t, "ip -br addr"); strings.Contains(addrs, "10.244.77.0/32") || !strings.Contains(addrs, gateway) || !strings.Contains(addrs, strings.Replace(gateway, ".1/24", ".0/32", 1)) {
					return fmt.Errorf("addresses are\n%s", addrs)
				}
				return nil
			})
		})
	}
	events, err := r.client.Events(t.Context())
	if err != nil || len(events) == 0 {
		t.Errorf("events: %v, %v", events, err)
	}
	if s := r.status(); s.Kernel.Foreign == 0 {
		t.Error("no foreign change was counted")
	}
	if text := fmt.Sprint(events); strings.Contains(text, "foreign set address "+gateway) || !strings.Contains(text, "set link overlay.1 down") || !strings.Contains(text, "deleted route 10.244.77.0/24") {
		t.Errorf("events do not name the changes: %s", text)
	}
}

func TestHostileRecordsNeverReachTheKernel(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	r := start(t, store, nil)
	r.ready()
	store.Put("10.244.5.0-24", []byte("{garbage"))
	put(t, store, lease("outside", "172.16.0.0/24", "192.0.2.66", 66))
	store.Put("0.0.0.0-0", mustEncode(t, lease("all", "10.244.6.0/24", "192.0.2.67", 67)))
	put(t, store, lease("inside", "10.244.7.0/24", "10.244.7.7", 68))
	put(t, store, lease("good", "10.244.77.0/24", "192.0.2.77", 77))
	r.inSync(1)
	if got := tables(t); strings.Count(got, "\n") != 3 {
		t.Errorf("tables:\n%s", got)
	}
	s := r.status()
	if len(s.Store.Ignored) != 4 {
		t.Errorf("ignored: %+v", s.Store.Ignored)
	}
	for _, i := range s.Store.Ignored {
		if n := strings.Count(r.log.String(), "key="+i.Key+" "); n != 1 {
			t.Errorf("%d warnings of %s, want 1", n, i.Key)
		}
	}
}

func mustEncode(t *testing.T, l subnet.Lease) []byte {
	t.Helper()
	data, err := subnet.EncodeRecord(l)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestUnreachableStoreIsWaitedFor(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	store.Outage(true)
	r := start(t, store, nil)
	eventually(t, "the socket answers", func() error {
		s, err := r.client.Status(t.Context())
		if err == nil && (s.Ready || len(s.NotReady) == 0) {
			err = fmt.Errorf("status %+v", s)
		}
		return err
	})
	if _, err := os.Stat(filepath.Join(r.cfg.RunDir, subnet.NodeFileName)); !os.IsNotExist(err) {
		t.Errorf("a node file without a lease: %v", err)
	}
	store.Outage(false)
	r.ready()
}

func TestSweepFreesWhatIsGoneTwice(t *testing.T) {
	netlab.NeedRoot(t)
	s := withSlots(t, "gone", "alive")
	// A slot that is too young is nobody's suspect.
	if got := s.sweep(t.Context(), map[ipam.Key]bool{{Container: "gone", IfName: "eth0"}: true}, time.Hour); len(got) != 0 {
		t.Errorf("suspects %v", got)
	}
	suspects := s.sweep(t.Context(), nil, 0)
	if held := held(t, s); held != "gone alive" || len(suspects) != 2 {
		t.Fatalf("after one observation: held %q, suspects %v", held, suspects)
	}
	delete(suspects, ipam.Key{Container: "alive", IfName: "eth0"})
	suspects = s.sweep(t.Context(), suspects, 0)
	if held := held(t, s); held != "alive" {
		t.Errorf("after two observations: held %q", held)
	}
	if len(suspects) != 1 {
		t.Errorf("suspects %v", suspects)
	}
}

func TestStatusIsOneAccount(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	r := start(t, store, func(c *Config) { c.Metrics = "127.0.0.1:19443" })
	r.ready()
	out := ip(t, "ip -br link show overlay.1")
	if mac := r.status().Devices[0].MAC; !strings.Contains(out, mac) {
		t.Errorf("MAC %s, kernel %s", mac, out)
	}
	for path, want := range map[string]string{
		api.PathMetrics: "overlayd_ready 1", api.PathReady: "ready", api.PathHealth: "ok", api.PathMisses: "[]",
	} {
		if body := httpGet(t, "http://127.0.0.1:19443"+path); !strings.Contains(body, want) {
			t.Errorf("%s answers %q, want %q", path, body, want)
		}
	}
	var leases []api.Lease
	if err := json.Unmarshal([]byte(httpGet(t, "http://127.0.0.1:19443"+api.PathLeases)), &leases); err != nil || len(leases) != 1 || !leases[0].Own {
		t.Errorf("leases %+v, %v", leases, err)
	}
	info, err := os.Stat(filepath.Join(r.cfg.RunDir, api.SocketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", info, err)
	}
}

func httpGet(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestSystemdIsTold(t *testing.T) {
	underlay(t)
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	next := func() string {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	r := start(t, subnettest.NewStore(network(t)), nil)
	if got := next(); got != "READY=1" {
		t.Errorf("first %q", got)
	}
	r.end()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("last %q", got)
	}
}
