package pod

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func list(t testing.TB, node *netlab.Namespace) (ports []Port) {
	t.Helper()
	in(t, node, func() (err error) { ports, err = List(); return err })
	return ports
}

// People rename links; the pod behind one lives on and has to be found.
func TestRenamedLink(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	a := testAttachment(ns, 7)
	r := attach(t, node, a, ensure(t, node, testBridge()))
	output(t, node, "ip link set "+r.HostName+" name renamed")
	ports := list(t, node)
	want := Port{a.Container, "eth0", "pods", "default/web-7", "renamed", r.HostIndex, ports[0].Bridge, true, false}
	if len(ports) != 1 || ports[0] != want || !ports[0].Tells() {
		t.Errorf("ports %+v, want %+v", ports, want)
	}
	in(t, node, func() error {
		if yes, err := Attached(a.Container, "eth0"); !yes || err != nil {
			return fmt.Errorf("attached: %t, %w", yes, err)
		}
		if found, err := Detach("other", "eth0"); found || err != nil {
			return fmt.Errorf("another container was found: %t, %w", found, err)
		}
		if found, err := Detach(a.Container, "eth0"); !found || err != nil {
			return fmt.Errorf("detach: found %t, %w", found, err)
		}
		return nil
	})
	if ports := list(t, node); len(ports) != 0 {
		t.Errorf("left: %+v", ports)
	}
}

func TestPortTells(t *testing.T) {
	for name, want := range map[string]bool{
		HostName("abc", "eth0"): true, "renamed": false, "vethhalf": false, "veth0123456789": false, "veth0123456789x": false,
	} {
		if got := (Port{HostName: name}).Tells(); got != want {
			t.Errorf("a link %s without an alias tells its owner: %t, want %t", name, got, want)
		}
	}
}

func TestListAndRemove(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	if ports := list(t, node); len(ports) != 0 {
		t.Errorf("ports of an empty node: %+v", ports)
	}
	e := ensure(t, node, testBridge())
	a := testAttachment(ns, 7)
	r := attach(t, node, a, e)
	output(t, node, "ip link add vethforeign type veth peer name foreign2")
	output(t, node, "ip link add vethhalf group 30275 type veth peer name half2") // an Attach that was killed
	output(t, node, "ip link set foreign2 alias vxlan-cni")
	output(t, node, "ip link add br9 group 30275 type bridge")
	ports := list(t, node)
	if len(ports) != 2 {
		t.Fatalf("ports: %+v", ports)
	}
	want := Port{a.Container, "eth0", "pods", "default/web-7", r.HostName, r.HostIndex, e.Index, true, false}
	if ports[0] != want {
		t.Errorf("port %+v, want %+v", ports[0], want)
	}
	if p := ports[1]; p.HostName != "vethhalf" || p.Container != "" || p.Bridge != 0 {
		t.Errorf("half a port: %+v", p)
	}

	for name, found := range map[string]bool{"vethhalf": true, "nosuch": false} {
		in(t, node, func() error {
			got, err := Remove(name)
			if got != found {
				err = fmt.Errorf("remove %s: found %t, want %t: %w", name, got, found, err)
			}
			return err
		})
	}
	for _, name := range []string{"vethforeign", "br9"} {
		err := node.Do(func() error { _, err := Remove(name); return err })
		if err == nil || !strings.Contains(err.Error(), "not ours to remove") {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if ports := list(t, node); len(ports) != 1 || ports[0] != want {
		t.Errorf("ports: %+v", ports)
	}
	attached := func(container string) (yes bool) {
		in(t, node, func() (err error) { yes, err = Attached(container, "eth0"); return err })
		return yes
	}
	if !attached(a.Container) || attached("other") {
		t.Error("Attached says the contrary")
	}
}

// The link goes whatever became of the pod's side.
func TestDetachWithoutThePod(t *testing.T) {
	node := netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	t.Run("namespace removed", func(t *testing.T) {
		ns := netlab.TestNamespace(t)
		attach(t, node, testAttachment(ns, 7), e)
		attach(t, node, testAttachment(netlab.TestNamespace(t), 8), e)
	})
	for i := 7; i <= 8; i++ { // gone already, or going: both are a success
		in(t, node, func() error { _, err := Detach(testAttachment(node, i).Container, "eth0"); return err })
	}
	if ports := list(t, node); len(ports) != 0 {
		t.Errorf("left behind: %+v", ports)
	}
}

func TestCheck(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	a := testAttachment(ns, 7)
	r := attach(t, node, a, e)
	check := func(change func(*Attachment)) error {
		other := a
		other.MAC = slices.Clone(r.PodMAC)
		if change != nil {
			change(&other)
		}
		return node.Do(func() error { return Check(other, "cni0") })
	}
	if err := check(nil); err != nil {
		t.Error(err)
	}
	for text, change := range map[string]func(*Attachment){
		"lacks address 10.244.1.8/24":          func(a *Attachment) { a.Addrs = prefixes("10.244.1.8/24") },
		"lacks address 10.244.1.7/25":          func(a *Attachment) { a.Addrs = prefixes("10.244.1.7/25") },
		"default route via fd00:1::2":          func(a *Attachment) { a.Gateways = addrs("fd00:1::2") },
		"has MAC 0a:58:0a:f4:01:07, want 02:0": func(a *Attachment) { a.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1} },
		"has MTU 1450, want 1400":              func(a *Attachment) { a.MTU = 1400 },
		"hairpin mode true, want false":        func(a *Attachment) { a.Hairpin = false },
		"link " + HostName("x", "eth0"):        func(a *Attachment) { a.Container = "x" },
		"want the path":                        func(a *Attachment) { a.Netns = "/run/netns/nosuch" },
	} {
		if err := check(change); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want %q", err, text)
		}
	}
	output(t, node, "ip link set "+r.HostName+" down")
	output(t, ns, "ip link set eth0 down")
	err := check(nil) // all differences at once
	for _, text := range []string{r.HostName + " is down", "eth0 is down", "lacks the default route via 10.244.1.1", "lacks address fd00:1::7/64"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want %q too", err, text)
		}
	}
	output(t, node, "ip link set "+r.HostName+" alias other")
	if err := check(nil); err == nil || !strings.Contains(err.Error(), `alias "other"`) {
		t.Errorf("error %v", err)
	}
}

// linkBody is an RTM_NEWLINK's body with the attributes given.
func linkBody(attrs ...*nl.RtAttr) []byte {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags = 7, unix.IFF_UP
	body := slices.Clone(msg.Serialize())
	for _, a := range attrs {
		body = append(body, a.Serialize()...)
	}
	return body
}

func TestParseLink(t *testing.T) {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	info.AddChild(portMode(true, true))
	body := linkBody(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("veth0")), nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(1450)), info)
	l := parseLink(body)
	if l.Index != 7 || l.Name != "veth0" || l.MTU != 1450 || l.Kind != "veth" || !l.Up || l.AddrGenMode != addrGenModeUnknown {
		t.Errorf("%+v", l)
	}
	for n := range body { // cut anywhere
		if l := parseLink(body[:n]); n < headerSize && (l.Index != 0 || l.Up) {
			t.Errorf("%d bytes: %+v", n, l)
		}
	}
}

func FuzzParse(f *testing.F) {
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	forward4(families)
	noLinkLocal(families)
	f.Add(linkBody(portMode(true, true), families, nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{1, 2, 3, 4, 5, 6})))
	f.Add(address(unix.RTM_NEWADDR, 7, prefixes("10.244.1.7/24")[0]).Serialize()[unix.NLMSG_HDRLEN:])
	f.Add(defaultRoute(7, addrs("fd00::1")[0]).Serialize()[unix.NLMSG_HDRLEN:])
	f.Fuzz(func(t *testing.T, body []byte) {
		l := parseLink(body)
		if len(body) >= headerSize && l.Index != int(int32(binary.NativeEndian.Uint32(body[4:]))) {
			t.Errorf("index %d", l.Index)
		}
		port(l)
		if a, _, ok := parseAddress(body); ok != a.IsValid() {
			t.Errorf("address %v, %t", a, ok)
		}
		if g, _, ok := parseDefaultRoute(body); ok != g.IsValid() {
			t.Errorf("gateway %v, %t", g, ok)
		}
	})
}

// What is written is what is read.
func TestMessagesReadBack(t *testing.T) {
	for _, p := range prefixes("10.244.1.7/24", "10.0.0.1/32", "fd00::7/64") {
		a, index, ok := parseAddress(address(unix.RTM_NEWADDR, 7, p).Serialize()[unix.NLMSG_HDRLEN:])
		if !ok || index != 7 || a.Prefix != p || !a.ours {
			t.Errorf("%s read back as %v on %d", p, a, index)
		}
	}
	for _, g := range addrs("10.244.1.1", "fd00::1") {
		gateway, index, ok := parseDefaultRoute(defaultRoute(7, g).Serialize()[unix.NLMSG_HDRLEN:])
		if !ok || gateway != g || index != 7 {
			t.Errorf("%s read back as %s by %d", g, gateway, index)
		}
	}
	if got := broadcast(prefixes("10.244.1.7/22")[0]).String(); got != "10.244.3.255" {
		t.Errorf("broadcast address %s", got)
	}
}
