package subnet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// ErrNoSubnet says that every subnet of a range is taken.
var ErrNoSubnet = errors.New("no subnet is free")

// Allocate chooses one subnet per range of cfg, IPv4 first, that overlaps none
// of taken. It takes one of want if that fits; else it starts at a place that
// depends on the node and takes the first that is free from there on. So a node
// tends to get the same subnet again, and nodes that race rarely meet. The
// choice depends on nothing but the arguments.
//
// Taken need not be aligned, masked or inside the network. A range with more
// than 2^64 subnets is used in its first 2^64.
func Allocate(cfg Config, node string, want, taken []netip.Prefix) ([]netip.Prefix, error) {
	var got []netip.Prefix
	for _, r := range cfg.Ranges {
		s, err := r.allocate(node, want, taken)
		if err != nil {
			return nil, err
		}
		got = append(got, s)
	}
	return got, nil
}

func (r Range) allocate(node string, want, taken []netip.Prefix) (netip.Prefix, error) {
	blocked, n := r.blocked(taken)
	last := r.last()
	for _, w := range want {
		if i, ok := r.index(w); ok {
			if j, found := nextFree(blocked, i, last); found && i == j {
				return w, nil
			}
		}
	}
	start := hash(node)
	if last < math.MaxUint64 {
		start %= last + 1
	}
	i, found := nextFree(blocked, start, last)
	if !found {
		i, found = nextFree(blocked, 0, last)
	}
	if !found {
		return netip.Prefix{}, fmt.Errorf("%w: %s, subnets of /%d from %s to %s, %d taken",
			ErrNoSubnet, r.Network, r.SubnetLen, r.Min, r.Max, n)
	}
	return r.at(i), nil
}

// hash spreads nodes over a range.
func hash(node string) uint64 {
	sum := sha256.Sum256([]byte(node))
	return binary.BigEndian.Uint64(sum[:8])
}

// Subnets of a range are numbered from 0, at Min, to last, at Max.

func (r Range) shift() int { return r.Network.Addr().BitLen() - r.SubnetLen }

func (r Range) number(a netip.Addr) uint64 {
	n := toUint128(a).sub(toUint128(r.Min)).shr(r.shift())
	if n.hi > 0 {
		return math.MaxUint64
	}
	return n.lo
}

func (r Range) last() uint64 { return r.number(r.Max) }

func (r Range) at(i uint64) netip.Prefix {
	a := toUint128(r.Min).add(uint128{0, i}.shl(r.shift()))
	return netip.PrefixFrom(a.addr(r.Network.Addr().Is4()), r.SubnetLen)
}

// index returns the number of a subnet and whether it is one of the range.
func (r Range) index(p netip.Prefix) (uint64, bool) {
	a := p.Addr()
	if a.Is4() != r.Network.Addr().Is4() || p.Bits() != r.SubnetLen || p != p.Masked() || a.Less(r.Min) || r.Max.Less(a) {
		return 0, false
	}
	i := r.number(a)
	return i, r.at(i) == p
}

// A span is the subnets first to last, both inclusive.
type span struct{ first, last uint64 }

// blocked returns what taken covers of the range, sorted, with neighbours
// joined, and how many of taken touch it.
func (r Range) blocked(taken []netip.Prefix) ([]span, int) {
	end := lastAddr(netip.PrefixFrom(r.Max, r.SubnetLen))
	var spans []span
	for _, t := range taken {
		if !t.IsValid() || t.Addr().Is4() != r.Network.Addr().Is4() {
			continue
		}
		low, high := t.Masked().Addr(), lastAddr(t)
		if high.Less(r.Min) || end.Less(low) {
			continue
		}
		if low.Less(r.Min) {
			low = r.Min
		}
		if end.Less(high) {
			high = end
		}
		spans = append(spans, span{r.number(low), r.number(high)})
	}
	n := len(spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	joined := spans[:0]
	for _, s := range spans {
		if k := len(joined) - 1; k >= 0 && (s.first <= joined[k].last || s.first == joined[k].last+1) {
			joined[k].last = max(joined[k].last, s.last)
		} else {
			joined = append(joined, s)
		}
	}
	return joined, n
}

// nextFree returns the first number from i to last that no span covers.
func nextFree(blocked []span, i, last uint64) (uint64, bool) {
	k, _ := slices.BinarySearchFunc(blocked, i, func(s span, i uint64) int { return cmp.Compare(s.last, i) })
	if k == len(blocked) || i < blocked[k].first {
		return i, true
	}
	if blocked[k].last >= last {
		return 0, false
	}
	return blocked[k].last + 1, true
}
