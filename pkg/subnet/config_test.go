package subnet

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, prefix(s))
	}
	return ps
}

// mustConfig parses a configuration that a test needs.
func mustConfig(t testing.TB, text string) Config {
	t.Helper()
	cfg, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const (
	text4  = `{"Network":"10.244.0.0/16"}`
	text46 = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`
	textGW = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}`
)

var defaultBackend = Backend{Type: "vxlan", VNI: 1, Port: 8472}

func TestParseConfig(t *testing.T) {
	r := func(network string, length int, low, high string) Range {
		return Range{prefix(network), length, addr(low), addr(high)}
	}
	for _, c := range []struct {
		name, text string
		want       Config
	}{
		{"least", text4, Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
		{"flannel's manifest", `{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
		{"flannel's documentation", `{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan","Port":7890}}`,
			Config{Ranges: []Range{r("10.0.0.0/8", 20, "10.10.0.0", "10.99.0.0")}, Backend: Backend{Type: "vxlan", VNI: 1, Port: 7890}}},
		{"every key",
			`{"Network":"10.0.0.0/8","IPv6Network":"fd00::/40","EnableIPv4":true,"EnableIPv6":true,"SubnetLen":22,"SubnetMin":"10.1.0.0","SubnetMax":"10.2.0.0",
			"IPv6SubnetLen":56,"IPv6SubnetMin":"fd00::","IPv6SubnetMax":"fd00:0:10::","EnableNFTables":true,
			"Backend":{"Type":"VXLAN","VNI":16777215,"Port":4789,"MTU":1400,"DirectRouting":true,"Learning":true,"GBP":true}}`,
			Config{
				Ranges:   []Range{r("10.0.0.0/8", 22, "10.1.0.0", "10.2.0.0"), r("fd00::/40", 56, "fd00::", "fd00:0:10::")},
				NFTables: true,
				Backend:  Backend{"vxlan", 16777215, 4789, 1400, true, true, true},
			}},
		{"small network", `{"Network":"10.1.0.0/23"}`, Config{Ranges: []Range{r("10.1.0.0/23", 25, "10.1.0.128", "10.1.1.128")}, Backend: defaultBackend}},
		{"smallest network", `{"Network":"10.1.0.16/28"}`, Config{Ranges: []Range{r("10.1.0.16/28", 30, "10.1.0.20", "10.1.0.28")}, Backend: defaultBackend}},
		{"first subnet on request", `{"Network":"10.1.0.0/24","SubnetLen":24,"SubnetMin":"10.1.0.0"}`,
			Config{Ranges: []Range{r("10.1.0.0/24", 24, "10.1.0.0", "10.1.0.0")}, Backend: defaultBackend}},
		{"IPv6 only", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8:42::/56"}`,
			Config{Ranges: []Range{r("2001:db8:42::/56", 64, "2001:db8:42:1::", "2001:db8:42:ff::")}, Backend: defaultBackend}},
		{"IPv6 small", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/124"}`,
			Config{Ranges: []Range{r("fd00::/124", 126, "fd00::4", "fd00::c")}, Backend: defaultBackend}},
		{"IPv6 wide", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/7","IPv6SubnetLen":126}`,
			Config{Ranges: []Range{r("fc00::/7", 126, "fc00::4", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc")}, Backend: defaultBackend}},
		{"any case", `{"network":"10.244.0.0/16","SUBNETLEN":24,"backend":{"type":"vxlan","vni":0}}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
		{"host-gw", `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: Backend{Type: "host-gw"}}},
		{"host-gw with an MTU", `{"Network":"10.244.0.0/16","Backend":{"type":"Host-GW","mtu":1400,"VNI":null}}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: Backend{Type: "host-gw", MTU: 1400}}},
		{"null is not given", `{"Network":"10.244.0.0/16","SubnetLen":null,"Backend":null}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
		{"0 is flannel's not given", `{"Network":"10.244.0.0/16","SubnetLen":0,"Backend":{"MTU":0}}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
		{"disabled family ignored", `{"Network":"10.244.0.0/16","IPv6Network":"whatever"}`,
			Config{Ranges: []Range{r("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}, Backend: defaultBackend}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseConfig([]byte(c.text))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Fatalf("got  %+v, %v\nwant %+v", got, err, c.want)
			}
			data, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			var again Config
			if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("written as %s\nand read as %+v, %v\nwant %+v", data, again, err, got)
			}
		})
	}
}

// TestParseConfigErrors wants each error to have all the words after the text.
func TestParseConfigErrors(t *testing.T) {
	const v6 = `"EnableIPv6":true,"IPv6Network":"fd00::/48"`
	for _, c := range []struct {
		text  string
		words string
	}{
		{``, `byte 0: empty`},
		{`  `, `byte 0: empty`},
		{`[]`, `want a JSON object`},
		{`null`, `want a JSON object`},
		{`{"Network":"10.0.0.0/8"`, `byte 23: ends inside`},
		{`{"Network":"10.0.0.0/8",}`, `byte`},
		{`{"Network":"10.0.0.0/8"} {}`, `byte 24: "{}" after the end`},
		{`{"Network":}`, `byte`},
		{`{}`, `Network: missing, want an IPv4 network such as 10.244.0.0/16`},
		{`{"Network":null}`, `Network: missing`},
		{`{"Network":7}`, `Network 7: want a string`},
		{`{"Network":"10.0.0.0"}`, `Network "10.0.0.0": want an IPv4 network`},
		{`{"Network":"10.1.0.0/8"}`, `Network 10.1.0.0/8: has host bits set, want 10.0.0.0/8`},
		{`{"Network":"fd00::/48"}`, `Network "fd00::/48": want an IPv4 network`},
		{`{"Network":"0.0.0.0/0"}`, `Network 0.0.0.0/0: overlaps`},
		{`{"Network":"127.0.0.0/8"}`, `Network 127.0.0.0/8: overlaps`},
		{`{"Network":"239.0.0.0/16"}`, `overlaps 224.0.0.0/3`},
		{`{"Network":"10.0.0.0/29"}`, `Network 10.0.0.0/29: too small want /28`},
		{`{"Network":"10.0.0.0/8","Networks":[]}`, `"Networks": unknown key, want one of Network,`},
		{`{"Network":"10.0.0.0/8","Subnet":"x"}`, `"Subnet": unknown key`},
		{`{"Network":"10.0.0.0/8","network":"10.0.0.0/8"}`, `Network: given twice`},
		{`{"Network":"10.0.0.0/8","Networ\u212a":"11.0.0.0/8"}`, `Network: given twice`}, // Kelvin sign folds to k
		{`{"EnableIPv4":false}`, `EnableIPv4 false and EnableIPv6 false`},
		{`{"EnableIPv4":"yes"}`, `EnableIPv4 "yes": want true or false`},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true}`, `IPv6Network: missing want an IPv6 network such as fd00:244::/48`},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}`, `IPv6Network "10.0.0.0/8": want an IPv6 network`},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"::ffff:10.0.0.0/112"}`, `IPv6Network`},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fe80::/64"}`, `overlaps fe80::/10`},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/125"}`, `too small want /124`},
		{`{"Network":"10.0.0.0/8","SubnetLen":"24"}`, `SubnetLen "24": want a whole number`},
		{`{"Network":"10.0.0.0/8","SubnetLen":24.5}`, `SubnetLen 24.5: want a whole number`},
		{`{"Network":"10.0.0.0/16","SubnetLen":15}`, `SubnetLen 15: want 16 (as Network 10.0.0.0/16) to 30`},
		{`{"Network":"10.0.0.0/16","SubnetLen":31}`, `SubnetLen 31: want`},
		{`{"Network":"10.0.0.0/16","SubnetLen":-1}`, `SubnetLen -1: want`},
		{`{"Network":"10.0.0.0/16","SubnetLen":16}`, `SubnetLen 16: only one such subnet`},
		{`{"Network":"10.0.0.0/16",` + v6 + `,"IPv6SubnetLen":47}`, `IPv6SubnetLen 47: want 48 to 126`},
		{`{"Network":"10.0.0.0/16",` + v6 + `,"IPv6SubnetLen":127}`, `IPv6SubnetLen 127: want 48 to 126`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.5.1"}`, `SubnetMin 10.0.5.1: want 10.0.5.0`},
		{`{"Network":"10.0.0.0/16","SubnetMax":"10.0.5.128"}`, `SubnetMax 10.0.5.128: /24 want 10.0.5.0`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}`, `SubnetMin 10.1.0.0: want an address in 10.0.0.0/16`},
		{`{"Network":"10.0.0.0/16","SubnetMax":"9.0.0.0"}`, `SubnetMax 9.0.0.0: want an address in 10.0.0.0/16`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"fd00::"}`, `SubnetMin "fd00::": want an IPv4 address`},
		{`{"Network":"10.0.0.0/16","SubnetMin":""}`, `SubnetMin "": want an IPv4 address`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}`, `SubnetMin 10.0.9.0: is after SubnetMax 10.0.8.0`},
		{`{"Network":"10.0.0.0/16","SubnetMax":"10.0.0.0"}`, `SubnetMin 10.0.1.0: is after SubnetMax 10.0.0.0`},
		{`{"Network":"10.0.0.0/16",` + v6 + `,"IPv6SubnetMin":"fd00:0:0:1::1"}`, `IPv6SubnetMin fd00:0:0:1::1: want fd00:0:0:1::`},
		{`{"Network":"10.0.0.0/16",` + v6 + `,"IPv6SubnetMax":"fd00::%eth0"}`, `IPv6SubnetMax`},
		{`{"Network":"10.0.0.0/16","Backend":"vxlan"}`, `Backend want a JSON object`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}`, `Backend.Type "udp": want "vxlan" or "host-gw"`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":""}}`, `Backend.Type "": want "vxlan" or "host-gw"`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","VNI":1}}`, `Backend.VNI: "host-gw" has no such thing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Port":8472,"Type":"host-gw"}}`, `Backend.Port: "host-gw" has no such thing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","DirectRouting":false}}`, `Backend.DirectRouting: "host-gw" has no such thing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","Learning":true}}`, `Backend.Learning: "host-gw" has no such thing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","GBP":true}}`, `Backend.GBP: "host-gw" has no such thing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","MTU":575}}`, `Backend.MTU 575: want 576 to 65535`},
		{`{"Network":"10.0.0.0/16","Backend":{"Tpye":"vxlan"}}`, `Backend."Tpye": unknown key, want one of Type, VNI`},
		{`{"Network":"10.0.0.0/16","Backend":{"VNI":16777216}}`, `Backend.VNI 16777216: want 1 to 16777215`},
		{`{"Network":"10.0.0.0/16","Backend":{"VNI":-1}}`, `Backend.VNI -1: want 1 to 16777215`},
		{`{"Network":"10.0.0.0/16","Backend":{"VNI":"1"}}`, `Backend.VNI "1": want a whole number`},
		{`{"Network":"10.0.0.0/16","Backend":{"VNI":1,"vni":1}}`, `Backend.VNI: given twice`},
		{`{"Network":"10.0.0.0/16","Backend":{"Port":0}}`, `Backend.Port 0: want 1 to 65535`},
		{`{"Network":"10.0.0.0/16","Backend":{"Port":65536}}`, `Backend.Port 65536: want 1 to 65535`},
		{`{"Network":"10.0.0.0/16","Backend":{"MTU":575}}`, `Backend.MTU 575: want 576 to 65535`},
		{`{"Network":"10.0.0.0/16","Backend":{"MTU":65536}}`, `Backend.MTU 65536: want 576 to 65535`},
		{`{"Network":"10.0.0.0/16",` + v6 + `,"Backend":{"MTU":1279}}`, `Backend.MTU 1279: want 1280 to 65535 IPv6`},
		{`{"Network":"10.0.0.0/16","Backend":{"GBP":1}}`, `Backend.GBP 1: want true or false`},
	} {
		cfg, err := ParseConfig([]byte(c.text))
		if err == nil {
			t.Errorf("%s: got %+v, want an error", c.text, cfg)
			continue
		}
		wantWords(t, c.text, err, c.words)
		if !reflect.DeepEqual(cfg, Config{}) {
			t.Errorf("%s: a configuration beside the error: %+v", c.text, cfg)
		}
	}
}

// wantWords wants words, in this order, in an error, and the error short.
func wantWords(t *testing.T, what string, err error, words string) {
	t.Helper()
	rest := err.Error()
	if len(rest) > 500 || strings.ContainsAny(rest, "\n\r\x00") {
		t.Errorf("%s: error is no log line: %q", what, rest)
	}
	for w := range strings.FieldsSeq(words) {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("%s: got %q, want %q in it", what, err, words)
			return
		}
		rest = after
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{
		text4, text46, textGW, `{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw","MTU":1400,"VNI":1}}`, `{"network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":5,"MTU":1400}}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/7","IPv6SubnetLen":126,"IPv6SubnetMin":"fd00::"}`,
		`{"Network":"10.0.0.0/28","SubnetLen":30,"SubnetMax":"10.0.0.12"}`, `{"Network":1e9}`, `{}`, `null`, `{"Backend":{"Backend":{}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseConfig(data)
		if err != nil {
			return
		}
		for _, r := range cfg.Ranges {
			if r.Max.Less(r.Min) || !r.Network.Contains(r.Min) || !r.Network.Contains(lastAddr(netip.PrefixFrom(r.Max, r.SubnetLen))) {
				t.Fatalf("%s: range %+v", data, r)
			}
		}
		if got, err := Allocate(cfg, "node", nil, nil); err != nil || cfg.checkSubnets(got) != nil {
			t.Fatalf("%s: nothing to lease: %v, %v", data, got, err)
		}
		out, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseConfig(out); err != nil || !reflect.DeepEqual(again, cfg) {
			t.Fatalf("%s\nwritten as %s\nread as %+v, %v", data, out, again, err)
		}
	})
}
