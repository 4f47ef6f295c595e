package subnet

import (
	"fmt"
	"net/netip"
	"strings"
)

// noIPv4 stands in flannel's keys where an IPv6-only lease has no IPv4 subnet.
const noIPv4 = "0.0.0.0-0"

// Key returns the name under which a lease of these subnets (one per family,
// IPv4 first) is stored, in flannel's form: 10.5.52.0-24, dual stack
// 10.5.52.0-24&fd00:1:2::-64, IPv6 only 0.0.0.0-0&fd00:1:2::-64.
//
// Source: flannel 0.28, pkg/subnet/subnet.go, MakeSubnetKey and the regular
// expression of ParseSubnetKey. That keeps the colons of an IPv6 address, and
// reads no other form.
func Key(subnets []netip.Prefix) string {
	v4, v6 := noIPv4, ""
	for _, s := range subnets {
		text := fmt.Sprintf("%s-%d", s.Addr(), s.Bits())
		if s.Addr().Is4() {
			v4 = text
		} else {
			v6 = "&" + text
		}
	}
	return v4 + v6
}

// ParseKey reads what Key writes. An IPv6 address may also be written with
// dashes for colons (10.5.52.0-24&fd00-1-2---64). So several keys can name the
// same subnets: to write a record again, use the key that it was read under.
// The subnets may have host bits set; Config.Check refuses those.
func ParseKey(key string) ([]netip.Prefix, error) {
	text4, text6, dual := strings.Cut(key, "&")
	var subnets []netip.Prefix
	if !dual || text4 != noIPv4 {
		s, ok := parseKeyPart(text4)
		if !ok || !s.Addr().Is4() || s.Bits() == 0 {
			return nil, fmt.Errorf("key %s: want an IPv4 subnet such as 10.5.52.0-24 first", quote(key))
		}
		subnets = append(subnets, s)
	}
	if dual {
		if i := strings.LastIndexByte(text6, '-'); i >= 0 {
			text6 = strings.ReplaceAll(text6[:i], "-", ":") + text6[i:]
		}
		s, ok := parseKeyPart(text6)
		if !ok || s.Addr().Is4() || s.Addr().Is4In6() || s.Bits() == 0 {
			return nil, fmt.Errorf("key %s: want an IPv6 subnet such as fd00:1:2::-64 after &", quote(key))
		}
		subnets = append(subnets, s)
	}
	return subnets, nil
}

// parseKeyPart reads address-length.
func parseKeyPart(text string) (netip.Prefix, bool) {
	i := strings.LastIndexByte(text, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(text[:i] + "/" + text[i+1:])
	return p, err == nil
}
