package subnet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// A block of a golden file: a name and the lines below it.
type block struct {
	name  string
	lines []string
}

// golden reads testdata/flannel/<name>. Empty lines and comments part blocks.
func golden(t *testing.T, name string, lines int) (blocks []block) {
	t.Helper()
	data, err := os.ReadFile("testdata/flannel/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		switch title, ok := strings.CutPrefix(line, "== "); {
		case ok:
			blocks = append(blocks, block{name: title})
		case line != "" && !strings.HasPrefix(line, "#"):
			b := &blocks[len(blocks)-1]
			b.lines = append(b.lines, line)
		}
	}
	if len(blocks) < 4 {
		t.Fatalf("%s: %d blocks, want more", name, len(blocks))
	}
	for _, b := range blocks {
		if len(b.lines) != lines {
			t.Fatalf("%s: block %q has %d lines, want %d", name, b.name, len(b.lines), lines)
		}
	}
	return blocks
}

// leaseText writes what flannel knows of a lease, as the golden files do.
func leaseText(l Lease) string {
	var parts []string
	for _, s := range l.Subnets {
		parts = append(parts, s.String())
	}
	parts = append(parts, cmp.Or(l.Backend, "-"))
	for _, v := range l.VTEPs {
		if v.MAC == (MAC{}) {
			parts = append(parts, v.Underlay.String())
		} else {
			parts = append(parts, fmt.Sprintf("%s=%s/%d", v.Underlay, v.MAC, v.VNI))
		}
	}
	return strings.Join(parts, " ")
}

func TestFlannelsRecordsAreRead(t *testing.T) {
	for _, b := range golden(t, "records.txt", 3) {
		t.Run(b.name, func(t *testing.T) {
			r := ParseRecord(b.lines[0], []byte(b.lines[1]))
			if r.Err != nil || r.Lease.Node != "" || leaseText(r.Lease) != b.lines[2] {
				t.Errorf("reads %q, node %q, %v\nwant  %q", leaseText(r.Lease), r.Lease.Node, r.Err, b.lines[2])
			}
			if key := Key(r.Lease.Subnets); key != b.lines[0] {
				t.Errorf("key %s is written %s", b.lines[0], key)
			}
			// What the golden files say is what flannel itself reads.
			if got, err := asFlannel(b.lines[0], []byte(b.lines[1])); err != nil || got != b.lines[2] {
				t.Errorf("flannel reads %q, %v\nwant %q", got, err, b.lines[2])
			}
		})
	}
}

// TestFlannelsAnnotationsAreRecords: an annotation's value is the text that
// stands in the record's field, so one decoder serves both stores.
func TestFlannelsAnnotationsAreRecords(t *testing.T) {
	for _, b := range golden(t, "annotations.txt", 3) {
		t.Run(b.name, func(t *testing.T) {
			var a map[string]string
			if err := json.Unmarshal([]byte(b.lines[1]), &a); err != nil {
				t.Fatal(err)
			}
			record := map[string]any{"BackendType": a["backend-type"]}
			for field, name := range map[string]string{"PublicIP": "public-ip", "PublicIPv6": "public-ipv6"} {
				if v, ok := a[name]; ok {
					record[field] = v
				}
			}
			for field, name := range map[string]string{"BackendData": "backend-data", "BackendV6Data": "backend-v6-data"} {
				if v, ok := a[name]; ok {
					record[field] = json.RawMessage(v)
				}
			}
			value, err := json.Marshal(record)
			if err != nil {
				t.Fatal(err)
			}
			l, err := DecodeRecord(value)
			l.Subnets = prefixes(strings.Split(b.lines[0], ",")...)
			if err != nil || leaseText(l) != b.lines[2] {
				t.Errorf("reads %q, %v\nwant  %q", leaseText(l), err, b.lines[2])
			}
		})
	}
}

// TestFlannelReadsOurs: what we write is, byte for byte, what stands in the
// golden file, and flannel's types read the same lease from it.
func TestFlannelReadsOurs(t *testing.T) {
	for _, b := range golden(t, "ours.txt", 3) {
		t.Run(b.name, func(t *testing.T) {
			r := ParseRecord(b.lines[0], []byte(b.lines[1]))
			if r.Err != nil || r.Lease.Node != "node-7" {
				t.Fatalf("node %q, %v", r.Lease.Node, r.Err)
			}
			written, err := EncodeRecord(r.Lease)
			if err != nil || string(written) != b.lines[1] {
				t.Errorf("written as %s, %v\nwant       %s", written, err, b.lines[1])
			}
			got, err := asFlannel(Key(r.Lease.Subnets), written)
			if err != nil || got != b.lines[2] {
				t.Errorf("flannel reads %q, %v\nwant          %q", got, err, b.lines[2])
			}
			// Flannel's part stands first and alone, as flannel would write it.
			theirs, _, _ := strings.Cut(b.lines[1], `,"Node"`)
			if again := rewrite(t, b.lines[1]); string(again) != theirs+"}" {
				t.Errorf("flannel would write %s\nwant                %s}", again, theirs)
			}
		})
	}
}

// A flannelIP is one of the two address types of flannel's record: as JSON a
// string with an address, and no null (net.ParseIP of what is between the
// quotes; pkg/ip/ipnet.go, pkg/ip/ip6net.go).
type flannelIP struct{ net.IP }

func (ip *flannelIP) UnmarshalJSON(b []byte) error {
	if ip.IP = net.ParseIP(string(bytes.Trim(b, `"`))); ip.IP == nil {
		return errors.New("invalid IP address format")
	}
	return nil
}

func (ip flannelIP) MarshalJSON() ([]byte, error) { return json.Marshal(ip.String()) }

// A flannelMAC is net.HardwareAddr with flannel's JSON form: a quoted string.
type flannelMAC struct{ net.HardwareAddr }

func (m *flannelMAC) UnmarshalJSON(b []byte) (err error) {
	if len(b) < 2 || b[0] != '"' {
		return errors.New("error parsing hardware addr")
	}
	m.HardwareAddr, err = net.ParseMAC(string(b[1 : len(b)-1]))
	return err
}

// flannelAttrs has the field types of flannel's LeaseAttrs (pkg/lease/lease.go), and
// flannelEnd those of its vxlanLeaseAttrs (pkg/backend/vxlan/vxlan_network.go). Of
// these types follows what flannel can read.
type (
	flannelAttrs struct {
		PublicIP      flannelIP
		PublicIPv6    *flannelIP
		BackendType   string          `json:",omitempty"`
		BackendData   json.RawMessage `json:",omitempty"`
		BackendV6Data json.RawMessage `json:",omitempty"`
	}
	flannelEnd struct {
		VNI     uint16
		VtepMAC flannelMAC
	}
)

// asFlannel reads key and value with flannel's types.
func asFlannel(key string, value []byte) (string, error) {
	parts := flannelKey.FindStringSubmatch("/coreos.com/network/subnets/" + key)
	if parts == nil {
		return "", fmt.Errorf("key %s is none to flannel", key)
	}
	var l Lease
	if parts[1] != "0.0.0.0" {
		l.Subnets = append(l.Subnets, netip.MustParsePrefix(parts[1]+"/"+parts[2]))
	}
	if parts[3] != "" {
		l.Subnets = append(l.Subnets, netip.MustParsePrefix(parts[3]+"/"+parts[4]))
	}
	var a flannelAttrs
	if err := json.Unmarshal(value, &a); err != nil {
		return "", err
	}
	l.Backend = a.BackendType
	add := func(ip net.IP, data json.RawMessage) error {
		if ip == nil || ip.IsUnspecified() {
			return nil
		}
		addr, _ := netip.AddrFromSlice(ip)
		v := VTEP{Underlay: addr.Unmap()}
		if a.BackendType == TypeVXLAN {
			var end flannelEnd
			if err := json.Unmarshal(data, &end); err != nil {
				return fmt.Errorf("data %s: %w", data, err)
			}
			v.VNI, v.MAC = uint32(end.VNI), MAC(end.VtepMAC.HardwareAddr)
		}
		l.VTEPs = append(l.VTEPs, v)
		return nil
	}
	err := add(a.PublicIP.IP, a.BackendData)
	if a.PublicIPv6 != nil {
		err = errors.Join(err, add(a.PublicIPv6.IP, a.BackendV6Data))
	}
	return leaseText(l), err
}

// rewrite reads a value with flannel's types and writes it as flannel does when
// it renews a lease.
func rewrite(t *testing.T, value string) []byte {
	t.Helper()
	var a flannelAttrs
	if err := json.Unmarshal([]byte(value), &a); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestAsFlannelIsFlannel: the test's decoder refuses what flannel refuses.
func TestAsFlannelIsFlannel(t *testing.T) {
	for _, value := range []string{
		`{"PublicIP":null,"BackendType":"vxlan"}`, // json calls UnmarshalJSON with null unless the field is a pointer
		`{"PublicIP":"","BackendType":"vxlan"}`,
		`{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VNI":65536,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`,
		`{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":7}}`,
		`{"PublicIP":"192.0.2.7","BackendType":"vxlan"}`,
	} {
		if got, err := asFlannel("10.244.7.0-24", []byte(value)); err == nil {
			t.Errorf("%s: read as %q, want an error", value, got)
		}
	}
}
