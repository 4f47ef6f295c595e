package firewall

import (
	"bytes"
	"net/netip"
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// sameChain compares what a chain is, without its rules.
func sameChain(have, want *nftables.Chain) bool {
	return have.Type == want.Type && have.Device == want.Device &&
		same(have.Hooknum, want.Hooknum) && same(have.Priority, want.Priority) && same(have.Policy, want.Policy)
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// sameRule compares what a rule does, without what it has counted.
func sameRule(have, want *nftables.Rule) bool {
	if len(have.Exprs) != len(want.Exprs) || !bytes.Equal(have.UserData, want.UserData) {
		return false
	}
	for i, h := range have.Exprs {
		w := want.Exprs[i]
		switch h := h.(type) {
		case *expr.Counter:
			if _, ok := w.(*expr.Counter); !ok {
				return false
			}
		case *expr.Lookup:
			// The id is one of a transaction; the kernel tells none.
			w, ok := w.(*expr.Lookup)
			if !ok || h.SetName != w.SetName || h.Invert != w.Invert || h.IsDestRegSet || h.SourceRegister != w.SourceRegister {
				return false
			}
		default:
			if !reflect.DeepEqual(h, w) {
				return false
			}
		}
	}
	return true
}

func sameSet(have, want *nftables.Set) bool {
	return have.KeyType.Name == want.KeyType.Name && have.KeyType.Bytes == want.KeyType.Bytes && have.Interval == want.Interval &&
		!have.Constant && !have.IsMap && !have.HasTimeout && !have.Dynamic && !have.Concatenation && have.Size == 0
}

// elements is what the set's members are to the kernel: of a range, its first
// address and the first one behind it.
func (s nftSet) elements() (list []nftables.SetElement) {
	for _, p := range s.members {
		list = append(list, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := behind(p); s.Interval && end.IsValid() {
			list = append(list, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return list
}

// behind is the first address after a prefix; invalid after the last one of all.
func behind(p netip.Prefix) netip.Addr {
	last := p.Addr().AsSlice()
	for i, m := range maskOf(p) {
		last[i] |= ^m
	}
	a, _ := netip.AddrFromSlice(last)
	return a.Next()
}

// diff compares the set with what the kernel says that is in it. An element that
// ages, or that cannot be ours, is to be removed whatever its address.
func (s nftSet) diff(elements []nftables.SetElement) (add, remove []netip.Addr) {
	type member struct {
		addr netip.Addr
		end  bool
	}
	left := map[member]bool{}
	for _, e := range s.elements() {
		a, _ := netip.AddrFromSlice(e.Key)
		left[member{a, e.IntervalEnd}] = true
	}
	for _, e := range elements {
		a, _ := netip.AddrFromSlice(e.Key)
		if m := (member{a, e.IntervalEnd}); left[m] {
			delete(left, m)
		} else {
			remove = append(remove, a)
		}
	}
	for m := range left {
		add = append(add, m.addr)
	}
	return add, remove
}
