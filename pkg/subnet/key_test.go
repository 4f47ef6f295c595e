package subnet

import (
	"net/netip"
	"regexp"
	"slices"
	"testing"
)

// flannelKey is the regular expression by which flannel 0.28 reads keys
// (pkg/subnet/subnet.go).
var flannelKey = regexp.MustCompile(`(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`)

func TestKey(t *testing.T) {
	for _, c := range []struct {
		subnets []netip.Prefix
		key     string
		flannel []string // what flannel makes of it
	}{
		{prefixes("10.5.52.0/24"), "10.5.52.0-24", []string{"10.5.52.0", "24", "", ""}},
		{prefixes("10.5.52.0/24", "fd00:1:2::/64"), "10.5.52.0-24&fd00:1:2::-64", []string{"10.5.52.0", "24", "fd00:1:2::", "64"}},
		{prefixes("fd00:1:2::/64"), "0.0.0.0-0&fd00:1:2::-64", []string{"0.0.0.0", "0", "fd00:1:2::", "64"}},
		{prefixes("10.5.52.0/24", "2001:db8:0:1::/64"), "10.5.52.0-24&2001:db8:0:1::-64", []string{"10.5.52.0", "24", "2001:db8:0:1::", "64"}},
		{prefixes("10.5.52.0/24", "fd00:1:2:3:4:5:6:fff0/124"), "10.5.52.0-24&fd00:1:2:3:4:5:6:fff0-124", []string{"10.5.52.0", "24", "fd00:1:2:3:4:5:6:fff0", "124"}},
	} {
		if got := Key(c.subnets); got != c.key {
			t.Errorf("Key(%s) = %q, want %q", c.subnets, got, c.key)
		}
		if got, err := ParseKey(c.key); err != nil || !slices.Equal(got, c.subnets) {
			t.Errorf("ParseKey(%q) = %s, %v; want %s", c.key, got, err, c.subnets)
		}
		if m := flannelKey.FindStringSubmatch("/coreos.com/network/subnets/" + c.key); m == nil || !slices.Equal(m[1:], c.flannel) {
			t.Errorf("flannel reads %q as %q, want %q", c.key, m, c.flannel)
		}
	}
}

func TestParseKeyLiberally(t *testing.T) {
	want := prefixes("10.5.52.0/24", "fd00:1:2::/64")
	for _, key := range []string{
		"10.5.52.0-24&fd00-1-2--0-64", "10.5.52.0-24&fd00-1-2---64", "10.5.52.0-24&fd00:1:2::0-64",
		"10.5.52.0-24&FD00:1:2::-64", "10.5.52.0-24&fd00-1-2-0-0-0-0-0-64",
	} {
		if got, err := ParseKey(key); err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseKey(%q) = %s, %v; want %s", key, got, err, want)
		}
	}
}

func TestParseKeyErrors(t *testing.T) {
	for _, c := range []struct{ key, words string }{
		{"", `key "": want an IPv4 subnet`},
		{"config", `key "config"`},
		{"10.5.52.0", `want an IPv4 subnet such as 10.5.52.0-24`},
		{"10.5.52.0-", `IPv4`},
		{"10.5.52.0-33", `IPv4`},
		{"10.5.52.0--1", `IPv4`},
		{"10.5.52.0-024", `IPv4`},
		{"10.5.52-24", `IPv4`},
		{"10.5.52.0/24", `IPv4`},
		{"10.5.52.0-24 ", `IPv4`},
		{"x10.5.52.0-24", `IPv4`},
		{"fd00::-64", `IPv4`},
		{"0.0.0.0-0", `IPv4`},
		{"10.5.52.0-24&", `want an IPv6 subnet such as fd00:1:2::-64 after &`},
		{"10.5.52.0-24&10.6.0.0-24", `IPv6`},
		{"10.5.52.0-24&fd00::", `IPv6`},
		{"10.5.52.0-24&fd00::-129", `IPv6`},
		{"10.5.52.0-24&fd00::-64&fd01::-64", `IPv6`},
		{"10.5.52.0-24&::-0", `IPv6`},
		{"10.5.52.0-24&::ffff:10.0.0.0-112", `IPv6`},
		{"10.5.52.0-24&fd00::%eth0-64", `IPv6`},
		{"0.0.0.0-0&", `IPv6`},
		{"0.0.0.0-1&fd00::-64/..", `IPv6`},
		{"10.5.52.0-24\n" + string(rune(0)), `IPv4`},
		{string(make([]byte, 5000)) + "10.5.5.", `key`},
	} {
		got, err := ParseKey(c.key)
		if err == nil {
			t.Errorf("ParseKey(%q) = %s, want an error", c.key, got)
			continue
		}
		wantWords(t, c.key, err, c.words)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"10.5.52.0-24", "10.5.52.0-24&fd00:1:2::-64", "0.0.0.0-0&fd00-1-2---64", "10.5.52.0-24&", "&-", "0.0.0.0-0", "1.2.3.4-1&::1-128"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		subnets, err := ParseKey(key)
		if err != nil {
			return
		}
		if len(subnets) < 1 || len(subnets) > 2 || len(subnets) == 2 && (!subnets[0].Addr().Is4() || subnets[1].Addr().Is4()) {
			t.Fatalf("%q: %s", key, subnets)
		}
		written := Key(subnets)
		if again, err := ParseKey(written); err != nil || !slices.Equal(again, subnets) {
			t.Fatalf("%q: %s, written as %q, read as %s, %v", key, subnets, written, again, err)
		}
		if !flannelKey.MatchString(written) {
			t.Fatalf("%q: written as %q, which flannel cannot read", key, written)
		}
	})
}
