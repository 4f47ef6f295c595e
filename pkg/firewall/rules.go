package firewall

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Rules is what the node's firewall should do. The zero value is nothing.
type Rules struct {
	Networks   []netip.Prefix // the cluster's pod networks, both families
	Subnets    []netip.Prefix // this node's own pod subnets
	Masquerade bool           // pod traffic that leaves the cluster's networks gets the node's address
	Forward    bool           // what is forwarded from and to the pod networks is accepted
	Port       uint16         // VXLAN's UDP port; 0: this node has no VXLAN
	Filter     bool           // VXLAN is taken from Peers only
	Peers      []netip.Addr   // the other nodes' underlay addresses
}

// Mode says which back ends are used.
type Mode string

const (
	// Auto is NFTables, and the FORWARD accept in iptables' own table where
	// something there drops what it does not know.
	Auto Mode = "auto"
	// NFTables touches nothing but its own table.
	NFTables Mode = "nftables"
	// IPTables runs iptables for everything, in the flavour that the node has.
	IPTables Mode = "iptables"
	// None wants nothing, and removes what an earlier mode left.
	None Mode = "none"
)

// ParseMode reads the value of a flag.
func ParseMode(s string) (Mode, error) {
	m := Mode(s)
	if !slices.Contains([]Mode{Auto, NFTables, IPTables, None}, m) {
		return "", fmt.Errorf("firewall %q: want auto, nftables, iptables or none", s)
	}
	return m, nil
}

// KubeProxyMark is the bit of a packet's mark by which kube-proxy asks its own
// rules to masquerade (iptablesMasqueradeBit 14, its default).
const KubeProxyMark = 0x4000

// normal returns r with every list sorted and free of repetitions, so that
// equal wishes are equal values. Peers that cannot be are left out, and are bad:
// one of them costs only itself.
func (r Rules) normal() (out Rules, bad, err error) {
	if r.Networks, err = distinct(r.Networks); err != nil {
		return r, nil, err
	}
	if r.Subnets, err = distinct(r.Subnets); err != nil {
		return r, nil, err
	}
	if !r.Filter || r.Port == 0 {
		r.Peers = nil
	}
	var errs []error
	peers := make([]netip.Addr, 0, len(r.Peers))
	for _, p := range r.Peers {
		if p.IsValid() && !p.IsUnspecified() && !p.IsMulticast() {
			peers = append(peers, p.Unmap().WithZone(""))
		} else {
			errs = append(errs, fmt.Errorf("peer address %v cannot be", p))
		}
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	r.Peers = slices.Compact(peers)
	return r, errors.Join(errs...), nil
}

// distinct returns the prefixes masked, sorted, and without those that lie
// inside another one: the kernel's sets of ranges take no overlap.
func distinct(list []netip.Prefix) ([]netip.Prefix, error) {
	sorted := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("prefix %v cannot be", p)
		}
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue // sorted: the wider one came first
		}
		out = append(out, p)
	}
	return out, nil
}

func (r Rules) equal(o Rules) bool {
	return slices.Equal(r.Networks, o.Networks) && slices.Equal(r.Subnets, o.Subnets) && slices.Equal(r.Peers, o.Peers) &&
		r.Masquerade == o.Masquerade && r.Forward == o.Forward && r.Port == o.Port && r.Filter == o.Filter
}

// A family is an address family. Whatever is said of one is said of both.
type family struct {
	name      string
	six       bool
	multicast netip.Prefix
}

var families = []family{
	{"ipv4", false, netip.MustParsePrefix("224.0.0.0/4")},
	{"ipv6", true, netip.MustParsePrefix("ff00::/8")},
}

func (f family) has(a netip.Addr) bool { return a.Is4() != f.six }

// A set is a set of addresses that rules refer to.
type set string

const (
	pods  set = "pods"  // the cluster's pod networks
	local set = "local" // this node's pod subnets
	peers set = "peers" // the other nodes' underlay addresses
)

// members lists what is in a set, of one family.
func (r Rules) members(s set, f family) (list []netip.Prefix) {
	add := func(p netip.Prefix) {
		if f.has(p.Addr()) {
			list = append(list, p)
		}
	}
	switch s {
	case pods:
		for _, p := range r.Networks {
			add(p)
		}
	case local:
		for _, p := range r.Subnets {
			add(p)
		}
	case peers:
		for _, a := range r.Peers {
			add(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list
}

// A hook is where a chain is called.
type hook int

const (
	called      hook = iota // from another chain of ours
	prerouting              // before connection tracking
	output                  // before connection tracking
	forward                 // where packets are filtered
	postrouting             // where sources are translated
)

type verdict int

const (
	doReturn verdict = iota
	doAccept
	doDrop
	doMasquerade // random-fully
	doNotrack    // and go on with the next rule
	doVXLAN      // call the chain of that name
)

// A rule is what both back ends can say. Of a zero field nothing is asked.
type rule struct {
	from, to  set  // the address is in the set
	multicast bool // to a multicast address
	mark      bool // with kube-proxy's mark
	loopback  bool // came in by loopback
	port      uint16
	here      bool // not to one other host: to this node, a broadcast address or a group
	do        verdict
	why       string
}

// ofFamily reports whether the rule is another one in each family.
func (r rule) ofFamily() bool { return r.from != "" || r.to != "" || r.multicast }

type chain struct {
	name  string // in iptables with a prefix and in capitals
	hook  hook
	rules []rule
}

// chains is the whole firewall but for the FORWARD accept. The order of rules
// stands in for negation: what is from the pods is dealt with when the rules for
// what comes from outside begin.
func (r Rules) chains() (list []chain) {
	if r.Masquerade {
		list = append(list, chain{"postrouting", postrouting, []rule{
			{mark: true, do: doReturn, why: "kube-proxy masquerades this itself"},
			{multicast: true, do: doReturn, why: "not to multicast"},
			{from: pods, to: pods, do: doReturn, why: "not from pod to pod"},
			{from: pods, do: doMasquerade, why: "from a pod to the outside"},
			{to: local, do: doReturn, why: "not to a pod of this node"},
			{to: pods, do: doMasquerade, why: "from outside to a pod of another node: the answer must come back here"},
		}})
	}
	if r.Port != 0 {
		vxlan := []rule{{do: doNotrack, why: "an entry for each inner connection would follow"}}
		if r.Filter {
			vxlan = append(vxlan,
				rule{from: peers, do: doReturn, why: "from a leased peer"},
				rule{do: doDrop, why: "VXLAN from an address that no peer has"})
		}
		list = append(list,
			chain{"vxlan", called, vxlan},
			chain{"prerouting", prerouting, []rule{
				{loopback: true, do: doReturn},
				{port: r.Port, here: true, do: doVXLAN},
			}},
			chain{"output", output, []rule{
				{port: r.Port, do: doNotrack, why: "an entry for each inner connection would follow"},
			}})
		if r.Filter {
			list = append(list, chain{"forward", forward, append([]rule{{to: pods, do: doReturn}}, r.forged()...)})
		}
	}
	return list
}

// forged drops what a pod sends to another node's VXLAN port: masqueraded it would
// have this node's address, and so pass the filter there. It is looked at where
// packets are forwarded, for a Service's rules may have made it what it is.
func (r Rules) forged() []rule {
	if r.Port == 0 || !r.Filter {
		return nil
	}
	return []rule{{port: r.Port, from: pods, do: doDrop, why: "VXLAN of a pod's own making"}}
}

// accept is the chain that FORWARD calls, in iptables alone: an accept in a
// table of our own would not overrule a drop in another one.
func (r Rules) accept() chain {
	rules := append([]rule{{to: pods, do: doAccept, why: "to a pod"}}, r.forged()...)
	return chain{"forward", forward, append(rules, rule{from: pods, do: doAccept, why: "from a pod"})}
}

// acceptOnly is what FORWARD needs where nftables does the rest.
func (r Rules) acceptOnly() Rules { return Rules{Networks: r.Networks, Forward: r.Forward} }
