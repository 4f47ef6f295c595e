package vxlan

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func TestFindUnderlay(t *testing.T) {
	// Three links: one, two (which has a second address and IPv6), and bare.
	links := []string{
		"ip link add one type bridge", "ip link set one mtu 1500 up", "ip addr add 192.0.2.1/24 dev one",
		"ip link add two type bridge", "ip link set two mtu 9000 up", "ip addr add 198.51.100.1/24 dev two", "ip addr add 198.51.100.9/24 dev two",
		"ip addr add 2001:db8::1/64 dev two nodad", "ip link add bare type bridge", "ip link set bare addrgenmode none up",
	}
	one := Underlay{"one", 1500, addr("192.0.2.1"), addr("192.0.2.1"), "has the default route"}
	two := Underlay{"two", 9000, addr("198.51.100.1"), addr("198.51.100.1"), "has the default route"}
	why := func(u Underlay, reason string) Underlay { u.Reason = reason; return u }
	from := func(u Underlay, a string) Underlay { u.Addr, u.Local = addr(a), addr(a); return u }
	public := func(u Underlay, a string) Underlay {
		u.Addr, u.Reason = addr(a), "named by --iface, address by --public-ip"
		return u
	}
	for name, c := range map[string]struct {
		routes        []string
		iface, public string
		want          Underlay
		err           string
	}{
		"default route":          {[]string{"ip route add default via 192.0.2.254"}, "", "", one, ""},
		"lowest metric":          {[]string{"ip route add default via 192.0.2.254 metric 20", "ip route add default via 198.51.100.254 metric 10"}, "", "", two, ""},
		"preferred source":       {[]string{"ip route add default via 198.51.100.254 src 198.51.100.9"}, "", "", from(two, "198.51.100.9"), ""},
		"first of two next hops": {[]string{"ip route add default nexthop via 198.51.100.254 nexthop via 192.0.2.254"}, "", "", two, ""},
		"not a blackhole":        {[]string{"ip route add blackhole default", "ip -6 route add default via 2001:db8::fe"}, "", "", two, ""},
		"IPv6 alone":             {[]string{"ip -6 route add default via 2001:db8::fe"}, "", "", two, ""},
		"another table":          {[]string{"ip route add default via 192.0.2.254 table 99"}, "", "", Underlay{}, "no default route, so the underlay interface cannot be guessed: name it with --iface"},
		"no default route":       {nil, "", "", Underlay{}, "no default route"},
		"name":                   {nil, "two", "", why(two, "named by --iface"), ""},
		"name, not the route":    {[]string{"ip route add default via 192.0.2.254"}, "two", "", why(two, "named by --iface"), ""},
		"address":                {nil, "198.51.100.9", "", why(from(two, "198.51.100.9"), "has the address of --iface"), ""},
		"IPv6 address":           {nil, "2001:db8::1", "", why(from(two, "2001:db8::1"), "has the address of --iface"), ""},
		"public address":         {nil, "one", "203.0.113.5", public(one, "203.0.113.5"), ""},
		"public IPv6 address":    {nil, "two", "2001:db8:1::5", public(from(two, "2001:db8::1"), "2001:db8:1::5"), ""},
		"public, its own second": {nil, "two", "198.51.100.9", public(from(two, "198.51.100.9"), "198.51.100.9"), ""},
		"public, without own":    {nil, "bare", "203.0.113.5", Underlay{}, "--public-ip 203.0.113.5: interface bare has no address of that family"},
		"no address":             {nil, "bare", "", Underlay{}, "interface bare (named by --iface) has no global address"},
		"no such name":           {nil, "three", "", Underlay{}, `--iface "three": `},
		"no such address":        {nil, "192.0.2.9", "", Underlay{}, "--iface 192.0.2.9: no interface has this address"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			for _, l := range slices.Concat(links, c.routes) {
				run(t, ns, l)
			}
			var public netip.Addr
			if c.public != "" {
				public = addr(c.public)
			}
			var got Underlay
			err := ns.Do(func() (err error) {
				got, err = FindUnderlay(c.iface, public)
				return err
			})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %+v, %v; want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestBestDefaultIgnoresOtherRoutes(t *testing.T) {
	_, some, _ := net.ParseCIDR("10.0.0.0/8")
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	index, _, ok := bestDefault([]netlink.Route{
		{Dst: some, LinkIndex: 1, Type: unix.RTN_UNICAST},
		{Dst: all, LinkIndex: 2, Type: unix.RTN_UNICAST, Priority: 5},
		{LinkIndex: 3, Type: unix.RTN_UNICAST, Priority: 5},
		{LinkIndex: 4, Type: unix.RTN_UNICAST, Priority: 9},
	})
	if !ok || index != 2 {
		t.Errorf("chose link %d, %t; want 2", index, ok)
	}
	if _, _, ok := bestDefault(nil); ok {
		t.Error("chose one of none")
	}
}

func TestRetryRepeatsInterruptedDumps(t *testing.T) {
	calls := 0
	list, err := retry(func() ([]int, error) {
		if calls++; calls < 3 {
			return nil, netlink.ErrDumpInterrupted
		}
		return []int{1}, nil
	})
	if err != nil || len(list) != 1 || calls != 3 {
		t.Errorf("%v, %v after %d calls", list, err, calls)
	}
	calls = 0
	if _, err := retry(func() ([]int, error) { calls++; return nil, netlink.ErrDumpInterrupted }); err == nil || calls > 20 {
		t.Errorf("gave up with %v after %d calls", err, calls)
	}
}
