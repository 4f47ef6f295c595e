package vxlan

import (
	_ "embed"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

//go:embed testdata/link.hex
var linkHex string

// bodies are messages of Linux 6.18, without their netlink headers.
var bodies = map[string]string{
	"neigh":            "020000000200000080000001080001000af401000a0002000e0000000101000008000400000000001400030000000000000000000000000001000000",
	"neigh6":           "0a000000020000008000000114000100fd0000000000000100000000000000000a0002000e0000000101000008000400000000001400030000000000000000000000000001000000",
	"neigh failed":     "020000000200000020000001080001000af4010008000400000000001400030010000000100000001000000001000000",
	"fdb":              "0700000002000000c00002010a0002000e0000000101000008000100c00002651400030000000000000000000000000000000000",
	"fdb port":         "0700000002000000c00002010a0002000e0000000101000008000100c000026506000600006300001400030000000000000000000000000000000000",
	"fdb dynamic":      "0700000002000000020002010a0002000e0000000101000008000100c00002651400030000000000050000000000000000000000",
	"fdb nexthop":      "0700000002000000c00002010a0002000e0000000101000008000d000a0000001400030000000000000000000000000000000000",
	"l3miss":           "020000000200000001000001080001000af4010008000400030000001400030070170000000000000000000001000000",
	"l3miss6":          "0a000000020000000100000114000100fd00000000000001000000000000000008000400030000001400030070170000000000000000000001000000",
	"l2miss":           "0200000002000000040000010a0002000e000000010100000800070000000000140003000000000098896a6698896a6600000000",
	"route":            "02180000fe4d00010400000008000f00fe000000080001000af40100080005000af401000800040002000000",
	"route6":           "0a400000fe4d00010400000008000f00fe00000014000100fd000000000000010000000000000000080006000004000014000500fd000000000000010000000000000000080004000200000024000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000",
	"route6 multipath": "0a400000fe0300010000000008000f00fe00000014000100fd00000000000001000000000000000008000600000400003c0009001c0004000200000014000500fd0000000000000900000000000000001c0004000200000014000500fd00000000000001000000000000000024000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000",
	"address":          "0220800002000000080001000af40000080002000af400000e0003006f7665726c61792e3100000005000b004d000000080008008000000014000600ffffffffffffffff2098040020980400",
	"address6":         "0a8082000200000014000100fd00000000000000000000000000000014000600ffffffffffffffff2098040020980400080008008200000005000b004d000000",
	"link":             linkHex,
	"short":            "0200",
}

func body(t testing.TB, name string) []byte {
	t.Helper()
	text, ok := bodies[name]
	if !ok {
		t.Fatalf("no message %q", name)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(text, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func seeds(f *testing.F) {
	f.Helper()
	for name := range bodies {
		f.Add(body(f, name))
	}
	f.Add([]byte(nil))
}

func notification(body []byte, kind uint16) rtnl.Notification {
	return rtnl.Notification{Kind: kind, Body: body}
}

func TestParseMiss(t *testing.T) {
	group := body(t, "l2miss")
	group[12+4] = 0x33 // its MAC's first byte
	unspecified := body(t, "l3miss")
	clear(unspecified[16:20])
	multicast := body(t, "l3miss")
	multicast[16] = 239
	for name, c := range map[string]struct {
		body []byte
		miss Miss
		ok   bool
	}{
		"L3":          {body(t, "l3miss"), Miss{Device: 2, IP: addr("10.244.1.0")}, true},
		"L3 of IPv6":  {body(t, "l3miss6"), Miss{Device: 2, IP: addr("fd00:0:0:1::")}, true},
		"L2":          {body(t, "l2miss"), Miss{Device: 2, MAC: MAC{0x0e, 0, 0, 0, 1, 1}}, true},
		"group MAC":   {group, Miss{}, false},
		"0.0.0.0":     {unspecified, Miss{}, false},
		"group":       {multicast, Miss{}, false},
		"cut short":   {body(t, "short"), Miss{}, false},
		"no question": {make([]byte, 12), Miss{}, false},
	} {
		if miss, ok := ParseMiss(c.body); miss != c.miss || ok != c.ok {
			t.Errorf("%s: %+v, %t; want %+v, %t", name, miss, ok, c.miss, c.ok)
		}
	}
}

func TestParseNeighbour(t *testing.T) {
	const lladdr = "0e:00:00:00:01:01"
	for name, want := range map[string]struct {
		family uint8
		state  uint16
		ip     string
		mac    string
		other  bool
	}{
		"neigh":        {unix.AF_INET, unix.NUD_PERMANENT, "10.244.1.0", lladdr, false},
		"neigh6":       {unix.AF_INET6, unix.NUD_PERMANENT, "fd00:0:0:1::", lladdr, false},
		"neigh failed": {unix.AF_INET, unix.NUD_FAILED, "10.244.1.0", "", false},
		"fdb":          {unix.AF_BRIDGE, unix.NUD_PERMANENT | unix.NUD_NOARP, "192.0.2.101", lladdr, false},
		"fdb port":     {unix.AF_BRIDGE, unix.NUD_PERMANENT | unix.NUD_NOARP, "192.0.2.101", lladdr, true},
		"fdb dynamic":  {unix.AF_BRIDGE, unix.NUD_REACHABLE, "192.0.2.101", lladdr, false},
		"fdb nexthop":  {unix.AF_BRIDGE, unix.NUD_PERMANENT | unix.NUD_NOARP, "invalid IP", lladdr, false},
	} {
		n, ok := parseNeighbour(body(t, name))
		if !ok || n.family != want.family || n.index != 2 || n.state != want.state || n.ip.String() != want.ip || n.macText() != want.mac || n.other != want.other {
			t.Errorf("%s: %+v %t", name, n, ok)
		}
	}
}

func TestParseRoute(t *testing.T) {
	for name, want := range map[string]route{
		"route":            {dst: prefix("10.244.1.0/24"), via: addr("10.244.1.0"), index: 2, protocol: Protocol, flags: unix.RTNH_F_ONLINK, table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST},
		"route6":           {dst: prefix("fd00:0:0:1::/64"), via: addr("fd00:0:0:1::"), index: 2, protocol: Protocol, metric: 1024, flags: unix.RTNH_F_ONLINK, table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST},
		"route6 multipath": {dst: prefix("fd00:0:0:1::/64"), protocol: 3, metric: 1024, table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST},
	} {
		if r, ok := parseRoute(body(t, name)); !ok || r != want {
			t.Errorf("%s: %+v, want %+v", name, r, want)
		}
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"other family": func(b []byte) []byte { b[0] = unix.AF_MPLS; return b },
		"length 33":    func(b []byte) []byte { b[1] = 33; return b },
		"long table":   func(b []byte) []byte { b[12] = 9; return b },
		"cut short":    func(b []byte) []byte { return b[:11] },
	} {
		if r, ok := parseRoute(spoil(body(t, "route"))); ok {
			t.Errorf("%s: read as %+v", name, r)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for name, want := range map[string]address{
		"address":  {2, prefix("10.244.0.0/32"), Protocol},
		"address6": {2, prefix("fd00::/128"), Protocol},
	} {
		if a, ok := parseAddress(body(t, name)); !ok || a != want {
			t.Errorf("%s: %+v %t, want %+v", name, a, ok, want)
		}
	}
	// Of a point-to-point address the own end counts, wherever it stands.
	far := append(body(t, "address"), 8, 0, unix.IFA_ADDRESS, 0, 192, 0, 2, 9)
	if a, ok := parseAddress(far); !ok || a.prefix != prefix("10.244.0.0/32") {
		t.Errorf("point to point: %+v", a)
	}
	if _, ok := parseAddress(make([]byte, 8)); ok {
		t.Error("a message without address was read")
	}
}

func TestParseLink(t *testing.T) {
	l, ok := parseLink(body(t, "link"))
	want := linkInfo{
		Link: Link{Index: 2, Up: true, MTU: 1450, MAC: MAC{2, 0, 0, 0, 0, 1}},
		name: "overlay.1", kind: "vxlan", alias: alias, forwarding: true, inet6: true, quiet: true,
		vni: 1, port: 8472, local: addr("192.0.2.1"), l2miss: true,
	}
	if !ok || l != want {
		t.Errorf("read  %+v\nwant %+v", l, want)
	}
	if !l.fits(testConfig()) || !l.sameTunnel(testConfig()) {
		t.Error("it is what it should be, and does not count as that")
	}
	for name, spoil := range map[string]func(*linkInfo){
		"down": func(l *linkInfo) { l.Up = false }, "MTU": func(l *linkInfo) { l.MTU++ }, "MAC": func(l *linkInfo) { l.MAC[5]++ },
		"alias": func(l *linkInfo) { l.alias = "" }, "forwarding": func(l *linkInfo) { l.forwarding = false }, "loud": func(l *linkInfo) { l.quiet = false },
	} {
		bad := want
		spoil(&bad)
		if bad.fits(testConfig()) {
			t.Errorf("%s: it counts as what it should be", name)
		}
	}
}

func TestMissString(t *testing.T) {
	for want, m := range map[string]Miss{"L3MISS 10.0.0.1": {IP: addr("10.0.0.1")}, "L2MISS 02:00:00:00:00:01": {MAC: MAC{2, 0, 0, 0, 0, 1}}} {
		if m.String() != want {
			t.Errorf("%q, want %q", m, want)
		}
	}
}

func FuzzParseMiss(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := ParseMiss(b)
		switch {
		case !ok && m != Miss{}:
			t.Errorf("no miss, but %+v", m)
		case m.IP.IsValid() && m.MAC != MAC{}:
			t.Errorf("both address and MAC: %+v", m)
		case ok && m.IP.IsValid() && (m.IP.IsMulticast() || m.IP.IsUnspecified() || m.IP.Is4In6()):
			t.Errorf("asks for %s", m.IP)
		case ok && m.MAC[0]&1 != 0:
			t.Errorf("asks for the group %s", m.MAC)
		}
		// Whatever it asks for, an answer has to be one of ours.
		if ops := Desired(peersOf(1, 3, 0, 0)).Resolve(m); ops != nil && m.MAC != (MAC{0x0e, 0, 0, 0, 0, 1}) && !m.IP.IsValid() {
			t.Errorf("%s is answered by %v", m, ops)
		}
	})
}

func FuzzParseNeighbour(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := parseNeighbour(b); ok != (len(b) >= unix.SizeofNdMsg) || len(n.mac) > len(b) {
			t.Errorf("%d bytes: %+v %t", len(b), n, ok)
		}
		_ = Scope{}.describeNeighbour(notification(b, unix.RTM_NEWNEIGH))
	})
}

func FuzzParseRoute(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := parseRoute(b); ok && (!r.dst.IsValid() || r.dst.Bits() > r.dst.Addr().BitLen()) {
			t.Errorf("to %s", r.dst)
		}
		_ = Scope{Networks: []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}}.describeRoute(notification(b, unix.RTM_NEWROUTE))
	})
}

func FuzzParseLink(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := parseLink(b)
		if ok != (len(b) >= unix.SizeofIfInfomsg) || len(l.name) > len(b) || l.sameTunnel(testConfig()) && l.kind != "vxlan" {
			t.Errorf("%d bytes: %+v %t", len(b), l, ok)
		}
		quiet(Scope{Index: l.Index, Names: []string{l.name}}).note(notification(b, unix.RTM_NEWLINK))
	})
}

func FuzzParseAddress(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseAddress(b); ok && !a.prefix.IsValid() {
			t.Errorf("%+v", a)
		}
		_ = Scope{Networks: []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}}.describeAddress(notification(b, unix.RTM_NEWADDR))
	})
}
