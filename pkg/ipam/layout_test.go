package ipam

import (
	"net/netip"
	"strings"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		subnets    string
		count, end int
		addrs      string // of slot 2
		last       string // of slot end-1
	}{
		{"10.244.1.0/24", 256, 255, "10.244.1.2", "10.244.1.254"},
		{"10.244.2.0/23", 512, 511, "10.244.2.2", "10.244.3.254"},
		{"10.244.1.4/30", 4, 3, "10.244.1.6", "10.244.1.6"},
		{"10.244.0.0/16", 65536, 65535, "10.244.0.2", "10.244.255.254"},
		{"10.0.0.0/8", 65536, 65536, "10.0.0.2", "10.0.255.255"},
		{"fd00:1::/64", 65536, 65536, "fd00:1::2", "fd00:1::ffff"},
		{"fd00:1::/32", 65536, 65536, "fd00:1::2", "fd00:1::ffff"},
		{"fd00:1::40/122", 64, 64, "fd00:1::42", "fd00:1::7f"},
		{"10.244.1.0/24 fd00:1::/64", 256, 255, "10.244.1.2 fd00:1::2", "10.244.1.254 fd00:1::fe"},
		{"10.244.1.0/24 fd00:1::/120", 256, 255, "10.244.1.2 fd00:1::2", "10.244.1.254 fd00:1::fe"},
	} {
		l, err := newLayout(prefixes(t, c.subnets))
		if err != nil {
			t.Errorf("%s: %v", c.subnets, err)
			continue
		}
		if l.count != c.count || l.end() != c.end {
			t.Errorf("%s: %d slots, given up to %d, want %d and %d", c.subnets, l.count, l.end(), c.count, c.end)
		}
		for i, want := range map[int]string{2: c.addrs, c.end - 1: c.last} {
			got := l.addrs(i)
			for k, a := range addrs(t, want) {
				if got[k] != a {
					t.Errorf("%s: slot %d has %v, want %s", c.subnets, i, got, want)
				}
				if j, ok := l.index(a); !ok || j != i {
					t.Errorf("%s: %s is in slot %d, %v, want %d", c.subnets, a, j, ok, i)
				}
			}
		}
	}
}

func TestLayoutIndexRefusesStrangers(t *testing.T) {
	l, err := newLayout(prefixes(t, "10.244.1.0/24 fd00:1::/48"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs(t, "10.244.2.0 10.244.0.255 fd00:2::2 ::ffff:10.244.1.7 fd00:1::100 fd00:1:0:1::2 fd00:1::1:0:0:2 fd00:1::2%eth0") {
		if i, ok := l.index(a); ok {
			t.Errorf("%s is in slot %d, want none", a, i)
		}
	}
	if i, ok := l.index(netip.Addr{}); ok {
		t.Errorf("no address is in slot %d, want none", i)
	}
}

func TestLayoutRefuses(t *testing.T) {
	for subnets, want := range map[string]string{
		"":                                "want one for each address family",
		"10.0.0.0/24 fd00::/64 fd01::/64": "want one for each address family",
		"10.244.1.1/24":                   "10.244.1.1/24: want a network address",
		"10.244.1.0/31":                   "10.244.1.0/31: want at least 4 addresses",
		"fd00::/127":                      "fd00::/127: want at least 4 addresses",
		"fd00::/64 10.244.1.0/24":         "want IPv4 first",
		"10.244.1.0/24 10.244.2.0/24":     "want IPv4 first",
		"fd00::/64 fd01::/64":             "want IPv4 first",
		"10.244.1.0/24 fd00::/121":        "fd00::/121: want at least the 256 addresses that 10.244.1.0/24 has",
		"::ffff:10.244.1.0/120":           "want a network address",
	} {
		if _, err := Open(t.TempDir(), prefixes(t, subnets)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", subnets, err, want)
		}
	}
	if _, err := newLayout([]netip.Prefix{{}}); err == nil {
		t.Error("an invalid prefix was taken")
	}
}

func TestFileName(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.244.1.0/24": "slots-10.244.1.0-24",
		"fd00:1::/64":   "slots-fd00-1---64",
		"fd00::1:0/112": "slots-fd00--1-0-112",
	} {
		got := fileName(netip.MustParsePrefix(subnet))
		if got != want || !isFileName(got) {
			t.Errorf("%s: %q (ours: %v), want %q", subnet, got, isFileName(got), want)
		}
	}
	for _, name := range []string{
		"", "slots-", "slots--", "node.json", "slots-10.244.1.0-24.new", "slots-10.244.1.0-24~", "slots-10.244.1.1-24",
		"slots-10.244.1.0", "slots-10.244.1.0-33", "slots-10.244.01.0-24", "slots-FD00-1---64", "slots-fd00-1-0---64", ".slots-10.244.1.0-24",
	} {
		if isFileName(name) {
			t.Errorf("%q was taken for a slot file", name)
		}
	}
}
