package ipam

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var testSubnet = netip.MustParsePrefix("10.244.1.0/24")

// example is an entry with all that an entry can have.
func example() entry {
	return entry{
		state: held, index: 7, key: Key{strings.Repeat("c", 64), "eth0"}, pod: "default/web-0",
		addrs:    [2]netip.Addr{netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("fd00::7")},
		acquired: 5 * time.Hour, released: 4 * time.Hour, mac: [6]byte{2, 0, 0, 0, 0, 9},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	longest := example()
	longest.key = Key{strings.Repeat("c", maxContainer), strings.Repeat("i", maxIfName)}
	longest.pod = ""
	freed := example()
	freed.state = free
	imported := example()
	imported.imported = true
	filtered := example()
	filtered.filtered, filtered.mac = true, [6]byte{}
	for _, e := range []entry{example(), longest, freed, imported, filtered, {state: free, index: 7, released: 1}} {
		r := record(e.encode())
		if reason := r.check(7, testSubnet); reason != "" {
			t.Errorf("%+v: %s", e, reason)
		}
		if got := r.entry(); got != e {
			t.Errorf("read %+v, want %+v", got, e)
		}
	}
	if b := (entry{index: 7, key: Key{"c", "i"}}).encode(); !blank(b) {
		t.Error("the record of an unused slot is not zero")
	}
}

// The longest names that Kubernetes has fit beside a 64-byte container id;
// what does not fit is cut between characters and marked.
func TestRecordPodIsCut(t *testing.T) {
	kube := strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253)
	for _, c := range []struct {
		name      string
		container int
		pod       string
		want      int // bytes, or less by a character cut
	}{
		{"kubernetes' longest", 64, kube, maxPod},
		{"beyond", 64, kube + "p", maxPod},
		{"long container id", maxContainer, kube, offCRC - offStrings - maxContainer - 4},
		{"wide characters", 64, strings.Repeat("ü", 300), maxPod},
	} {
		e := example()
		e.key.Container, e.pod = strings.Repeat("c", c.container), c.pod
		r := record(e.encode())
		if reason := r.check(7, testSubnet); reason != "" {
			t.Errorf("%s: %s", c.name, reason)
		}
		got := r.entry()
		start, cutOff := strings.CutSuffix(got.pod, "…")
		if cutOff != (len(c.pod) > c.want) || !strings.HasPrefix(c.pod, start) || !utf8.ValidString(got.pod) {
			t.Errorf("%s: pod is %q", c.name, got.pod)
		}
		if n := len(got.pod); n > c.want || n < min(len(c.pod), c.want-1) {
			t.Errorf("%s: pod has %d bytes, want %d", c.name, n, c.want)
		}
		if got.key != e.key {
			t.Errorf("%s: key is %v, want %v", c.name, got.key, e.key)
		}
	}
}

// Records with a right checksum that no entry encodes to.
func TestRecordCheckRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"state", func(b []byte) { b[0] = 3 }, "state 3, want 1 or 2"},
		{"unused but not zero", func(b []byte) { b[0] = 0 }, "state 0"},
		{"another slot's", func(b []byte) { b[8] = 9 }, "record is that of slot 9"},
		{"container id too long", func(b []byte) { b[1] = maxContainer + 1 }, "lengths 181, 4, 13"},
		{"interface name too long", func(b []byte) { b[2] = 16 }, "lengths 64, 16, 13"},
		{"pod too long", func(b []byte) { binary.LittleEndian.PutUint16(b[4:], maxPod+1) }, "lengths 64, 4, 318"},
		{"pod beyond the record", func(b []byte) { b[5] = 0xff }, "lengths 64, 4"},
		{"no container id", func(b []byte) { b[1], b[2] = 0, 4 }, "held without a key"},
		{"acquired before boot", func(b []byte) { b[23] = 0x80 }, "cannot be"},
		{"released before boot", func(b []byte) { b[31] = 0x80 }, "cannot be"},
		{"free, never released", func(b []byte) { b[0] = free; copy(b[24:32], zero[:]) }, "cannot be"},
		{"marks", func(b []byte) { b[3] = 4 }, "marks 4 in state 1"},
		{"free and imported", func(b []byte) { b[0], b[3] = free, 1; b[24] = 1 }, "marks 1 in state 2"},
		{"free and filtered", func(b []byte) { b[0], b[3] = free, 2; b[24] = 1 }, "marks 2 in state 2"},
		{"MAC of a group", func(b []byte) { b[offMAC] = 1 }, "bytes that the format does not know"},
		{"behind the MAC", func(b []byte) { b[offMAC+6] = 1 }, "bytes that the format does not know"},
		{"byte 12", func(b []byte) { b[12] = 1 }, "bytes that the format does not know"},
		{"behind the names", func(b []byte) { b[offCRC-1] = 1 }, "bytes that the format does not know"},
		{"family", func(b []byte) { b[7] = 5 }, "bytes that the format does not know"},
		{"IPv4 with more", func(b []byte) { b[32+4] = 1 }, "bytes that the format does not know"},
		{"address without family", func(b []byte) { b[7] = 0 }, "bytes that the format does not know"},
		{"another address", func(b []byte) { b[32+3] = 8 }, "holds address 10.244.1.8, want 10.244.1.7"},
	} {
		b := example().encode()
		c.change(b)
		seal(b)
		if got := record(b).check(7, testSubnet); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		b[offCRC] ^= 1
		if got := record(b).check(7, testSubnet); !strings.Contains(got, "checksum") {
			t.Errorf("%s without seal: %q, want the checksum named", c.name, got)
		}
	}
}

func TestHeader(t *testing.T) {
	for _, subnets := range []string{"10.244.1.0/24", "fd00:1::/64", "10.244.1.0/24 fd00:1::/64"} {
		l, _ := newLayout(prefixes(t, subnets))
		got, _, reason := parseHeader(l.header())
		if got != l || reason != "" {
			t.Errorf("%s: read %v, %s, want %v", subnets, got, reason, l)
		}
	}
	l, _ := newLayout(prefixes(t, "10.244.1.0/24 fd00:1::/64"))
	for _, c := range []struct {
		name   string
		change func(b []byte)
		offset int64
		want   string
	}{
		{"magic", func(b []byte) { b[0] = 'x' }, 0, "not a slot file"},
		{"version", func(b []byte) { b[8] = 1 }, 8, "format version 1, want 2"},
		{"record size", func(b []byte) { b[13] = 4 }, 8, "256 slots of 1024 bytes, want 256 of 512"},
		{"slots", func(b []byte) { b[17] = 2 }, 8, "512 slots of 512 bytes, want 256"},
		{"no subnet", func(b []byte) { b[24], b[42] = 0, 0 }, 24, "want one for each address family"},
		{"no first subnet", func(b []byte) { b[24] = 0 }, 8, "256 slots"},
		{"family", func(b []byte) { b[24] = 5 }, 24, "want a network address"},
		{"length", func(b []byte) { b[25] = 33 }, 24, "want a network address"},
		{"host bits", func(b []byte) { b[29] = 1 }, 24, "10.244.1.1/24: want a network address"},
		{"rest", func(b []byte) { b[offCRC-1] = 1 }, 8, "and nothing else"},
	} {
		b := l.header()
		c.change(b)
		seal(b)
		_, at, reason := parseHeader(b)
		if at != c.offset || !strings.Contains(reason, c.want) {
			t.Errorf("%s: offset %d: %q, want %d: %q", c.name, at, reason, c.offset, c.want)
		}
	}
}

// FuzzRecord: what passes the check is what its entry encodes to, byte by byte.
func FuzzRecord(f *testing.F) {
	f.Add(example().encode(), true)
	f.Add(entry{state: free, index: 7, released: 1}.encode(), false)
	f.Add(zero[:], false)
	f.Add([]byte("\x01\xff\xff\x00\xff\xff\x04\x06\x07"), true)
	f.Fuzz(func(t *testing.T, data []byte, reseal bool) {
		b := make([]byte, recordSize)
		copy(b, data)
		if reseal {
			seal(b)
		}
		if record(b).check(7, testSubnet) != "" {
			return
		}
		if e := record(b).entry(); !bytes.Equal(e.encode(), b) {
			t.Errorf("%+v encodes to other bytes than it was read from", e)
		}
	})
}

// FuzzHeader: the same for the header.
func FuzzHeader(f *testing.F) {
	for _, subnets := range []string{"10.244.1.0/24", "10.244.1.0/24 fd00:1::/64", "fd00::/120"} {
		l, _ := newLayout(prefixes(f, subnets))
		f.Add(l.header(), true)
		f.Add(l.header()[:60], false)
	}
	f.Fuzz(func(t *testing.T, data []byte, reseal bool) {
		b := make([]byte, recordSize)
		copy(b, data)
		if reseal {
			seal(b)
		}
		l, at, reason := parseHeader(b)
		if reason == "" && !bytes.Equal(l.header(), b) {
			t.Errorf("%v encodes to other bytes than it was read from", l)
		}
		if at < 0 || at >= recordSize {
			t.Errorf("damage at offset %d, want one inside the header", at)
		}
	})
}
