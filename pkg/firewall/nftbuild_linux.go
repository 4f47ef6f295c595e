package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Table is the name of our nftables table; its family is inet.
const Table = "vxlan-cni"

// nftTable is a table as it should be.
type nftTable struct {
	table  *nftables.Table
	sets   []nftSet
	chains []nftChain
}

type nftSet struct {
	*nftables.Set
	members []netip.Prefix
}

type nftChain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

// natPriority is a little behind where others translate sources: what knows
// more about a connection than we do decides first, and the kernel asks no
// further once a connection has its translation.
const natPriority = 110

var accept = nftables.ChainPolicyAccept

// buildTable puts r into nftables' terms; nil if there is nothing to do.
func buildTable(r Rules) *nftTable {
	chains := r.chains()
	if len(chains) == 0 {
		return nil
	}
	t := &nftTable{table: &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}}
	for _, f := range families {
		for _, s := range []set{pods, local, peers} {
			t.sets = append(t.sets, t.buildSet(r, s, f))
		}
	}
	for _, c := range chains {
		t.chains = append(t.chains, t.buildChain(c))
	}
	return t
}

func setName(s set, f family) string { return string(s) + "-" + f.name }

func (t *nftTable) buildSet(r Rules, s set, f family) nftSet {
	key := nftables.TypeIPAddr
	if f.six {
		key = nftables.TypeIP6Addr
	}
	return nftSet{
		// Peers are single addresses, which a hash finds faster than a tree.
		&nftables.Set{Table: t.table, Name: setName(s, f), KeyType: key, Interval: s != peers, KeyByteOrder: binaryutil.BigEndian},
		r.members(s, f),
	}
}

func (t *nftTable) buildChain(c chain) nftChain {
	out := nftChain{Chain: &nftables.Chain{Table: t.table, Name: c.name}}
	switch c.hook {
	case prerouting:
		out.base(nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	case output:
		out.base(nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityRaw)
	case forward:
		out.base(nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	case postrouting:
		out.base(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, natPriority)
	}
	for _, r := range c.rules {
		if !r.ofFamily() {
			out.rules = append(out.rules, t.buildRule(out.Chain, r, family{}))
			continue
		}
		for _, f := range families {
			out.rules = append(out.rules, t.buildRule(out.Chain, r, f))
		}
	}
	return out
}

func (c *nftChain) base(kind nftables.ChainType, at *nftables.ChainHook, priority nftables.ChainPriority) {
	c.Type, c.Hooknum, c.Priority, c.Policy = kind, at, &priority, &accept
}

func (t *nftTable) buildRule(c *nftables.Chain, r rule, f family) *nftables.Rule {
	out := &nftables.Rule{Table: t.table, Chain: c}
	if r.why != "" {
		out.UserData = userdata.AppendString(nil, userdata.TypeComment, r.why)
	}
	var e []expr.Any
	if r.ofFamily() {
		e = append(e, ofFamily(f)...)
	}
	if r.loopback {
		e = append(e, equal(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, append([]byte("lo"), make([]byte, 14)...))...)
	}
	if r.mark {
		mark := binaryutil.NativeEndian.PutUint32(KubeProxyMark)
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mark, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark})
	}
	if r.port != 0 {
		e = append(e, equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{unix.IPPROTO_UDP})...)
		e = append(e, equal(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, binary.BigEndian.AppendUint16(nil, r.port))...)
	}
	if r.here {
		e = append(e,
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)})
	}
	if r.from != "" {
		e = append(e, address(f, false), &expr.Lookup{SourceRegister: 1, SetName: setName(r.from, f)})
	}
	if r.to != "" {
		e = append(e, address(f, true), &expr.Lookup{SourceRegister: 1, SetName: setName(r.to, f)})
	}
	if r.multicast {
		e = append(e, within(f, true, f.multicast)...)
	}
	e = append(e, act(r.do)...)
	out.Exprs = e
	return out
}

// equal loads something into register 1 and compares it.
func equal(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// ofFamily asks for the family of a packet, in a table of both.
func ofFamily(f family) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if f.six {
		proto = unix.NFPROTO_IPV6
	}
	return equal(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{proto})
}

// address loads a packet's source or destination: RFC 791, RFC 8200.
func address(f family, to bool) expr.Any {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if f.six {
		p.Offset, p.Len = 8, 16
	}
	if to {
		p.Offset += p.Len
	}
	return p
}

// within compares an address with a prefix.
func within(f family, to bool, p netip.Prefix) []expr.Any {
	load := address(f, to)
	n := p.Addr().BitLen() / 8
	e := []expr.Any{load}
	if p.Bits() < p.Addr().BitLen() {
		e = append(e, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: maskOf(p), Xor: make([]byte, n)})
	}
	return append(e, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()})
}

func maskOf(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// act is a verdict with a counter where one is worth reading.
func act(v verdict) []expr.Any {
	switch v {
	case doAccept:
		return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
	case doDrop:
		return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	case doMasquerade:
		return []expr.Any{&expr.Counter{}, &expr.Masq{FullyRandom: true}}
	case doNotrack:
		return []expr.Any{&expr.Notrack{}}
	case doVXLAN:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "vxlan"}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
}
