package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"
	"unicode/utf8"
)

// A slot file is a sequence of records of recordSize bytes, the header and
// then one a slot. Numbers are little-endian. 512 divides the page size, so no
// record crosses a page; the kernel copies a write into one page as a whole,
// whatever signal is pending.
//
//	header                          slot
//	  0  magic                        0  state (u8)
//	  8  format version (u32)         1  length of container id (u8)
//	 12  record size (u32)            2  length of interface name (u8)
//	 16  slots (u32)                  3  1: imported, 2: filtered (u8)
//	                                  4  length of pod (u16)
//	 24  2 × subnet:                  6  2 × address family: 0, 4 or 6 (u8)
//	     family (u8), bits (u8),      8  slot number (u32)
//	     address (16)                16  time of acquire, ns since boot (u64)
//	508  CRC32C of 0…507             24  time of last release (u64), 0: none
//	                                 32  2 × address (16)
//	                                 64  MAC (6), 0: none was asked for
//	                                 72  container id, interface name, pod
//	                                508  CRC32C of 0…507
//
// What is not listed is zero, and so is all of a slot that was never used.
const (
	recordSize    = 512
	formatVersion = 2
	magic         = "vxcslots"

	offSubnets = 24
	offMAC     = 64
	offStrings = 72
	offCRC     = 508
)

// Marks of a held slot.
const (
	markImported = 1 << iota
	markFiltered
)

// What fits. Container ids have 64 bytes in practice and no bound in the CNI
// specification; interface names are IFNAMSIZ-1; Kubernetes bounds namespaces
// with 63 and pod names with 253.
const (
	maxContainer = 180
	maxIfName    = 15
	maxPod       = 63 + 1 + 253
)

// States of a slot.
const (
	unused byte = iota
	held
	free // held before
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An entry is what a slot's record says. One that is free still names its last
// holder, unless that was undone by Cancel.
type entry struct {
	state    byte
	index    int
	key      Key
	pod      string
	addrs    [2]netip.Addr
	acquired time.Duration // since boot
	released time.Duration // since boot, before acquired if held; 0: never
	imported bool          // held, and not by an Acquire
	mac      [6]byte       // that was asked for; 0: none
	filtered bool          // held, with the filter
}

// encode writes the record. The key must fit; of the pod's name what does.
func (e entry) encode() []byte {
	b := make([]byte, recordSize)
	if e.state == unused {
		return b
	}
	room := offCRC - offStrings - len(e.key.Container) - len(e.key.IfName)
	pod := cut(e.pod, min(room, maxPod))
	b[0], b[1], b[2] = e.state, byte(len(e.key.Container)), byte(len(e.key.IfName))
	if e.imported {
		b[3] = markImported
	}
	if e.filtered {
		b[3] |= markFiltered
	}
	copy(b[offMAC:], e.mac[:])
	binary.LittleEndian.PutUint16(b[4:], uint16(len(pod)))
	binary.LittleEndian.PutUint32(b[8:], uint32(e.index))
	binary.LittleEndian.PutUint64(b[16:], uint64(e.acquired))
	binary.LittleEndian.PutUint64(b[24:], uint64(e.released))
	for i, a := range e.addrs {
		b[6+i] = putAddr(b[32+16*i:], a)
	}
	n := offStrings + copy(b[offStrings:], e.key.Container)
	n += copy(b[n:], e.key.IfName)
	copy(b[n:], pod)
	seal(b)
	return b
}

// cut shortens s to n bytes, with a mark.
func cut(s string, n int) string {
	const mark = "…"
	if len(s) <= n {
		return s
	}
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// seal sets a record's checksum.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[offCRC:], crc32.Checksum(b[:offCRC], castagnoli))
}

// sealed says whether the checksum is right.
func sealed(b []byte) bool {
	return binary.LittleEndian.Uint32(b[offCRC:]) == crc32.Checksum(b[:offCRC], castagnoli)
}

// putAddr writes an address and returns its family.
func putAddr(b []byte, a netip.Addr) byte {
	switch {
	case a.Is4():
		copy(b, a.AsSlice())
		return 4
	case a.Is6():
		copy(b, a.AsSlice())
		return 6
	}
	return 0
}

// getAddr reads what putAddr wrote.
func getAddr(b []byte, family byte) netip.Addr {
	switch family {
	case 4:
		return netip.AddrFrom4([4]byte(b))
	case 6:
		return netip.AddrFrom16([16]byte(b))
	}
	return netip.Addr{}
}

// A record is a slot's bytes, read in place: most of a file is looked at and
// left.
type record []byte

// zero is a slot that was never used.
var zero [recordSize]byte

func (r record) state() byte             { return r[0] }
func (r record) released() time.Duration { return time.Duration(binary.LittleEndian.Uint64(r[24:])) }
func (r record) acquired() time.Duration { return time.Duration(binary.LittleEndian.Uint64(r[16:])) }
func (r record) addr(i int) netip.Addr   { return getAddr(r[32+16*i:], r[6+i]) }

// texts returns container id, interface name and pod, in place.
func (r record) texts() (container, ifName, pod []byte) {
	c := offStrings + int(r[1])
	i := c + int(r[2])
	p := i + int(binary.LittleEndian.Uint16(r[4:]))
	return r[offStrings:c], r[c:i], r[i:p]
}

// holds says whether the slot is held by key.
func (r record) holds(key Key) bool {
	if r.state() != held {
		return false
	}
	container, ifName, _ := r.texts()
	return string(container) == key.Container && string(ifName) == key.IfName
}

// entry copies the record out. It must have passed check.
func (r record) entry() entry {
	container, ifName, pod := r.texts()
	return entry{
		state:    r.state(),
		index:    int(binary.LittleEndian.Uint32(r[8:])),
		key:      Key{string(container), string(ifName)},
		pod:      string(pod),
		addrs:    [2]netip.Addr{r.addr(0), r.addr(1)},
		acquired: r.acquired(),
		released: r.released(),
		imported: r[3]&markImported != 0,
		mac:      [6]byte(r[offMAC:]),
		filtered: r[3]&markFiltered != 0,
	}
}

// check returns what is wrong with the record of slot i, or "". A record that
// passes is exactly what its entry encodes to.
func (r record) check(i int, first netip.Prefix) string {
	if blank(r) {
		return ""
	}
	if !sealed(r) {
		return fmt.Sprintf("slot %d: checksum is wrong: the record is torn or foreign", i)
	}
	end := offStrings + int(r[1]) + int(r[2]) + int(binary.LittleEndian.Uint16(r[4:]))
	switch {
	case r.state() != held && r.state() != free:
		return fmt.Sprintf("slot %d: state %d, want %d or %d", i, r.state(), held, free)
	case binary.LittleEndian.Uint32(r[8:]) != uint32(i):
		return fmt.Sprintf("slot %d: record is that of slot %d", i, binary.LittleEndian.Uint32(r[8:]))
	case r[1] > maxContainer || r[2] > maxIfName || end > offCRC || end > offStrings+int(r[1])+int(r[2])+maxPod:
		return fmt.Sprintf("slot %d: lengths %d, %d, %d of its names do not fit",
			i, r[1], r[2], binary.LittleEndian.Uint16(r[4:]))
	case r.acquired() < 0 || r.released() < 0 || r.state() == free && r.released() == 0:
		return fmt.Sprintf("slot %d: times %d and %d cannot be", i, r.acquired(), r.released())
	case r.state() == held && (r[1] == 0 || r[2] == 0):
		return fmt.Sprintf("slot %d: held without a key", i)
	case r[3] > markImported|markFiltered || r[3] != 0 && r.state() != held:
		return fmt.Sprintf("slot %d: marks %d in state %d, want 1 (imported) and 2 (filtered) only where it is held", i, r[3], r.state())
	case binary.LittleEndian.Uint32(r[12:]) != 0 || r[offMAC]&1 != 0 || !blank(r[offMAC+6:offStrings]) || !blank(r[end:offCRC]) || !r.addrsClean():
		return fmt.Sprintf("slot %d: bytes that the format does not know", i)
	}
	if a := nth(first, i); r.state() == held && r.addr(0) != a {
		return fmt.Sprintf("slot %d: holds address %s, want %s", i, r.addr(0), a)
	}
	return ""
}

// addrsClean says whether both addresses are as putAddr leaves them.
func (r record) addrsClean() bool {
	for i := range 2 {
		a, used := r[32+16*i:48+16*i], 0
		switch r[6+i] {
		case 0:
		case 4:
			used = 4
		case 6:
			used = 16
		default:
			return false
		}
		if !blank(a[used:]) {
			return false
		}
	}
	return true
}

// blank says whether a part of a record is all zero.
func blank(b []byte) bool { return bytes.Equal(b, zero[:len(b)]) }

// header encodes the first record.
func (l layout) header() []byte {
	b := make([]byte, recordSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], recordSize)
	binary.LittleEndian.PutUint32(b[16:], uint32(l.count))
	for i := range l.families() {
		p := b[offSubnets+18*i:]
		p[0] = putAddr(p[2:], l.subnets[i].Addr())
		p[1] = byte(l.subnets[i].Bits())
	}
	seal(b)
	return b
}

// parseHeader reads the first record. If reason is not "", it is what is
// wrong, at offset.
func parseHeader(b []byte) (l layout, offset int64, reason string) {
	switch {
	case string(b[:len(magic)]) != magic:
		return l, 0, fmt.Sprintf("begins with %q, want %q: not a slot file", b[:len(magic)], magic)
	case binary.LittleEndian.Uint32(b[8:]) != formatVersion:
		return l, 8, fmt.Sprintf("format version %d, want %d", binary.LittleEndian.Uint32(b[8:]), formatVersion)
	case !sealed(b):
		return l, 0, "header: checksum is wrong: it is torn or foreign"
	}
	var subnets []netip.Prefix
	for i := range 2 {
		p := b[offSubnets+18*i:]
		if p[0] != 0 {
			subnets = append(subnets, netip.PrefixFrom(getAddr(p[2:], p[0]), int(p[1])))
		}
	}
	l, err := newLayout(subnets)
	if err != nil {
		return l, offSubnets, "header: " + err.Error()
	}
	if [recordSize]byte(l.header()) != [recordSize]byte(b) {
		return l, 8, fmt.Sprintf("header: %d slots of %d bytes, want %d of %d, and nothing else", binary.LittleEndian.Uint32(b[16:]),
			binary.LittleEndian.Uint32(b[12:]), l.count, recordSize)
	}
	return l, 0, ""
}
