package migrate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// Bridge and device are looked for in the network namespace of whichever thread
// asks, so the whole process of these tests lives in one of its own.
func TestMain(m *testing.M) { os.Exit(netlab.Isolate(m)) }

func ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

// A lab is a node that runs flannel, with a pod.
type lab struct {
	testing.TB
	Flannel
	pods map[string]*netlab.Namespace
}

const envText = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

func newLab(t *testing.T) lab {
	netlab.NeedRoot(t)
	dir := t.TempDir()
	f := Default()
	f.SubnetEnv, f.Networks, f.Results = filepath.Join(dir, "subnet.env"), filepath.Join(dir, "networks"), filepath.Join(dir, "results")
	f.RunDir, f.Proc = filepath.Join(dir, "run"), filepath.Join(dir, "proc")
	files(t, dir, map[string]string{"subnet.env": envText})
	files(t, f.Results, map[string]string{"cbr0-one-eth0": `{"cniArgs":[["K8S_POD_NAMESPACE","web"],["K8S_POD_NAME","front-1"]]}`})
	ip(t,
		"link add flannel.1 address 2a:67:92:2b:6c:d5 mtu 1450 type vxlan id 1 dstport 8472 nolearning",
		"address add 10.244.7.0/32 dev flannel.1",
		"link add cni0 address 9a:0b:11:22:33:44 mtu 1450 up type bridge",
		"address add 10.244.7.1/24 dev cni0",
	)
	t.Cleanup(func() {
		for _, link := range []string{"flannel.1", "flannel-v6.1", "cni0"} {
			_ = exec.Command("ip", "link", "del", link).Run()
		}
	})
	l := lab{t, f, map[string]*netlab.Namespace{}}
	l.pod("one", "10.244.7.5")
	l.grant("10.244.7.5", "one")
	return l
}

// pod hangs a pod on the bridge.
func (l lab) pod(container, addr string) {
	l.Helper()
	p := netlab.TestNamespace(l)
	l.pods[container] = p
	host := "veth" + container
	if out, err := exec.Command("ip", "link", "add", host, "master", "cni0", "up", "type", "veth", "peer", "name", "eth0", "netns", p.Name).CombinedOutput(); err != nil {
		l.Fatalf("%v: %s", err, out)
	}
	l.Cleanup(func() { _ = exec.Command("ip", "link", "del", host).Run() })
	if err := p.IP("link set eth0 up", "address add "+addr+"/24 dev eth0"); err != nil {
		l.Fatal(err)
	}
}

// also gives a pod an IPv6 address.
func (l lab) also(container, addr string) {
	l.Helper()
	p := l.pods[container]
	if err := p.IP("address add " + addr + "/64 dev eth0 nodad"); err != nil {
		l.Fatal(err)
	}
}

// grant writes a file of host-local, as of an hour ago.
func (l lab) grant(addr, container string) {
	l.Helper()
	content := container + "\r\neth0"
	if container == "" {
		content = ""
	}
	path := filepath.Join(l.folder(), addr)
	old := time.Now().Add(-time.Hour)
	err := errors.Join(os.MkdirAll(l.folder(), 0o755), os.WriteFile(path, []byte(content), 0o600), os.Chtimes(path, old, old))
	if err != nil {
		l.Fatal(err)
	}
}

func (l lab) plan() Plan {
	l.Helper()
	p, err := l.Plan(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	return p
}

// actions are the plan's addresses as text.
func actions(p Plan) string {
	var all []string
	for _, a := range p.Addresses {
		all = append(all, fmt.Sprintf("%s %s %s", a.Addr, a.Action, a.Container))
	}
	return strings.Join(all, ", ")
}

func (l lab) held() string {
	l.Helper()
	slots, err := ipam.List(l.Context(), l.RunDir)
	if err != nil {
		l.Fatal(err)
	}
	var all []string
	for _, s := range slots {
		all = append(all, fmt.Sprintf("%s %s %s %t", s.Addrs[0], s.Key, s.Pod, s.Imported))
	}
	return strings.Join(all, ", ")
}

func TestPlanAndApply(t *testing.T) {
	l := newLab(t)
	l.pod("two", "10.244.7.9")
	for addr, container := range map[string]string{
		"10.244.7.9": "two", "10.244.7.1": "gateway", "10.244.7.255": "broadcast", "10.244.7.20": "gone", "10.244.7.21": "",
	} {
		l.grant(addr, container)
	}
	files(t, l.folder(), map[string]string{"10.244.7.30": "young\r\neth0", "last_reserved_ip.0": "10.244.7.30"})
	p := l.plan()
	if len(p.Problems) > 0 {
		t.Fatalf("problems: %v", p.Problems)
	}
	const want = "10.244.7.1 reserved gateway, 10.244.7.5 import one, 10.244.7.9 import two, 10.244.7.20 stale gone, 10.244.7.21 stale , 10.244.7.30 import young, 10.244.7.255 reserved broadcast"
	if got := actions(p); got != want {
		t.Errorf("actions %s\nwant    %s", got, want)
	}
	one := p.Addresses[slices.IndexFunc(p.Addresses, func(a Address) bool { return a.Container == "one" })]
	if one.Pod != "web/front-1" || one.Port != "vethone" {
		t.Errorf("address %+v, want pod web/front-1 at vethone", one)
	}
	if p.Bridge.MAC != "9a:0b:11:22:33:44" || p.Bridge.Ports != 2 || p.Device.MAC != "2a:67:92:2b:6c:d5" || p.MTU != 1450 ||
		!slices.Equal(p.Flags, []string{"--device", "flannel.1", "--bridge", "cni0"}) {
		t.Errorf("plan %+v", p)
	}
	if got := l.held(); got != "" {
		t.Errorf("a plan alone has entered %s", got)
	}
	for round, imported := range []int{3, 0} {
		p := l.plan()
		if err := l.Apply(t.Context(), &p); err != nil || p.Imported != imported {
			t.Fatalf("round %d: %d entered, %v, want %d", round, p.Imported, err, imported)
		}
		if round == 1 && !strings.Contains(actions(p), "10.244.7.5 held one") {
			t.Errorf("the second time %s", actions(p))
		}
	}
	const held = "10.244.7.5 one/eth0 web/front-1 true, 10.244.7.9 two/eth0 imported from cbr0 true, 10.244.7.30 young/eth0 imported from cbr0 true"
	if got := l.held(); got != held {
		t.Errorf("held %s\nwant %s", got, held)
	}
	if left, err := os.ReadDir(l.folder()); err != nil || len(left) != 8 {
		t.Errorf("host-local's folder has %v, %v, want it as it was", left, err)
	}
}

func TestPlanRefusesWhatDoesNotFit(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(l lab)
		want  string
	}{
		"no subnet.env": {func(l lab) { _ = os.Remove(l.SubnetEnv) }, "subnet.env"},
		"subnet.env torn": {func(l lab) {
			files(l.TB.(*testing.T), filepath.Dir(l.SubnetEnv), map[string]string{"subnet.env": "FLANNEL_SUB"})
		}, "FLANNEL_SUBNET"},
		"bridge of another":      {func(l lab) { ip(l.TB.(*testing.T), "address flush dev cni0", "address add 10.244.8.1/24 dev cni0") }, `cni0's addresses "[10.244.8.1/24]": want 10.244.7.1/24`},
		"bridge without address": {func(l lab) { ip(l.TB.(*testing.T), "address flush dev cni0") }, "cni0's addresses"},
		"device of another":      {func(l lab) { ip(l.TB.(*testing.T), "address add 10.244.8.0/32 dev flannel.1") }, `flannel.1's address "10.244.8.0/32"`},
		"address outside":        {func(l lab) { l.grant("10.244.8.5", "out") }, `"10.244.8.5": want an address of [10.244.7.0/24]`},
		"address that no file names": {func(l lab) { l.pod("x", "10.244.7.77") },
			`address of vethx "10.244.7.77": want one that a file in`},
		"file without container of a pod that lives": {func(l lab) { l.grant("10.244.7.5", "") }, `"": want the id of the container`},
		"slot of another": {func(l lab) { l.hold("10.244.7.5", "other") }, `slot of 10.244.7.5 "other/eth0": want one/eth0`},
		"node file of another lease": {func(l lab) {
			f := subnet.NodeFile{
				Schema: subnet.NodeFileSchema, Node: "n", MTU: 1450, Bridge: "cni0",
				Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")},
			}
			if err := errors.Join(os.MkdirAll(l.RunDir, 0o755), f.Write(l.RunDir)); err != nil {
				l.Fatal(err)
			}
		}, `node file's subnets "[10.244.9.0/24]": want [10.244.7.0/24]`},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			tt.spoil(l)
			before := l.held()
			p := l.plan()
			if len(p.Problems) == 0 || !strings.Contains(p.Problems[0].Error(), tt.want) {
				t.Fatalf("problems %v, want …%s…", p.Problems, tt.want)
			}
			if err := l.Apply(t.Context(), &p); err == nil || p.Imported != 0 {
				t.Errorf("applied: %v, %d", err, p.Imported)
			}
			if after := l.held(); after != before {
				t.Errorf("held %q, before %q", after, before)
			}
		})
	}
}

// hold acquires an address as vxlan-cni does.
func (l lab) hold(addr, container string) {
	l.Helper()
	pool, err := ipam.Open(l.RunDir, []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24")})
	if err != nil {
		l.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	_, err = pool.Acquire(l.Context(), ipam.Request{Key: ipam.Key{Container: container, IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr(addr)}})
	if err != nil {
		l.Fatal(err)
	}
}

// TestPodsOfOursAreNoObstacle: a migration that is repeated later finds pods
// that vxlan-cni attached.
func TestPodsOfOursAreNoObstacle(t *testing.T) {
	l := newLab(t)
	l.hold("10.244.7.40", "new")
	p := l.plan()
	if err := l.Apply(t.Context(), &p); err != nil || p.Imported != 1 {
		t.Errorf("%d entered, %v, problems %v", p.Imported, err, p.Problems)
	}
}

func TestPlanWarns(t *testing.T) {
	l := newLab(t)
	files(t, filepath.Join(l.Proc, "4711"), map[string]string{"comm": "flanneld\n"})
	files(t, filepath.Dir(l.SubnetEnv), map[string]string{"subnet.env": envText + "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\n"})
	ip(t, "address add fd00:244:0:7::1/64 dev cni0 nodad")
	p := l.plan()
	for _, want := range []string{"flanneld runs (process 4711)", "dual stack"} {
		if !strings.Contains(strings.Join(p.Warnings, "\n"), want) {
			t.Errorf("warnings %q lack %q", p.Warnings, want)
		}
	}
	if len(p.Problems) > 0 {
		t.Errorf("problems: %v", p.Problems)
	}
}

// dualStack makes the node one of both families.
func (l lab) dualStack() {
	l.Helper()
	files(l.TB.(*testing.T), filepath.Dir(l.SubnetEnv), map[string]string{"subnet.env": envText + "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\n"})
	ip(l.TB.(*testing.T), "address add fd00:244:0:7::1/64 dev cni0 nodad")
}

// TestDualStackAddressesCross: host-local gives the addresses of each family by
// themselves, so two pods may have a slot of ours together. And it gives IPv6
// addresses that no slot of ours has.
func TestDualStackAddressesCross(t *testing.T) {
	l := newLab(t)
	l.dualStack()
	for addr, container := range map[string]string{
		"fd00:244:0:7::9": "one", "10.244.7.9": "two", "fd00:244:0:7::5": "two",
		"10.244.7.6": "three", "fd00:244:0:7::1:5": "three", "10.244.7.7": "four", "fd00:244:0:7::ff": "four",
	} {
		l.grant(addr, container)
	}
	for i, addr := range []string{"10.244.7.9", "10.244.7.6", "10.244.7.7"} {
		l.pod([]string{"two", "three", "four"}[i], addr)
	}
	for i, addr := range []string{"fd00:244:0:7::9", "fd00:244:0:7::5", "fd00:244:0:7::1:5", "fd00:244:0:7::ff"} {
		// The bridge's own pods have but IPv4 addresses; each gets its other one.
		l.also([]string{"one", "two", "three", "four"}[i], addr)
	}
	p := l.plan()
	const want = "10.244.7.5 import one, 10.244.7.6 import three, 10.244.7.7 import four, 10.244.7.9 import two, " +
		"fd00:244:0:7::5 import two, fd00:244:0:7::9 import one, fd00:244:0:7::ff beyond four, fd00:244:0:7::1:5 beyond three"
	if got := actions(p); got != want || len(p.Problems) > 0 {
		t.Fatalf("actions %s\nwant    %s\nproblems %v", got, want, p.Problems)
	}
	if all := strings.Join(p.Warnings, "\n"); strings.Count(all, "until both pods are gone") != 2 {
		t.Errorf("warnings %q, want both slots that are shared", p.Warnings)
	}
	for round, imported := range []int{4, 0} {
		p := l.plan()
		if err := l.Apply(t.Context(), &p); err != nil || p.Imported != imported {
			t.Fatalf("round %d: %d entered, %v, want %d", round, p.Imported, err, imported)
		}
	}
	if got := actions(l.plan()); strings.Contains(got, "import") || strings.Count(got, "held") != 6 {
		t.Errorf("afterwards %s, want all held", got)
	}
	// One of the two goes, and it is repeated: the slots are held still.
	ip(t, "link del vethone")
	p = l.plan()
	if err := l.Apply(t.Context(), &p); err != nil || p.Imported != 0 || !strings.Contains(actions(p), "fd00:244:0:7::9 stale one") ||
		!strings.Contains(actions(p), "fd00:244:0:7::5 held two") || strings.Count(l.held(), "one/eth0+two/eth0") != 2 {
		t.Errorf("after the end of one: %v, %d, %s, held %s", err, p.Imported, actions(p), l.held())
	}
}

// TestPlanTellsWhatTheImportWould: a dry run and a real one agree.
func TestPlanTellsWhatTheImportWould(t *testing.T) {
	l := newLab(t)
	l.grant("10.244.7.5", strings.Repeat("x", 300))
	p := l.plan()
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Error(), "has 300 bytes, want 1 to 180") {
		t.Errorf("problems %v, want the id that is too long", p.Problems)
	}
}

// TestNodeWithoutPods: neither bridge nor folder need be there.
func TestNodeWithoutPods(t *testing.T) {
	l := newLab(t)
	ip(t, "link del cni0", "link del flannel.1")
	if err := os.RemoveAll(l.Networks); err != nil {
		t.Fatal(err)
	}
	p := l.plan()
	if err := l.Apply(t.Context(), &p); err != nil || p.Bridge.Found || p.Device.Found || len(p.Addresses) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}
