package pod

import (
	"bytes"
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// What the filter needs of nftables' messages (linux/netfilter/nf_tables.h).
// Numbers are in network byte order. The messages are few
// enough to be written by hand, and one of them that ADD sends.

// An attr is one attribute: bytes, or others that are nested in it.
type attr struct {
	kind   uint16
	value  []byte
	nested []attr // nil: it has value
}

func bytesAttr(kind uint16, value []byte) attr { return attr{kind: kind, value: value} }

func textAttr(kind uint16, text string) attr { return bytesAttr(kind, append([]byte(text), 0)) }

func numberAttr(kind uint16, n uint32) attr {
	return bytesAttr(kind, binary.BigEndian.AppendUint32(nil, n))
}

func nestAttr(kind uint16, attrs ...attr) attr {
	return attr{kind: kind, nested: append([]attr{}, attrs...)}
}

// dataAttr is a value to compare with, or the key of an element.
func dataAttr(kind uint16, value []byte) attr {
	return nestAttr(kind, bytesAttr(unix.NFTA_DATA_VALUE, value))
}

// append writes the attribute behind b, padded.
func (a attr) append(b []byte) []byte {
	start, kind := len(b), a.kind
	b = append(b, make([]byte, unix.SizeofRtAttr)...)
	if a.nested == nil {
		b = append(b, a.value...)
	} else {
		kind |= unix.NLA_F_NESTED
		for _, n := range a.nested {
			b = n.append(b)
		}
	}
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	binary.NativeEndian.PutUint16(b[start+2:], kind)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// within says whether an attribute that the kernel told has all that a has: the
// kernel adds what it counts, and the defaults of what nobody asked for.
func (a attr) within(value []byte) bool {
	if a.nested == nil {
		return bytes.Equal(a.value, value)
	}
	for _, n := range a.nested {
		found := false
		rtnl.EachAttr(value, func(kind uint16, v []byte) {
			found = found || kind == n.kind && n.within(v)
		})
		if !found {
			return false
		}
	}
	return true
}

// sameList says whether a list that the kernel told is that one, each element in
// its place.
func sameList(want []attr, value []byte) bool {
	n, same := 0, true
	rtnl.EachAttr(value, func(kind uint16, v []byte) {
		same = same && n < len(want) && kind == want[n].kind && want[n].within(v)
		n++
	})
	return same && n == len(want)
}

// nftRequest is a message about a table of the bridge family.
func nftRequest(kind, flags int, attrs ...attr) *nl.NetlinkRequest {
	req := rtnl.NewNetfilter(unix.NFNL_SUBSYS_NFTABLES, kind, flags, unix.NFPROTO_BRIDGE)
	for _, a := range attrs {
		req.AddRawData(a.append(nil))
	}
	return req
}

// An expression is one step of a rule: a name and attributes of its own.
func expression(name string, attrs ...attr) attr {
	return nestAttr(unix.NFTA_LIST_ELEM, textAttr(unix.NFTA_EXPR_NAME, name), nestAttr(unix.NFTA_EXPR_DATA, attrs...))
}

// register is the kernel's number for the n-th 32 bits of a rule's memory. Where 128
// bits begin it tells the name that it had for them before.
func register(n int) uint32 {
	if n%4 == 0 {
		return uint32(unix.NFT_REG_1 + n/4)
	}
	return uint32(unix.NFT_REG32_00 + n)
}

// meta loads what the kernel knows of a packet.
func meta(key uint32, to int) attr {
	return expression("meta", numberAttr(unix.NFTA_META_KEY, key), numberAttr(unix.NFTA_META_DREG, register(to)))
}

// A part is a place in a packet: a header (unix.NFT_PAYLOAD_…), and bytes of it.
type part struct {
	header       uint32
	offset, size int
}

// load loads it.
func (p part) load(to int) attr {
	return expression("payload",
		numberAttr(unix.NFTA_PAYLOAD_DREG, register(to)), numberAttr(unix.NFTA_PAYLOAD_BASE, p.header),
		numberAttr(unix.NFTA_PAYLOAD_OFFSET, uint32(p.offset)), numberAttr(unix.NFTA_PAYLOAD_LEN, uint32(p.size)))
}

// compare goes on with the rule if a register has that relation to a value.
func compare(op uint32, at int, value ...byte) attr {
	return expression("cmp", numberAttr(unix.NFTA_CMP_SREG, register(at)), numberAttr(unix.NFTA_CMP_OP, op),
		dataAttr(unix.NFTA_CMP_DATA, value))
}

// mask takes bits off a register.
func mask(at int, bits ...byte) attr {
	return expression("bitwise", numberAttr(unix.NFTA_BITWISE_SREG, register(at)), numberAttr(unix.NFTA_BITWISE_DREG, register(at)),
		numberAttr(unix.NFTA_BITWISE_LEN, uint32(len(bits))),
		dataAttr(unix.NFTA_BITWISE_MASK, bits), dataAttr(unix.NFTA_BITWISE_XOR, make([]byte, len(bits))))
}

// lookup goes on with the rule if what begins at register 0 is in a set; inverted,
// if it is not.
func lookup(set string, inverted bool) attr {
	flags := uint32(0)
	if inverted {
		flags = unix.NFT_LOOKUP_F_INV
	}
	return expression("lookup", textAttr(unix.NFTA_LOOKUP_SET, set), numberAttr(unix.NFTA_LOOKUP_SREG, register(0)),
		numberAttr(unix.NFTA_LOOKUP_FLAGS, flags))
}

// verdict ends the rule, or leads to a chain.
func verdict(code int32, chain ...string) attr {
	attrs := []attr{numberAttr(unix.NFTA_VERDICT_CODE, uint32(code))}
	for _, c := range chain {
		attrs = append(attrs, textAttr(unix.NFTA_VERDICT_CHAIN, c))
	}
	return expression("immediate", numberAttr(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		nestAttr(unix.NFTA_IMMEDIATE_DATA, nestAttr(unix.NFTA_DATA_VERDICT, attrs...)))
}

func counter() attr { return expression("counter") }
