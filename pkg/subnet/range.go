package subnet

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// A family is what differs between IPv4 and IPv6 in the configuration.
type family struct {
	name       string // as in "an IPv6 network"
	prefix     string // of the SubnetLen, SubnetMin and SubnetMax keys
	networkKey string
	is4        bool
	bits       int            // of an address
	defaultLen int            // SubnetLen where the network has room for four such
	maxLen     int            // network, bridge, a pod and, in IPv4, broadcast
	notPods    []netip.Prefix // no pod network may touch these
}

var (
	family4 = family{
		name: "an IPv4", networkKey: "Network", is4: true, bits: 32, defaultLen: 24, maxLen: 30,
		// This host, loopback, multicast and up: RFC 6890.
		notPods: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3")},
	}
	family6 = family{
		name: "an IPv6", prefix: "IPv6", networkKey: "IPv6Network", bits: 128, defaultLen: 64, maxLen: 126,
		// Unspecified, loopback and IPv4-mapped; link-local; multicast.
		notPods: []netip.Prefix{netip.MustParsePrefix("::/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8")},
	}
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family4
	}
	return family6
}

func (f family) parse(raw rawRange) (Range, error) {
	network, err := f.parseNetwork(raw.network)
	if err != nil {
		return Range{}, err
	}
	r := Range{Network: network}
	if r.SubnetLen, err = f.parseLen(raw.length, network); err != nil {
		return Range{}, err
	}
	size := uint128{0, 1}.shl(f.bits - r.SubnetLen)
	first, last := toUint128(network.Addr()), toUint128(lastAddr(network))
	// The first subnet is left out: its first address is the network's own.
	r.Min = first.add(size).addr(f.is4)
	r.Max = last.shr(f.bits - r.SubnetLen).shl(f.bits - r.SubnetLen).addr(f.is4)
	if raw.min != nil {
		if r.Min, err = f.parseBound("SubnetMin", *raw.min, r); err != nil {
			return Range{}, err
		}
	} else if r.SubnetLen == network.Bits() {
		return Range{}, fmt.Errorf("%sSubnetLen %d: %s %s has only one such subnet, and the first is not leased: want a longer one",
			f.prefix, r.SubnetLen, f.networkKey, network)
	}
	if raw.max != nil {
		if r.Max, err = f.parseBound("SubnetMax", *raw.max, r); err != nil {
			return Range{}, err
		}
	}
	if r.Max.Less(r.Min) {
		return Range{}, fmt.Errorf("%sSubnetMin %s: is after %sSubnetMax %s", f.prefix, r.Min, f.prefix, r.Max)
	}
	return r, nil
}

func (f family) parseNetwork(raw *string) (netip.Prefix, error) {
	if raw == nil {
		return netip.Prefix{}, fmt.Errorf("%s: missing, want %s network such as %s", f.networkKey, f.name, f.example())
	}
	p, err := netip.ParsePrefix(*raw)
	switch {
	case err != nil || p.Addr().Is4() != f.is4:
		return netip.Prefix{}, fmt.Errorf("%s %s: want %s network such as %s", f.networkKey, quote(*raw), f.name, f.example())
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s %s: has host bits set, want %s", f.networkKey, p, p.Masked())
	}
	for _, no := range f.notPods {
		if p.Overlaps(no) {
			return netip.Prefix{}, fmt.Errorf("%s %s: overlaps %s, want a unicast network that pods can have", f.networkKey, p, no)
		}
	}
	return p, nil
}

func (f family) example() string {
	if f.is4 {
		return "10.244.0.0/16"
	}
	return "fd00:244::/48"
}

// parseLen checks or chooses the subnets' length: long enough to leave the
// network whole, short enough for a bridge and a pod.
func (f family) parseLen(raw *int64, network netip.Prefix) (int, error) {
	if raw == nil || *raw == 0 { // 0 is flannel's "not given"
		n := max(f.defaultLen, network.Bits()+2)
		if n > f.maxLen {
			return 0, fmt.Errorf("%s %s: too small for four subnets of /%d, want /%d or shorter", f.networkKey, network, f.maxLen, f.maxLen-2)
		}
		return n, nil
	}
	if *raw < int64(network.Bits()) || *raw > int64(f.maxLen) {
		return 0, fmt.Errorf("%sSubnetLen %d: want %d (as %s %s) to %d", f.prefix, *raw, network.Bits(), f.networkKey, network, f.maxLen)
	}
	return int(*raw), nil
}

func (f family) parseBound(key, raw string, r Range) (netip.Addr, error) {
	key = f.prefix + key
	a, err := netip.ParseAddr(raw)
	if err != nil || a.Is4() != f.is4 || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s %s: want %s address in %s", key, quote(raw), f.name, r.Network)
	}
	if !r.Network.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s %s: want an address in %s", key, a, r.Network)
	}
	if start := netip.PrefixFrom(a, r.SubnetLen).Masked().Addr(); start != a {
		return netip.Addr{}, fmt.Errorf("%s %s: is not where a /%d begins, want %s", key, a, r.SubnetLen, start)
	}
	return a, nil
}

// A uint128 is an address as a number.
type uint128 struct{ hi, lo uint64 }

// toUint128 takes an IPv4 address in its IPv4-mapped form.
func toUint128(a netip.Addr) uint128 {
	b := a.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (u uint128) addr(is4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], u.hi)
	binary.BigEndian.PutUint64(b[8:], u.lo)
	if is4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func (u uint128) add(v uint128) uint128 {
	lo, carry := bits.Add64(u.lo, v.lo, 0)
	hi, _ := bits.Add64(u.hi, v.hi, carry)
	return uint128{hi, lo}
}

func (u uint128) sub(v uint128) uint128 {
	lo, borrow := bits.Sub64(u.lo, v.lo, 0)
	hi, _ := bits.Sub64(u.hi, v.hi, borrow)
	return uint128{hi, lo}
}

// Shifts by 64 and more give 0 in Go, which makes one expression do for all.

func (u uint128) shl(n int) uint128 {
	if n >= 64 {
		return uint128{u.lo << (n - 64), 0}
	}
	return uint128{u.hi<<n | u.lo>>(64-n), u.lo << n}
}

func (u uint128) shr(n int) uint128 {
	if n >= 64 {
		return uint128{0, u.hi >> (n - 64)}
	}
	return uint128{u.hi >> n, u.lo>>n | u.hi<<(64-n)}
}

// lastAddr returns the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	hostBits := p.Addr().BitLen() - p.Bits()
	host := uint128{0, 1}.shl(hostBits).sub(uint128{0, 1}) // 1<<128 is 0, and 0-1 is all ones
	return toUint128(p.Masked().Addr()).add(host).addr(p.Addr().Is4())
}
