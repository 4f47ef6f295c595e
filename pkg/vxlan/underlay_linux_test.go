package vxlan

import (
	"net"
	"net/netip"
	"reflect"
	"regexp"
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
	const v4, v6, both = "4", "6", "46"
	end := func(a string) End { return End{addr(a), addr(a)} }
	one := Underlay{"one", 2, 1500, []End{end("192.0.2.1")}, "has the default route"}
	two := Underlay{"two", 3, 9000, []End{end("198.51.100.1")}, "has the default route"}
	why := func(u Underlay, reason string) Underlay { u.Reason = reason; return u }
	from := func(u Underlay, ends ...string) Underlay {
		u.Ends = nil
		for _, e := range ends {
			u.Ends = append(u.Ends, end(e))
		}
		return u
	}
	public := func(u Underlay, a string) Underlay {
		u.Ends, u.Reason = []End{{addr(a), u.Ends[0].Local}}, "named by --iface, address by --public-ip"
		return u
	}
	const two6 = "2001:db8::1"
	for name, c := range map[string]struct {
		routes        []string
		iface, public string // comma separated
		want          Underlay
		err           string
		pods          string // families; empty: IPv4
		regex, reach  string
	}{
		"default route":              {routes: []string{"ip route add default via 192.0.2.254"}, want: one},
		"lowest metric":              {routes: []string{"ip route add default via 192.0.2.254 metric 20", "ip route add default via 198.51.100.254 metric 10"}, want: two},
		"preferred source":           {routes: []string{"ip route add default via 198.51.100.254 src 198.51.100.9"}, want: from(two, "198.51.100.9")},
		"first of two next hops":     {routes: []string{"ip route add default nexthop via 198.51.100.254 nexthop via 192.0.2.254"}, want: two},
		"not a blackhole":            {routes: []string{"ip route add blackhole default", "ip -6 route add default via 2001:db8::fe"}, want: two},
		"IPv6 alone":                 {routes: []string{"ip -6 route add default via 2001:db8::fe"}, want: two},
		"another table":              {routes: []string{"ip route add default via 192.0.2.254 table 99"}, err: "no default route, so the underlay interface cannot be guessed: name it with --iface"},
		"no default route":           {err: "no default route"},
		"name":                       {iface: "two", want: why(two, "named by --iface")},
		"name, not the route":        {routes: []string{"ip route add default via 192.0.2.254"}, iface: "two", want: why(two, "named by --iface")},
		"address":                    {iface: "198.51.100.9", want: why(from(two, "198.51.100.9"), "has the address of --iface")},
		"IPv6 address":               {iface: "2001:db8::1", want: why(from(two, "2001:db8::1"), "has the address of --iface")},
		"public address":             {iface: "one", public: "203.0.113.5", want: public(one, "203.0.113.5")},
		"public IPv6 address":        {iface: "two", public: "2001:db8:1::5", want: public(from(two, "2001:db8::1"), "2001:db8:1::5")},
		"public, its own second":     {iface: "two", public: "198.51.100.9", want: public(from(two, "198.51.100.9"), "198.51.100.9")},
		"public, without own":        {iface: "bare", public: "203.0.113.5", err: "--public-ip 203.0.113.5: interface bare has no address of that family"},
		"no address":                 {iface: "bare", err: "interface bare (named by --iface) has no global address"},
		"no such name":               {iface: "three", err: `--iface "three": `},
		"dual stack":                 {iface: "two", want: why(from(two, "198.51.100.1", two6), "named by --iface"), pods: both},
		"dual stack on IPv4":         {iface: "one", want: why(one, "named by --iface"), pods: both},
		"IPv6 pods":                  {iface: "two", want: why(from(two, two6), "named by --iface"), pods: v6},
		"IPv6 pods on IPv4":          {iface: "one", want: why(one, "named by --iface"), pods: v6},
		"IPv4 pods on IPv6":          {routes: []string{"ip -4 addr flush dev two"}, iface: "two", want: why(from(two, two6), "named by --iface"), pods: v4},
		"two public addresses":       {iface: "two", public: "203.0.113.5,2001:db8:1::5", want: Underlay{"two", 3, 9000, []End{{addr("203.0.113.5"), addr("198.51.100.1")}, {addr("2001:db8:1::5"), addr(two6)}}, "named by --iface, address by --public-ip"}, pods: both},
		"public IPv4, dual stack":    {iface: "two", public: "203.0.113.5", want: Underlay{"two", 3, 9000, []End{{addr("203.0.113.5"), addr("198.51.100.1")}, end(two6)}, "named by --iface, address by --public-ip"}, pods: both},
		"second of two names":        {iface: "three,two", want: why(two, "named by --iface")},
		"none of two names":          {iface: "three,four", err: `--iface "four"`},
		"regex of a name":            {regex: "^t", want: why(two, "matches --iface-regex ^t")},
		"regex of an address":        {regex: `^198\.51\.100\.9$`, want: why(from(two, "198.51.100.9"), `matches --iface-regex ^198\.51\.100\.9$`)},
		"second of two regexes":      {regex: "nosuch,^o", want: why(one, "matches --iface-regex ^o")},
		"regex that matches nothing": {regex: "^bare$", err: `--iface-regex "^bare$": matches name or address of no interface with a global address`},
		"can reach":                  {reach: "198.51.100.77", want: why(two, "reaches 198.51.100.77, as --iface-can-reach asks")},
		"can reach over IPv6":        {reach: "2001:db8::77", want: why(from(two, two6), "reaches 2001:db8::77, as --iface-can-reach asks"), pods: v6},
		"cannot reach":               {reach: "203.0.113.1", err: "--iface-can-reach 203.0.113.1: "},
		"cannot reach itself":        {reach: "198.51.100.1", err: "no route leads out of the node"},
		"addresses of pods are none": {routes: []string{"ip addr add 10.244.9.1/24 dev one", "ip addr del 192.0.2.1/24 dev one"}, iface: "one", err: "has no global address"},
		"a deprecated address last":  {routes: []string{"ip addr add 2001:db8::a/64 dev two nodad", "ip addr change 2001:db8::1/64 dev two nodad preferred_lft 0"}, iface: "two", want: why(from(two, "2001:db8::a"), "named by --iface"), pods: v6},
		"no such address":            {iface: "192.0.2.9", err: "--iface 192.0.2.9: no interface has this address"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			for _, l := range slices.Concat(links, c.routes) {
				run(t, ns, l)
			}
			choice := Choice{Pods4: c.pods != v6, Pods6: c.pods == v6 || c.pods == both, Avoid: []netip.Prefix{prefix("10.244.0.0/16")}}
			choice.Ifaces = split(c.iface)
			for _, w := range split(c.regex) {
				choice.Regexes = append(choice.Regexes, regexp.MustCompile(w))
			}
			for _, w := range split(c.public) {
				choice.Public = append(choice.Public, addr(w))
			}
			if c.reach != "" {
				choice.CanReach = addr(c.reach)
			}
			var got Underlay
			err := ns.Do(func() (err error) {
				got, err = FindUnderlay(choice)
				return err
			})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %+v, %v; want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(w string) bool { return w == "" })
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
