package pod

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FilterTable is the name of the table, of nftables' bridge family, that holds
// what pods may send. `nft list table bridge vxlan-cni` shows it.
const FilterTable = "vxlan-cni"

// Its chains. The first two are hooked in; every frame of a guarded link goes on
// to chainPod, and out of that to an accept or to chainSpoofed.
const (
	chainFrom    = "from-pods"
	chainLocal   = "to-node"
	chainPod     = "pod"
	chainARP     = "arp"
	chainIPv6    = "ip6"
	chainQuiet   = "without-address"
	chainSpoofed = "spoofed"
)

// Its sets: what may be sent.
const (
	setMACs = "macs" // name of the node's end, and MAC
	setIPv4 = "own4" // name, MAC and IPv4 address
	setIPv6 = "own6" // the same of IPv6
)

const (
	// filterPriority is before everything that changes an address: ebtables'
	// nat has -300 (linux/netfilter_bridge.h).
	filterPriority = -310

	// hookPrerouting and hookInput are NF_BR_PRE_ROUTING and NF_BR_LOCAL_IN.
	hookPrerouting = 0
	hookInput      = 1

	sizeIfName = 16 // of a name in a register, filled with zeros
	sizeMAC    = 8  // of a MAC, filled to whole registers
)

// A set is one set of the table. keyType is what nft shows its keys by: six bits for
// each part (nftables, include/datatype.h).
type set struct {
	name    string
	keyType uint32
	keySize int
}

const (
	typeIPv4   = 7
	typeIPv6   = 8
	typeMAC    = 9
	typeIfName = 41
)

var filterSets = []set{
	{setMACs, typeIfName<<6 | typeMAC, sizeIfName + sizeMAC},
	{setIPv4, typeIfName<<12 | typeMAC<<6 | typeIPv4, sizeIfName + sizeMAC + 4},
	{setIPv6, typeIfName<<12 | typeMAC<<6 | typeIPv6, sizeIfName + sizeMAC + 16},
}

// A chain is one chain of the table; hook is noHook or where it is hooked in.
type chain struct {
	name string
	hook int
}

const noHook = -1

var filterChains = []chain{
	{chainSpoofed, noHook}, {chainQuiet, noHook}, {chainIPv6, noHook}, {chainARP, noHook}, {chainPod, noHook},
	{chainFrom, hookPrerouting}, {chainLocal, hookInput},
}

// A rule is expressions in a chain.
type rule struct {
	chain       string
	expressions []attr
}

// Places in frames. An EtherType at its place is that of the outermost VLAN tag if
// there is one, also where the kernel keeps the tag beside the frame.
var (
	ethTarget  = part{unix.NFT_PAYLOAD_LL_HEADER, 0, 6}
	ethSource  = part{unix.NFT_PAYLOAD_LL_HEADER, 6, 6}
	etherType  = part{unix.NFT_PAYLOAD_LL_HEADER, 12, 2}
	ipv4Source = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 12, 4}
	ipv6Source = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 8, 16}
	ipv6Prefix = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 8, 2}
	arpFormat  = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 0, 6}
	arpMAC     = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 8, 6}
	arpSource  = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 14, 4}
	arpTarget  = part{unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 4}
	icmpType   = part{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1}
	ndTarget   = part{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16}
)

// ICMPv6 types (RFC 4861, 3810).
const (
	mldReport             = 131 // 132 is its end, 133 a router solicitation
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighbourSolicitation = 135
	neighbourAdvert       = 136
	redirect              = 137
	mldReport2            = 143
)

// is goes on with the rule if a place holds that.
func (p part) is(value ...byte) []attr {
	return []attr{p.load(0), compare(unix.NFT_CMP_EQ, 0, value...)}
}

// own goes on with the rule if the port has that MAC and address.
func own(set string, mac, addr part) []attr {
	return []attr{meta(unix.NFT_META_IIFNAME, 0), mac.load(sizeIfName / 4), addr.load((sizeIfName + sizeMAC) / 4), lookup(set, false)}
}

// icmp6 goes on with the rule if the packet, behind whatever extension headers, is
// ICMPv6 of that type. A later fragment is of none.
func icmp6(kind byte) []attr {
	return append([]attr{meta(unix.NFT_META_L4PROTO, 0), compare(unix.NFT_CMP_EQ, 0, unix.IPPROTO_ICMPV6)}, icmpType.is(kind)...)
}

// filterRules is all rules, chain by chain.
func filterRules() (rules []rule) {
	add := func(chain string, end attr, matches ...[]attr) {
		r := rule{chain: chain}
		for _, m := range matches {
			r.expressions = append(r.expressions, m...)
		}
		r.expressions = append(r.expressions, end)
		rules = append(rules, r)
	}
	accept, spoofed := verdict(nfAccept), verdict(unix.NFT_GOTO, chainSpoofed)
	to := func(chain string) attr { return verdict(unix.NFT_GOTO, chain) }
	group := binary.NativeEndian.AppendUint32(nil, GuardedGroup)
	guarded := []attr{meta(unix.NFT_META_IIFGROUP, 0), compare(unix.NFT_CMP_EQ, 0, group...)}

	add(chainFrom, to(chainPod), guarded)
	// Frames to 01:80:c2:00:00:0x are for the bridge itself: they do not pass
	// prerouting, and the node would take what is in them for its own.
	add(chainLocal, spoofed, guarded, []attr{
		ethTarget.load(0), mask(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0), compare(unix.NFT_CMP_EQ, 0, 0x01, 0x80, 0xc2, 0, 0, 0),
	})

	add(chainPod, accept, etherType.is(0x08, 0x00), own(setIPv4, ethSource, ipv4Source))
	add(chainPod, to(chainIPv6), etherType.is(0x86, 0xdd))
	add(chainPod, to(chainARP), etherType.is(0x08, 0x06))
	add(chainPod, spoofed)

	// Both MACs have to be right, for ARP tables take the inner one. A probe
	// (RFC 5227) has no source yet.
	add(chainARP, spoofed, []attr{arpFormat.load(0), compare(unix.NFT_CMP_NEQ, 0, 0, 1, 0x08, 0x00, 6, 4)})
	add(chainARP, accept, own(setIPv4, ethSource, arpSource), own(setIPv4, arpMAC, arpSource))
	add(chainARP, accept, arpSource.is(0, 0, 0, 0), own(setIPv4, ethSource, arpTarget), own(setIPv4, arpMAC, arpTarget))
	add(chainARP, spoofed)

	add(chainIPv6, spoofed, icmp6(routerAdvertisement))
	add(chainIPv6, spoofed, icmp6(redirect))
	add(chainIPv6, accept, icmp6(neighbourAdvert), own(setIPv6, ethSource, ndTarget), own(setIPv6, ethSource, ipv6Source))
	add(chainIPv6, spoofed, icmp6(neighbourAdvert))
	add(chainIPv6, accept, own(setIPv6, ethSource, ipv6Source))
	unspecified := ipv6Source.is(make([]byte, 16)...)
	add(chainIPv6, accept, unspecified, icmp6(neighbourSolicitation), own(setIPv6, ethSource, ndTarget))
	add(chainIPv6, spoofed, []attr{meta(unix.NFT_META_IIFNAME, 0), ethSource.load(sizeIfName / 4), lookup(setMACs, true)})
	add(chainIPv6, to(chainQuiet), unspecified)
	add(chainIPv6, to(chainQuiet), []attr{ipv6Prefix.load(0), mask(0, 0xff, 0xc0), compare(unix.NFT_CMP_EQ, 0, 0xfe, 0x80)})
	add(chainIPv6, spoofed)

	// What a host says before it has an address, or by a link-local one that does
	// not follow from its MAC, and by which nobody learns anything.
	for kind := byte(mldReport); kind <= routerSolicitation; kind++ {
		add(chainQuiet, accept, icmp6(kind))
	}
	add(chainQuiet, accept, icmp6(mldReport2))
	add(chainQuiet, spoofed)

	add(chainSpoofed, verdict(nfDrop), []attr{counter()})
	return rules
}

// nfDrop and nfAccept are NF_DROP and NF_ACCEPT (linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)

// attrs is how the chain is asked for and told.
func (c chain) attrs() []attr {
	attrs := []attr{textAttr(unix.NFTA_CHAIN_TABLE, FilterTable), textAttr(unix.NFTA_CHAIN_NAME, c.name)}
	if c.hook == noHook {
		return attrs
	}
	priority := int32(filterPriority)
	return append(attrs,
		nestAttr(unix.NFTA_CHAIN_HOOK, numberAttr(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook)), numberAttr(unix.NFTA_HOOK_PRIORITY, uint32(priority))),
		textAttr(unix.NFTA_CHAIN_TYPE, "filter"), numberAttr(unix.NFTA_CHAIN_POLICY, nfAccept))
}

func (s set) attrs() []attr {
	return []attr{
		textAttr(unix.NFTA_SET_TABLE, FilterTable), textAttr(unix.NFTA_SET_NAME, s.name),
		numberAttr(unix.NFTA_SET_KEY_TYPE, s.keyType), numberAttr(unix.NFTA_SET_KEY_LEN, uint32(s.keySize)),
		// For nft: keys are in this machine's byte order, or it would show names
		// backwards (libnftnl, udata.h).
		bytesAttr(unix.NFTA_SET_USERDATA, binary.NativeEndian.AppendUint32([]byte{0, 4}, 1)),
	}
}

// createTable makes the table with all but the elements. One that exists is EEXIST.
func createTable() []*nl.NetlinkRequest {
	table := textAttr(unix.NFTA_TABLE_NAME, FilterTable)
	reqs := []*nl.NetlinkRequest{nftRequest(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, table)}
	for i, s := range filterSets {
		reqs = append(reqs, nftRequest(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
			append(s.attrs(), numberAttr(unix.NFTA_SET_ID, uint32(i+1)))...))
	}
	for _, c := range filterChains {
		reqs = append(reqs, nftRequest(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, c.attrs()...))
	}
	for _, r := range filterRules() {
		reqs = append(reqs, nftRequest(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
			textAttr(unix.NFTA_RULE_TABLE, FilterTable), textAttr(unix.NFTA_RULE_CHAIN, r.chain),
			nestAttr(unix.NFTA_RULE_EXPRESSIONS, r.expressions...)))
	}
	return reqs
}
