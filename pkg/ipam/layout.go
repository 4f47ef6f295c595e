package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// MaxSlots bounds a file (32 MiB), however large the subnet is.
const MaxSlots = 1 << 16

// The first slots are never given.
const (
	slotNetwork = 0 // network address, and the VTEP's
	slotGateway = 1 // the bridge
	firstSlot   = 2
)

// A layout is the mapping of slots to addresses.
type layout struct {
	subnets [2]netip.Prefix // the second is the zero Prefix if there is one family
	count   int             // slots, reserved ones included
}

// newLayout checks the node's subnets: one or two, IPv4 first.
func newLayout(subnets []netip.Prefix) (layout, error) {
	if len(subnets) < 1 || len(subnets) > 2 {
		return layout{}, fmt.Errorf("subnets %v: want one for each address family", subnets)
	}
	var l layout
	for i, s := range subnets {
		if !s.IsValid() || s != s.Masked() || s.Addr().Is4In6() {
			return layout{}, fmt.Errorf("subnet %s: want a network address and its length", s)
		}
		host := s.Addr().BitLen() - s.Bits()
		if host < 2 {
			return layout{}, fmt.Errorf("subnet %s: want at least 4 addresses", s)
		}
		size := MaxSlots
		if host < 16 {
			size = 1 << host
		}
		l.subnets[i] = s
		if i == 0 {
			l.count = size
			continue
		}
		if !l.subnets[0].Addr().Is4() || s.Addr().Is4() {
			return layout{}, fmt.Errorf("subnets %v: want IPv4 first, then IPv6", subnets)
		}
		if size < l.count {
			return layout{}, fmt.Errorf("subnet %s: want at least the %d addresses that %s has", s, l.count, subnets[0])
		}
	}
	return l, nil
}

// families returns the number of subnets.
func (l layout) families() int {
	if l.subnets[1].IsValid() {
		return 2
	}
	return 1
}

// end returns the first slot behind those that may be given. The last address
// of an IPv4 subnet is its broadcast address.
func (l layout) end() int {
	first := l.subnets[0]
	if first.Addr().Is4() && 32-first.Bits() <= 16 {
		return l.count - 1
	}
	return l.count
}

// addrs returns the addresses of slot i; the second is invalid if there is but
// one family.
func (l layout) addrs(i int) (a [2]netip.Addr) {
	for f := range l.families() {
		a[f] = nth(l.subnets[f], i)
	}
	return a
}

// index returns the slot of an address, and whether it has one.
func (l layout) index(a netip.Addr) (int, bool) {
	for f := range l.families() {
		if s := l.subnets[f]; s.Contains(a) {
			i, ok := distance(s.Addr(), a)
			return i, ok && i < l.count
		}
	}
	return 0, false
}

// nth returns the i-th address of a subnet, which has that many.
func nth(s netip.Prefix, i int) netip.Addr {
	if s.Addr().Is4() {
		b := s.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i))
		return netip.AddrFrom4(b)
	}
	b := s.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(i))
	return netip.AddrFrom16(b)
}

// distance returns how far a is from the network address base, of the same
// family, and whether that is less than MaxSlots.
func distance(base, a netip.Addr) (int, bool) {
	x, y := base.As16(), a.As16() // IPv4 becomes ::ffff:a.b.c.d, at the same distance
	if [8]byte(x[:8]) != [8]byte(y[:8]) {
		return 0, false
	}
	d := binary.BigEndian.Uint64(y[8:]) - binary.BigEndian.Uint64(x[8:])
	return int(d), d < MaxSlots
}

const filePrefix = "slots-"

// fileName returns the name of the file for the node's first subnet:
// slots-10.244.1.0-24.
func fileName(first netip.Prefix) string {
	return filePrefix + strings.NewReplacer(":", "-", "/", "-").Replace(first.String())
}

// isFileName says whether fileName can have made name. Everything else in the
// folder is not ours to read.
func isFileName(name string) bool {
	text, ok := strings.CutPrefix(name, filePrefix)
	cut := strings.LastIndexByte(text, '-')
	if !ok || cut < 0 {
		return false
	}
	addr, bits := text[:cut], text[cut+1:]
	if !strings.Contains(addr, ".") {
		addr = strings.ReplaceAll(addr, "-", ":")
	}
	s, err := netip.ParsePrefix(addr + "/" + bits)
	return err == nil && s == s.Masked() && fileName(s) == name
}
