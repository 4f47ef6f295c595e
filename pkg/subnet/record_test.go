package subnet

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func mac(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

const flannelRecord = `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`

func TestRecord(t *testing.T) {
	v4 := VTEP{addr("192.0.2.7"), mac("0e:5d:60:c1:c5:2e"), 1}
	v6 := VTEP{addr("2001:db8::7"), mac("0e:5d:60:c1:c5:2f"), 77}
	for _, c := range []struct {
		name  string
		lease Lease
		text  string
	}{
		{"IPv4", Lease{Node: "node-1", Backend: "vxlan", VTEPs: []VTEP{v4}, MTU: 1450},
			`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"},"Node":"node-1","Schema":1,"MTU":1450}`},
		{"both", Lease{Node: "node-1", Backend: "vxlan", VTEPs: []VTEP{v4, v6}},
			`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"},"BackendV6Data":{"VNI":77,"VtepMAC":"0e:5d:60:c1:c5:2f"},"Node":"node-1","Schema":1}`},
		{"host-gw", Lease{Node: "node-1", Backend: "host-gw", VTEPs: []VTEP{{Underlay: v4.Underlay}}, MTU: 1500},
			`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw","Node":"node-1","Schema":1,"MTU":1500}`},
		{"host-gw, both", Lease{Node: "node-1", Backend: "host-gw", VTEPs: []VTEP{{Underlay: v4.Underlay}, {Underlay: v6.Underlay}}},
			`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"host-gw","Node":"node-1","Schema":1}`},
		{"IPv6", Lease{Node: "node-1", Backend: "vxlan", VTEPs: []VTEP{v6}},
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendV6Data":{"VNI":77,"VtepMAC":"0e:5d:60:c1:c5:2f"},"Node":"node-1","Schema":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, err := EncodeRecord(c.lease)
			if err != nil || string(data) != c.text {
				t.Errorf("written as %s, %v\nwant       %s", data, err, c.text)
			}
			if got, err := DecodeRecord([]byte(c.text)); err != nil || !reflect.DeepEqual(got, c.lease) {
				t.Errorf("read as %+v, %v\nwant    %+v", got, err, c.lease)
			}
		})
	}
}

// TestDecodeForeignRecord reads what flannel writes, now and perhaps later.
func TestDecodeForeignRecord(t *testing.T) {
	v4 := VTEP{addr("192.0.2.7"), mac("0e:5d:60:c1:c5:2e"), 1}
	for _, c := range []struct {
		name, text string
		want       Lease
	}{
		{"flannel's", flannelRecord, Lease{Backend: "vxlan", VTEPs: []VTEP{v4}}},
		{"with null data", strings.Replace(flannelRecord, `}}`, `},"BackendV6Data":null}`, 1), Lease{Backend: "vxlan", VTEPs: []VTEP{v4}}},
		{"future keys", strings.Replace(flannelRecord, `{`, `{"Next":[{"a":null}],"subnets":7,`, 1), Lease{Backend: "vxlan", VTEPs: []VTEP{v4}}},
		{"future data keys", strings.Replace(flannelRecord, `{"VNI"`, `{"GPE":true,"VNI"`, 1), Lease{Backend: "vxlan", VTEPs: []VTEP{v4}}},
		{"IPv6 only", `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":null,"BackendV6Data":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`,
			Lease{Backend: "vxlan", VTEPs: []VTEP{{addr("fd00::1"), v4.MAC, 1}}}},
		{"host-gw", `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw"}`,
			Lease{Backend: "host-gw", VTEPs: []VTEP{{Underlay: addr("192.0.2.7")}}}},
		{"host-gw with data, which counts for nothing", `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`,
			Lease{Backend: "host-gw", VTEPs: []VTEP{{Underlay: addr("192.0.2.7")}}}},
		{"wireguard", `{"PublicIP":"192.0.2.7","PublicIPv6":"fd00::1","BackendType":"wireguard","BackendData":{"PublicKey":"x"},"BackendV6Data":"y"}`,
			Lease{Backend: "wireguard", VTEPs: []VTEP{{Underlay: addr("192.0.2.7")}, {Underlay: addr("fd00::1")}}}},
		{"reservation", `{"PublicIP":"192.0.2.7"}`, Lease{VTEPs: []VTEP{{Underlay: addr("192.0.2.7")}}}},
		{"nothing said", `{}`, Lease{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := DecodeRecord([]byte(c.text)); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("read as %+v, %v\nwant    %+v", got, err, c.want)
			}
		})
	}
}

func TestDecodeRecordErrors(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(flannelRecord, old) {
			t.Fatalf("no %s in %s", old, flannelRecord)
		}
		return strings.Replace(flannelRecord, old, new, 1)
	}
	for _, c := range []struct{ text, words string }{
		{``, `record: "": byte 0: unexpected end`},
		{`garbage`, `record: "garbage": byte 1: invalid character`},
		{strings.Repeat("x", 1<<20), `record: invalid character`},
		{strings.Repeat("[", 1<<20), `record: exceeded max depth`},
		{`null`, `null: want a JSON object`},
		{`[]`, `array: want a JSON object`},
		{`"x"`, `string: want a JSON object`},
		{flannelRecord + `{}`, `invalid character '{' after`},
		{flannelRecord[:60], `unexpected end`},
		{with(`"192.0.2.7"`, `7`), `PublicIP: number, want a string`},
		{with(`"192.0.2.7"`, `"300.0.2.7"`), `PublicIP "300.0.2.7": want an IPv4 address`},
		{with(`"192.0.2.7"`, `"fd00::1"`), `PublicIP "fd00::1": want an IPv4 address`},
		{with(`"192.0.2.7"`, `""`), `PublicIP "": want an IPv4 address`},
		{with(`"192.0.2.7"`, `"`+strings.Repeat("9", 1<<16)+`"`), `PublicIP "999 … want an IPv4 address`},
		{with(`null`, `"192.0.2.7"`), `PublicIPv6 "192.0.2.7": want an IPv6 address`},
		{with(`null`, `"::ffff:192.0.2.7"`), `PublicIPv6 want an IPv6 address`},
		{with(`null`, `"fe80::1%eth0"`), `PublicIPv6 "fe80::1%eth0": want an IPv6 address`},
		{with(`null`, `"fd00::1"`), `BackendV6Data: missing, want {"VNI" beside PublicIPv6`},
		{with(`"vxlan"`, `{}`), `BackendType: object, want a string`},
		{with(`"192.0.2.7"`, `null`), `PublicIP: missing, want an address beside BackendData`},
		{with(`"192.0.2.7"`, `"0.0.0.0"`), `PublicIP: missing, want an address beside BackendData`},
		{with(`{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}`, `null`), `BackendData: missing, want beside PublicIP`},
		{with(`{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}`, `[1]`), `BackendData: array: want a JSON object`},
		{with(`"VNI":1`, `"VNI":"1"`), `BackendData: VNI: string, want a whole number`},
		{with(`"VNI":1`, `"VNI":-1`), `BackendData: VNI: number -1, want a whole number`},
		{with(`"VNI":1`, `"VNI":16777216`), `BackendData.VNI 16777216: want 1 to 16777215`},
		{with(`"0e:5d:60:c1:c5:2e"`, `"0e:5d:60:c1:c5"`), `BackendData.VtepMAC: MAC "0e:5d:60:c1:c5": want six`},
		{with(`"0e:5d:60:c1:c5:2e"`, `"0f:5d:60:c1:c5:2e"`), `BackendData.VtepMAC: group`},
		{with(`"0e:5d:60:c1:c5:2e"`, `"00:00:00:00:00:00"`), `BackendData.VtepMAC: zero`},
		{with(`"0e:5d:60:c1:c5:2e"`, `7`), `BackendData: VtepMAC: number, want a string`},
		{with(`,"VtepMAC":"0e:5d:60:c1:c5:2e"`, ``), `BackendData.VtepMAC: MAC "": want six`},
		{with(`{`, `{"Node":7,`), `Node: number, want a string`},
		{with(`{`, `{"Node":"a\nb",`), `node "a\nb": want printable`},
		{with(`{`, `{"Node":"a b",`), `node "a b": want printable`},
		{with(`{`, `{"Node":"\u202e",`), `node want printable`},
		{with(`{`, `{"Node":"`+"\xff"+`",`), `node want printable`},
		{with(`{`, `{"Node":"`+strings.Repeat("n", 254)+`",`), `node 254 bytes, want at most 253`},
		{with(`{`, `{"Schema":2,`), `schema 2: want 1`},
		{with(`{`, `{"Schema":"1",`), `Schema: string, want a whole number`},
		{with(`{`, `{"MTU":-1,`), `MTU -1: want 0 to 65535`},
		{with(`{`, `{"MTU":65536,`), `MTU 65536: want 0 to 65535`},
	} {
		got, err := DecodeRecord([]byte(c.text))
		if err == nil {
			t.Errorf("%.200s: got %+v, want an error", c.text, got)
			continue
		}
		wantWords(t, c.text[:min(200, len(c.text))], err, c.words)
		if !reflect.DeepEqual(got, Lease{}) {
			t.Errorf("%.200s: a lease beside the error: %+v", c.text, got)
		}
	}
}

func TestEncodeRecordErrors(t *testing.T) {
	good := func() Lease {
		return Lease{Node: "node-1", Backend: "vxlan", VTEPs: []VTEP{{addr("192.0.2.7"), mac("0e:5d:60:c1:c5:2e"), 1}}}
	}
	if _, err := EncodeRecord(good()); err != nil {
		t.Fatal(err)
	}
	for words, spoil := range map[string]func(*Lease){
		`lease: node: missing`:                            func(l *Lease) { l.Node = "" },
		`lease: node "a b": want`:                         func(l *Lease) { l.Node = "a b" },
		`lease: backend "": want "vxlan"`:                 func(l *Lease) { l.Backend = "" },
		`lease: backend "udp": want "vxlan" or "host-gw"`: func(l *Lease) { l.Backend = "udp" },
		`lease: VTEP MAC VNI want neither`:                func(l *Lease) { l.Backend = "host-gw" },
		`lease: VTEP is after want IPv4 first`: func(l *Lease) { // the text has one order
			l.VTEPs = append([]VTEP{{addr("2001:db8::7"), mac("0e:5d:60:c1:c5:2f"), 1}}, l.VTEPs...)
		},
		`lease: MTU -1`:                    func(l *Lease) { l.MTU = -1 },
		`lease: VTEPs: none`:               func(l *Lease) { l.VTEPs = nil },
		`lease: VTEP one per`:              func(l *Lease) { l.VTEPs = append(l.VTEPs, l.VTEPs[0]) },
		`lease: VTEP MAC`:                  func(l *Lease) { l.VTEPs[0].MAC = MAC{} },
		`lease: VNI 0: want 1 to 16777215`: func(l *Lease) { l.VTEPs[0].VNI = 0 },
		`lease: underlay address: missing`: func(l *Lease) { l.VTEPs[0].Underlay = prefix("::/0").Addr().Prev() },
	} {
		l := good()
		spoil(&l)
		data, err := EncodeRecord(l)
		if err == nil {
			t.Errorf("%s: got %s, want an error", words, data)
			continue
		}
		wantWords(t, words, err, words)
	}
}

func TestReservation(t *testing.T) {
	v4, v6 := VTEP{addr("192.0.2.7"), mac("0e:5d:60:c1:c5:2e"), 1}, VTEP{addr("2001:db8::7"), mac("0e:5d:60:c1:c5:2f"), 1}
	for text, vteps := range map[string][]VTEP{
		`{"PublicIP":"192.0.2.7","PublicIPv6":null}`:          {v4},
		`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7"}`: {v4, v6},
		`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7"}`:   {v6},
		`{"PublicIP":"0.0.0.0","PublicIPv6":null}`:            nil,
	} {
		data, err := EncodeReservation(vteps)
		if err != nil || string(data) != text {
			t.Errorf("written as %s, %v\nwant       %s", data, err, text)
		}
		l, err := DecodeRecord(data)
		l.Subnets = prefixes("10.244.7.0/24")
		if err != nil || l.Node != "" || mustConfig(t, text4).Check(l) == nil {
			t.Errorf("%s: read as %+v, %v; want nobody's peer", text, l, err)
		}
		if back := (Request{Node: "node-1", VTEPs: vteps}); back.Inherits(l) != (len(vteps) > 0) {
			t.Errorf("%s: the node at this address inherits: %v", text, back.Inherits(l))
		}
	}
}

func TestParseRecord(t *testing.T) {
	want := Lease{Subnets: prefixes("10.5.52.0/24"), Backend: "vxlan", VTEPs: []VTEP{{addr("192.0.2.7"), mac("0e:5d:60:c1:c5:2e"), 1}}}
	if r := ParseRecord("10.5.52.0-24", []byte(flannelRecord)); r.Key != "10.5.52.0-24" || r.Err != nil || !reflect.DeepEqual(r.Lease, want) {
		t.Errorf("got %+v, want %+v", r, want)
	}
	// The subnet is taken even if what stands there makes no sense.
	if r := ParseRecord("10.5.52.0-24", []byte("garbage")); r.Err == nil || !reflect.DeepEqual(r.Lease, Lease{Subnets: want.Subnets}) {
		t.Errorf("garbage: got %+v", r)
	}
	if r := ParseRecord("garbage", []byte(flannelRecord)); r.Err == nil || !reflect.DeepEqual(r.Lease, Lease{}) {
		t.Errorf("garbage key: got %+v", r)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, s := range []string{
		`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"host-gw","Node":"node-1","Schema":1,"MTU":1500}`,
		flannelRecord, `{}`, `null`, `{"PublicIP":"192.0.2.7","BackendType":"host-gw"}`,
		`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendV6Data":{"VNI":77,"VtepMAC":"0e:5d:60:c1:c5:2f"},"Node":"node-1","Schema":1,"MTU":1450}`,
		`{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}}`, `{"Node":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	networks := map[string]Config{"vxlan": mustConfig(f, text46), "host-gw": mustConfig(f, textGW)}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := DecodeRecord(data)
		if err != nil {
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("%q: error is no log line: %q", data, err)
			}
			return
		}
		l.Subnets = prefixes("10.244.7.0/24")
		if cfg, ok := networks[l.Backend]; l.Node == "" || !ok || cfg.Check(l) != nil {
			return
		}
		// What may reach the kernel can be written, and reads the same.
		out, err := EncodeRecord(l)
		if err != nil {
			t.Fatalf("%q: %+v: %v", data, l, err)
		}
		again, err := DecodeRecord(out)
		again.Subnets = l.Subnets
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("%q: %+v\nwritten as %s\nread as %+v, %v", data, l, out, again, err)
		}
	})
}

func TestSinceOfARecord(t *testing.T) {
	l := Lease{Node: "a", Backend: "vxlan", VTEPs: []VTEP{{addr("192.0.2.7"), MAC{2, 0, 0, 0, 0, 1}, 1}}}
	l.Since = time.Date(2026, 1, 31, 13, 0, 0, 5e8, time.FixedZone("CET", 3600))
	data, err := EncodeRecord(l)
	if err != nil || !strings.Contains(string(data), `"Since":"2026-01-31T12:00:00Z"`) {
		t.Fatalf("%s, %v", data, err)
	}
	got, err := DecodeRecord(data)
	if err != nil || !got.Since.Equal(l.Since.Truncate(time.Second)) {
		t.Errorf("since %s, %v, want %s", got.Since, err, l.Since)
	}
	for _, bad := range []string{`"yesterday"`, `5`, `"9999-12-31T23:59:59-01:00"`} {
		_, err := DecodeRecord([]byte(strings.Replace(string(data), `"2026-01-31T12:00:00Z"`, bad, 1)))
		if err == nil || !strings.Contains(err.Error(), "Since") {
			t.Errorf("%s: %v, want an error about Since", bad, err)
		}
	}
}
