package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// guest hangs a pod on cni0 as the reference plugin does.
func guest(t *testing.T, host, addr string) {
	t.Helper()
	p := netlab.TestNamespace(t)
	ip(t, "ip link add "+host+" mtu 1450 master cni0 up type veth peer name eth0 mtu 1450 netns "+p.Name)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", host).Run() })
	if err := p.IP("link set eth0 up", "address add "+addr+" dev eth0"); err != nil {
		t.Fatal(err)
	}
}

// flannelsLinks makes what flannel and its chain have on the node of underlay.
func flannelsLinks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		for _, name := range []string{"flannel.1", "cni0"} {
			_ = exec.Command("ip", "link", "del", name).Run()
		}
	})
	for _, line := range []string{
		"ip link add flannel.1 address 2a:67:92:2b:6c:d5 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.10 dstport 8472 nolearning",
		"ip address add 10.244.77.0/32 dev flannel.1",
		"ip link set flannel.1 up",
		"ip route add 10.244.78.0/24 via 10.244.78.0 dev flannel.1 onlink",
		"ip neigh add 10.244.78.0 lladdr 0e:00:00:00:00:07 nud permanent dev flannel.1",
		"bridge fdb add 0e:00:00:00:00:07 dst 192.0.2.11 dev flannel.1 self permanent",
		"ip link add cni0 address 9a:0b:11:22:33:44 mtu 1450 type bridge",
		"ip address add 10.244.77.1/24 dev cni0",
		"ip link set cni0 up",
	} {
		ip(t, line)
	}
	guest(t, "vethold", "10.244.77.5/24")
}

func flannelsRecord(address string) []byte {
	return fmt.Appendf(nil, `{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"}}`, address)
}

func TestTakeOverOfANodeThatRanFlannel(t *testing.T) {
	underlay(t)
	flannelsLinks(t)
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.244.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	store := subnettest.NewStore(cfg)
	store.Put("10.244.77.0-24", flannelsRecord("192.0.2.10"))
	store.Put("10.244.78.0-24", flannelsRecord("192.0.2.11"))
	flags := func(c *Config) { c.Device, c.Bridge = "flannel.1", "cni0" }
	r := start(t, store, flags)
	s := r.ready()
	if got := s.Lease.Subnets; len(got) != 1 || got[0].String() != "10.244.77.0/24" {
		t.Fatalf("subnets %v, want flannel's", got)
	}
	r.inSync(1)
	for command, want := range map[string][]string{
		"ip -d link show flannel.1":          {s.Devices[0].MAC, "l2miss", "nolearning", "vxlan-cni overlay"},
		"ip address show flannel.1":          {"10.244.77.0/32"},
		"ip route show 10.244.78.0/24":       {"via 10.244.78.0 dev flannel.1 proto 77 onlink"},
		"ip neigh show 10.244.78.0":          {"0e:00:00:00:00:07 PERMANENT"},
		"bridge fdb show dev flannel.1":      {"0e:00:00:00:00:07 dst 192.0.2.11 self permanent"},
		"ip link show cni0":                  {"9a:0b:11:22:33:44", "mtu 1450"},
		"ip address show cni0":               {"10.244.77.1/24"},
		"ip link show vethold":               {"master cni0"},
		"cat " + r.cfg.RunDir + "/node.json": {`"bridge":"cni0","bridgeMAC":"9a:0b:11:22:33:44"`},
	} {
		got := ip(t, command)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: lacks %q:\n%s", command, w, got)
			}
		}
	}
	if got := ip(t, "ip -d link show flannel.1"); strings.Contains(got, "dev eth0") {
		t.Errorf("the device is still flannel's:\n%s", got)
	}

	// A restart changes nothing, and knows the MAC from the node file: somebody
	// has changed it meanwhile.
	r.end()
	ip(t, "ip link set cni0 address 02:00:00:00:00:01")
	again := start(t, store, func(c *Config) { flags(c); c.RunDir = r.cfg.RunDir })
	again.ready()
	if got := ip(t, "ip link show cni0"); !strings.Contains(got, "9a:0b:11:22:33:44") {
		t.Errorf("after a restart:\n%s", got)
	}
}

// TestABridgeWithoutPodsGetsOurMAC: nobody knows the one that it has.
func TestABridgeWithoutPodsGetsOurMAC(t *testing.T) {
	underlay(t)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "cni0").Run() })
	ip(t, "ip link add cni0 address 9a:0b:11:22:33:44 type bridge")
	r := start(t, subnettest.NewStore(network(t)), func(c *Config) { c.Bridge = "cni0" })
	r.ready()
	if got := ip(t, "ip link show cni0"); !strings.Contains(got, "0a:58:0a:f4") {
		t.Errorf("got\n%s\nwant the MAC that follows from the gateway", got)
	}
	if got := ip(t, "cat "+r.cfg.RunDir+"/node.json"); strings.Contains(got, "bridgeMAC") {
		t.Errorf("node file %s, want no bridgeMAC", got)
	}
}

// TestSweepOfImportedSlots: such a slot has no link of ours while its pod lives.
func TestSweepOfImportedSlots(t *testing.T) {
	netlab.NeedRoot(t)
	dir := t.TempDir()
	subnets := []netip.Prefix{netip.MustParsePrefix("10.244.77.0/24"), netip.MustParsePrefix("fd00:0:0:77::/64")}
	f := subnet.NodeFile{
		Schema: subnet.NodeFileSchema, Node: "self", MTU: 1450, Bridge: "cni0",
		Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")}, Subnets: subnets,
	}
	pool, err := ipam.Open(dir, subnets)
	if err := errors.Join(err, f.Write(dir)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	var list []ipam.Request
	for _, name := range []string{"alive.5", "gone.6"} {
		last := name[len(name)-1:]
		list = append(list, ipam.Request{Key: ipam.Key{Container: name, IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.77." + last)}})
	}
	// Of the slot of alive.5 another pod, which is gone, had the IPv6 address.
	const alive = "alive.5/eth0+peer/eth0"
	list = append(list, ipam.Request{Key: ipam.Key{Container: "peer", IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("fd00:0:0:77::5")}})
	if _, err := pool.Import(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "cni0").Run() })
	ip(t, "ip link add cni0 up type bridge")
	guest(t, "vethalive", "10.244.77.5/24")
	guest(t, "vethvm", "10.0.2.1/24") // a virtual machine's pod, which passed its address on
	ip(t, "ip link add notbridge type veth peer name notbridge2")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "notbridge").Run() })

	s := sweeper{dir: dir, bridge: "cni0", log: slog.New(slog.DiscardHandler), journal: &journal{}}
	held := func() string {
		slots, err := ipam.List(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range slots {
			names = append(names, s.Key.Container)
		}
		return strings.Join(names, " ")
	}
	sweep := func(times int) {
		suspects := map[ipam.Key]bool{}
		for range times {
			suspects = s.sweep(t.Context(), suspects, 0)
		}
	}
	if sweep(3); held() != alive+" gone.6" {
		t.Errorf("held %q beside a guest that may be anybody, want both", held())
	}
	ip(t, "ip link del vethvm")
	s.bridge = "notbridge"
	if sweep(3); held() != alive+" gone.6" {
		t.Errorf("held %q where the bridge cannot be read, want both", held())
	}
	s.bridge = "cni0"
	if got := s.sweep(t.Context(), nil, time.Hour); len(got) != 0 {
		t.Errorf("suspects %v, want none so young", got)
	}
	if sweep(1); held() != alive+" gone.6" {
		t.Errorf("held %q after one observation, want both", held())
	}
	if sweep(2); held() != alive {
		t.Errorf("held %q after two observations, want the one that lives", held())
	}
	ip(t, "ip link del vethalive")
	if sweep(2); held() != "" {
		t.Errorf("held %q after the pod has gone", held())
	}
}
