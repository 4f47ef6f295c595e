package vxlan

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// The same transitions as on the fake, on the kernel's own tables and as its
// own tools show them.
func TestDeviceFollowsRandomTransitions(t *testing.T) {
	ns := withUnderlay(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	transitions(t, d, 500, func() string { return seen(t, ns) })
}

func TestEnsureCreates(t *testing.T) {
	six := testConfig()
	six.Local, six.MTU = addr("2001:db8::1"), 1430
	for name, c := range map[string]Config{"IPv4 underlay": testConfig(), "IPv6 underlay": six} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			d := openIn(t, ns, c)
			did := ensure(t, d)
			if len(did) == 0 || did[0] != "created "+testDevice {
				t.Errorf("did %q", did)
			}
			wantRight(t, ns, d)
			again := openIn(t, ns, c)
			wantRight(t, ns, again)
			if again.Link() != d.Link() || d.Link().Index == 0 {
				t.Errorf("another Device adopts %+v, want %+v", again.Link(), d.Link())
			}
		})
	}
}

// wantRight checks with the kernel's own tools that the device is what it
// should be, and that another Ensure has nothing to do.
func wantRight(t *testing.T, ns *netlab.Namespace, d *Device) {
	t.Helper()
	if did := ensure(t, d); len(did) != 0 {
		t.Errorf("another Ensure did %q", did)
	}
	c, link := d.Config(), show(t, ns, "ip -d link show "+testDevice)
	for _, want := range []string{
		"UP,LOWER_UP", "link/ether " + c.MAC.String(), "vxlan id 1 local " + c.Local.String() + " ", "dstport 8472",
		"nolearning", "l2miss", "addrgenmode none", "alias " + alias,
	} {
		if !strings.Contains(link, want) {
			t.Errorf("the link lacks %q:\n%s", want, link)
		}
	}
	if l := d.Link(); !l.Up || l.MAC != c.MAC || l.MTU != c.MTU {
		t.Errorf("Link says %+v, want MAC %s and MTU %d", l, c.MAC, c.MTU)
	}
	addrs := show(t, ns, "ip -o addr show dev "+testDevice)
	for _, a := range c.Addrs {
		if !strings.Contains(addrs, " "+a.String()+" ") {
			t.Errorf("address %s is missing:\n%s", a, addrs)
		}
	}
	if strings.Contains(addrs, "fe80:") {
		t.Errorf("a link-local address:\n%s", addrs)
	}
	for path, want := range map[string]string{
		"ipv4/neigh/overlay.1/app_solicit": "3", "ipv4/neigh/overlay.1/mcast_solicit": "0",
		"ipv6/neigh/overlay.1/app_solicit": "3", "ipv6/neigh/overlay.1/mcast_solicit": "0",
		"ipv4/conf/overlay.1/forwarding": "1", "ipv6/conf/overlay.1/addr_gen_mode": "1",
	} {
		if got := sysctl(t, ns, path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// sysctl reads a setting below /proc/sys/net.
func sysctl(t *testing.T, ns *netlab.Namespace, path string) (value string) {
	t.Helper()
	// The kernel goes by the namespace of the thread that opens the file.
	if err := ns.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/" + path)
		value = strings.TrimSpace(string(b))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

const handmade = "ip link add overlay.1 address 02:00:00:00:00:01 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning l2miss"

func TestEnsureAdoptsOrReplaces(t *testing.T) {
	swap := func(from, to string) string { return strings.Replace(handmade, from, to, 1) }
	for name, c := range map[string]struct {
		made  string // by hand
		adopt bool
		why   string // said of one that is replaced
	}{
		"equal":           {handmade, true, ""},
		"other MAC":       {swap("00:01", "00:99"), true, ""},
		"other VNI":       {swap("id 1", "id 2"), false, "VNI 2 port 8472"},
		"other port":      {swap("8472", "4789"), false, "VNI 1 port 4789"},
		"other local":     {swap("192.0.2.1", "192.0.2.9"), true, "set local 192.0.2.1 (was 192.0.2.9)"},
		"no local":        {swap("local 192.0.2.1", ""), false, "local any"},
		"IPv6 local":      {swap("192.0.2.1", "2001:db8::1"), false, "local 2001:db8::1"},
		"learning":        {swap("nolearning", "learning"), false, ", learning"},
		"no l2miss":       {swap("l2miss", ""), false, "without l2miss"},
		"default peer":    {swap("local", "remote 192.0.2.7 local"), false, "with a default destination"},
		"bound to a link": {swap("local", "dev lo local"), false, "bound to a link"},
		"group policy":    {handmade + " gbp", false, "options that change the format"},
		"few entries":     {handmade + " maxaddress 3", false, "limit the table"},
		"ARP proxy":       {handmade + " proxy", false, "options that change"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			run(t, ns, c.made)
			run(t, ns, "ip link set overlay.1 up") // which gives it a link-local address
			before := show(t, ns, "ip -o link show overlay.1")
			d := openIn(t, ns, testConfig())
			did := ensure(t, d)
			replaced := strings.Contains(did[0], "removed") && slices.Contains(did, "created overlay.1")
			if replaced == c.adopt || !strings.Contains(did[0], c.why) {
				t.Errorf("did %q, want %q", did, c.why)
			}
			after := show(t, ns, "ip -o link show overlay.1")
			if kept := indexOf(before) == indexOf(after); kept != c.adopt {
				t.Errorf("the link was\n%sand is\n%s", before, after)
			}
			wantRight(t, ns, d)
		})
	}
}

func TestEnsureRefusesAnotherKindOfLink(t *testing.T) {
	for kind, add := range map[string]string{
		"bridge": "ip link add overlay.1 type bridge",
		"veth":   "ip link add overlay.1 type veth peer name other",
	} {
		ns := netlab.TestNamespace(t)
		run(t, ns, add)
		before := show(t, ns, "ip -d addr show")
		_, err := openIn(t, ns, testConfig()).Ensure()
		if err == nil || !strings.Contains(err.Error(), "link overlay.1 is a "+kind+", not a vxlan device") {
			t.Errorf("got %v", err)
		}
		if after := show(t, ns, "ip -d addr show"); after != before {
			t.Errorf("it was\n%sand is\n%s", before, after)
		}
	}
}

func TestEnsureNamesTheRival(t *testing.T) {
	ns := netlab.TestNamespace(t)
	// Neither another VNI nor a tunnel over IPv6 stands in the way.
	run(t, ns, "ip link add six type vxlan id 1 dstport 8472 local 2001:db8::1")
	run(t, ns, "ip link add two type vxlan id 2 dstport 8472 local 192.0.2.1")
	run(t, ns, "ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning")
	d := openIn(t, ns, testConfig())
	_, err := d.Ensure()
	const want = "create overlay.1: VNI 1 on UDP port 8472 is taken by flannel.1: remove that device, or configure another VNI or port"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	run(t, ns, "ip link del flannel.1")
	ensure(t, d)
	wantRight(t, ns, d)
}

func TestEnsurePutsRight(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		said  string
	}{
		"MAC":               {[]string{"ip link set overlay.1 address 02:00:00:00:00:99"}, "set MAC 02:00:00:00:00:01 (was 02:00:00:00:00:99)"},
		"MTU":               {[]string{"ip link set overlay.1 mtu 1400"}, "set MTU 1450 (was 1400)"},
		"MTU without IPv6":  {[]string{"ip link set overlay.1 mtu 1000"}, "set MTU 1450 (was 1000)"},
		"alias":             {[]string{"ip link set overlay.1 alias mine"}, "set alias"},
		"down":              {[]string{"ip link set overlay.1 down"}, "set up"},
		"down and up":       {[]string{"ip link set overlay.1 down", "ip link set overlay.1 up"}, "set addresses [fd00::/128]"},
		"no address":        {[]string{"ip addr flush dev overlay.1"}, "set addresses [10.244.0.0/32 fd00::/128]"},
		"wrong length":      {[]string{"ip addr del 10.244.0.0/32 dev overlay.1", "ip addr add 10.244.0.0/24 dev overlay.1"}, "set addresses [10.244.0.0/32]"},
		"probes":            {[]string{"sysctl -q -w net.ipv4.neigh.overlay/1.app_solicit=0"}, "set neighbour probes, forwarding and address generation"},
		"multicast probes":  {[]string{"sysctl -q -w net.ipv6.neigh.overlay/1.mcast_solicit=3"}, "set neighbour probes, forwarding and address generation"},
		"forwarding":        {[]string{"sysctl -q -w net.ipv4.conf.overlay/1.forwarding=0"}, "set neighbour probes, forwarding and address generation"},
		"address generated": {[]string{"ip link set overlay.1 down", "ip link set overlay.1 addrgenmode eui64", "ip link set overlay.1 up"}, "set neighbour probes, forwarding and address generation"},
		"deleted":           {[]string{"ip link del overlay.1"}, "created overlay.1"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			d := openIn(t, ns, testConfig())
			ensure(t, d)
			for _, l := range c.lines {
				run(t, ns, l)
			}
			if did := ensure(t, d); !slices.Contains(did, c.said) {
				t.Errorf("did %q, want %q among it", did, c.said)
			}
			wantRight(t, ns, d)
		})
	}
}

func TestAddresses(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	foreign := []string{"169.254.7.7/16", "10.244.0.1/24", "fd00:99::1/64", "198.51.100.1/32"}
	for _, a := range foreign {
		run(t, ns, "ip addr add "+a+" dev overlay.1")
	}
	wantRight(t, ns, d)
	// An IPv6 subnet is added; the IPv4 one changes, and so one comes and goes.
	c := testConfig()
	c.Addrs = []netip.Prefix{prefix("10.244.5.0/32"), prefix("fd00::/128"), prefix("fd00:0:0:5::/128")}
	if err := d.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	did := ensure(t, d)
	if !slices.Equal(did, []string{"set addresses [-10.244.0.0/32 10.244.5.0/32 fd00:0:0:5::/128]"}) {
		t.Errorf("did %q", did)
	}
	wantRight(t, ns, d)
	addrs := show(t, ns, "ip -o addr show dev overlay.1")
	if strings.Contains(addrs, "10.244.0.0/32") {
		t.Errorf("the old address is left:\n%s", addrs)
	}
	for _, a := range foreign {
		if !strings.Contains(addrs, " "+a+" ") {
			t.Errorf("%s is not ours and is gone:\n%s", a, addrs)
		}
	}
}

func TestSetConfig(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	index := d.Link().Index
	for _, spoil := range []func(*Config){func(c *Config) { c.Name = "other" }, func(c *Config) { c.VNI = 0 }} {
		c := testConfig()
		spoil(&c)
		if err := d.SetConfig(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	c := testConfig()
	c.MTU = 1400
	if err := d.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	if did := ensure(t, d); !slices.Equal(did, []string{"set MTU 1400 (was 1450)"}) || d.Link().Index != index {
		t.Errorf("did %q", did)
	}
	wantRight(t, ns, d)
	// The node's address on the underlay changes: device and tables stay.
	want := Desired(peersOf(1, 3, 0, 0))
	reconcile(t, d, want)
	c.Local = addr("192.0.2.2")
	if err := d.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	if did := ensure(t, d); !slices.Equal(did, []string{"set local 192.0.2.2 (was 192.0.2.1)"}) || d.Link().Index != index {
		t.Errorf("did %q to link %d, want it in place on %d", did, d.Link().Index, index)
	}
	wantRight(t, ns, d)
	if ops := reconcile(t, d, want); len(ops) != 0 {
		t.Errorf("entries went with the address: %v", ops)
	}
	// Another family is another tunnel.
	c.Local, c.MTU = addr("2001:db8::2"), 1430
	if err := d.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	if did := ensure(t, d); len(did) == 0 || !strings.HasPrefix(did[0], "removed overlay.1 (") || d.Link().Index == index {
		t.Errorf("did %q, want the device made anew", did)
	}
	wantRight(t, ns, d)
}

func TestOpenRefusesABadConfig(t *testing.T) {
	if _, err := Open(Config{Name: "x"}); err == nil {
		t.Error("a configuration without VNI was accepted")
	}
}

// One refused change costs only itself, and says which it was.
func TestApplyAttemptsAll(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	good := peersOf(1, 3, 0, 0)
	bad := Peer{Subnet: prefix("10.244.9.0/24"), Gateway: addr("127.0.0.9"), MAC: MAC{3}, Underlay: addr("2001:db8::9")} // group MAC, other family, local gateway
	_, err := Reconcile(d, Exactly(Desired(append(slices.Clone(good), bad))))
	if err == nil {
		t.Fatal("no error")
	}
	var op *OpError
	if !errors.As(err, &op) || !strings.Contains(err.Error(), "set route 10.244.9.0/24 via 127.0.0.9 onlink: ") {
		t.Errorf("got %v", err)
	}
	if got := seen(t, ns); !containsAll(got, text(Desired(good))) {
		t.Errorf("the good peer misses something:\n%s", got)
	}
	// Deleting what is absent succeeds.
	var del []Op
	for _, o := range Diff(Desired(peersOf(5, 3, 0, 0)), Empty()) {
		del = append(del, Op{Del: true, Entry: o.Entry})
	}
	if err := d.Apply(del); err != nil {
		t.Errorf("deleting the absent: %v", err)
	}
	if err := d.Apply(nil); err != nil {
		t.Errorf("changing nothing: %v", err)
	}
}

// containsAll reports whether every line of want is in got.
func containsAll(got, want string) bool {
	for line := range strings.Lines(want) {
		if !strings.Contains(got, strings.TrimSpace(line)) {
			return false
		}
	}
	return true
}

// Without its device the tables are empty, and every change is refused.
func TestStateWithoutDevice(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	for _, when := range []string{"before it is made", "after it is gone"} {
		s, err := d.State()
		if err != nil || text(s) != "" {
			t.Errorf("%s: %v\n%s", when, err, text(s))
		}
		if _, err := Reconcile(d, Exactly(Desired(peersOf(1, 3, 0, 0)))); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: Reconcile says %v", when, err)
		}
		ensure(t, d)
		reconcile(t, d, Desired(peersOf(1, 3, 0, 0)))
		run(t, ns, "ip link del overlay.1")
	}
}

// indexOf is the link's index in a line of ip -o link.
func indexOf(line string) string {
	index, _, _ := strings.Cut(line, ":")
	return index
}
