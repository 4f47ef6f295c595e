package pod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A Guarded is what one attachment may send by.
type Guarded struct {
	Container string
	IfName    string
	MAC       net.HardwareAddr // nil: MACFor(Addrs), as in an Attachment
	Addrs     []netip.Addr
}

// EnsureFilter makes the table what it should be, and does nothing but look where
// it is. It returns what it did.
//
// want tells all attachments with the filter that hold addresses, also those whose
// link is not there yet. It is called after the table was read, and maybe again: an
// attachment that is being made has its addresses first, then its elements, and then
// its link, so what is in the table and unknown to want is no ADD at work.
//
// Elements of ports that nobody wants and that have no link are removed. A link that
// want does not tell of keeps what it has.
func EnsureFilter(want func() ([]Guarded, error)) (changes []string, err error) {
	f, err := dialFilter()
	if err != nil {
		return nil, err
	}
	defer f.close()
	for attempt := 0; ; attempt++ {
		changes, err := f.ensure(want)
		if err == nil || !again(attempt, err) {
			return changes, wrap("source filter (table bridge "+FilterTable+")", err)
		}
	}
}

func (f filter) ensure(want func() ([]Guarded, error)) (changes []string, err error) {
	generation, err := f.generation()
	if err != nil {
		return nil, errNoFilter(err)
	}
	exists, wrong, err := f.compare()
	if err != nil {
		return nil, err
	}
	var have []element
	if exists {
		if have, err = f.elements(setMACs, setIPv4, setIPv6); err != nil && wrong == "" {
			return nil, err
		}
	}
	list, err := want()
	if err != nil {
		return nil, err
	}
	target, err := wantedElements(list, have)
	if err != nil || !exists && len(target) == 0 {
		return nil, err // a node without pods has no table
	}
	var reqs []*nl.NetlinkRequest
	if wrong != "" {
		if exists {
			reqs = append(reqs, deleteTable())
		}
		reqs, have = append(reqs, createTable()...), nil
		changes = append(changes, "make table bridge "+FilterTable+": "+wrong)
	}
	missing, stale := difference(target, have), difference(have, target)
	reqs = append(reqs, elementRequests(unix.NFT_MSG_DELSETELEM, stale)...)
	reqs = append(reqs, elementRequests(unix.NFT_MSG_NEWSETELEM, missing)...)
	changes = append(changes, tell("stop accepting what is not of", stale)...)
	changes = append(changes, tell("guard", missing)...)
	if err := f.change(generation, reqs); err != nil {
		return nil, err
	}
	return changes, nil
}

// tell words changes, one for each port.
func tell(act string, elements []element) (list []string) {
	for _, e := range elements {
		list = append(list, act+" "+e.port())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// difference returns what of a is not in b, sorted.
func difference(a, b []element) []element {
	left := map[element]bool{}
	for _, e := range a {
		left[e] = true
	}
	for _, e := range b {
		delete(left, e)
	}
	return slices.SortedFunc(maps.Keys(left), func(x, y element) int {
		return slices.Compare([]string{x.set, x.key}, []string{y.set, y.key})
	})
}

// wantedElements is what the sets should hold. A link that was renamed is guarded
// under the name that it has.
func wantedElements(list []Guarded, have []element) ([]element, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	links, err := veths(c)
	if err != nil {
		return nil, fmt.Errorf("list pods' links: %w", err)
	}
	names, exists := map[string]string{}, map[string]bool{}
	for _, l := range links {
		exists[l.Name] = true
		if p := port(l); p.Container != "" {
			names[HostName(p.Container, p.IfName)] = l.Name
		}
	}
	var target []element
	known := map[string]bool{}
	for _, g := range list {
		name := HostName(g.Container, g.IfName)
		if other, ok := names[name]; ok {
			name = other
		}
		known[name] = true
		target = append(target, portElements(name, g.mac(), g.Addrs)...)
	}
	for _, e := range have {
		if exists[e.port()] && !known[e.port()] {
			target = append(target, e)
		}
	}
	return target, nil
}

func (g Guarded) mac() net.HardwareAddr {
	if g.MAC != nil {
		return g.MAC
	}
	prefixes := make([]netip.Prefix, len(g.Addrs))
	for i, a := range g.Addrs {
		prefixes[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return MACFor(prefixes)
}

// generation reads the number that every transaction of the namespace raises.
func (f filter) generation() (generation uint32, err error) {
	err = f.c.Get(nftRequest(unix.NFT_MSG_GETGEN, 0), func(body []byte) {
		eachNested(rtnl.NetfilterAttrs(body), unix.NFTA_GEN_ID, func(v []byte) {
			if len(v) == 4 {
				generation = binary.BigEndian.Uint32(v)
			}
		})
	})
	return generation, err
}

// elements reads those of some sets. With an error it returns those that it could
// read.
func (f filter) elements(sets ...string) (all []element, err error) {
	for _, s := range filterSets {
		if !slices.Contains(sets, s.name) {
			continue
		}
		var found []element
		req := nftRequest(unix.NFT_MSG_GETSETELEM, 0,
			textAttr(unix.NFTA_SET_ELEM_LIST_TABLE, FilterTable), textAttr(unix.NFTA_SET_ELEM_LIST_SET, s.name))
		serr := f.c.Dump(req, func() { found = nil }, func(body []byte) {
			parseElements(rtnl.NetfilterAttrs(body), func(key []byte) {
				if len(key) == s.keySize {
					found = append(found, element{s.name, string(key)})
				}
			})
		})
		if serr != nil {
			err = errors.Join(err, fmt.Errorf("read set %s: %w", s.name, serr))
		}
		all = append(all, found...)
	}
	return all, err
}

// compare looks whether there is a table, and whether its sets, chains and
// rules are those that we make; wrong is empty where they are.
func (f filter) compare() (exists bool, wrong string, err error) {
	err = f.c.Get(nftRequest(unix.NFT_MSG_GETTABLE, 0, textAttr(unix.NFTA_TABLE_NAME, FilterTable)), func(body []byte) {
		eachNested(rtnl.NetfilterAttrs(body), unix.NFTA_TABLE_FLAGS, func(v []byte) {
			if !numberAttr(0, 0).within(v) {
				wrong = "it is dormant" // nft 'add table … { flags dormant; }'
			}
		})
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, "there is none", nil
	case err != nil || wrong != "":
		return err == nil, wrong, err
	}
	var setAttrs, chainAttrs [][]attr
	for _, s := range filterSets {
		setAttrs = append(setAttrs, s.attrs())
	}
	for _, ch := range filterChains {
		chainAttrs = append(chainAttrs, ch.attrs())
	}
	for _, kind := range []struct {
		what string
		get  int
		want [][]attr
	}{{"sets", unix.NFT_MSG_GETSET, setAttrs}, {"chains", unix.NFT_MSG_GETCHAIN, chainAttrs}} {
		same, err := f.sameObjects(kind.get, kind.want)
		if err != nil {
			return true, "", fmt.Errorf("read %s: %w", kind.what, err)
		}
		if !same {
			return true, "its " + kind.what + " are not ours", nil
		}
	}
	same, err := f.sameRules()
	if err != nil {
		return true, "", fmt.Errorf("read rules: %w", err)
	}
	if !same {
		wrong = "its rules are not ours"
	}
	return true, wrong, nil
}

// sameObjects says whether the table's sets or chains are those that are wanted,
// in whatever order.
func (f filter) sameObjects(get int, want [][]attr) (same bool, err error) {
	var found [][]byte
	// Attribute 1 is the table's name in all these messages.
	table := textAttr(unix.NFTA_CHAIN_TABLE, FilterTable)
	err = f.c.Dump(nftRequest(get, 0, table), func() { found = nil }, func(body []byte) {
		attrs := rtnl.NetfilterAttrs(body)
		if nestAttr(0, table).within(attrs) { // of chains the kernel tells all
			found = append(found, slices.Clone(attrs))
		}
	})
	if err != nil || len(found) != len(want) {
		return false, err
	}
	if get == unix.NFT_MSG_GETSET && slices.ContainsFunc(found, hasSetFlags) {
		return false, nil
	}
	for _, w := range want {
		if !slices.ContainsFunc(found, func(attrs []byte) bool { return nestAttr(0, w...).within(attrs) }) {
			return false, nil
		}
	}
	return true, nil
}

// hasSetFlags says whether a set is of another sort than ours, which have no flags: of
// those the kernel tells nothing.
func hasSetFlags(attrs []byte) (has bool) {
	eachNested(attrs, unix.NFTA_SET_FLAGS, func([]byte) { has = true })
	return has
}

// sameRules says whether the table's rules are ours, chain by chain and in order.
func (f filter) sameRules() (same bool, err error) {
	found := map[string][][]byte{}
	err = f.eachRule(func() { clear(found) }, func(chain string, expressions []byte) {
		found[chain] = append(found[chain], slices.Clone(expressions))
	})
	if err != nil {
		return false, err
	}
	for _, r := range filterRules() {
		have := found[r.chain]
		if len(have) == 0 || !sameList(r.expressions, have[0]) {
			return false, nil
		}
		found[r.chain] = have[1:]
	}
	for _, left := range found {
		if len(left) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// eachRule reads the table's rules.
func (f filter) eachRule(restart func(), fn func(chain string, expressions []byte)) error {
	req := nftRequest(unix.NFT_MSG_GETRULE, 0, textAttr(unix.NFTA_RULE_TABLE, FilterTable))
	return f.c.Dump(req, restart, func(body []byte) {
		attrs := rtnl.NetfilterAttrs(body)
		eachNested(attrs, unix.NFTA_RULE_CHAIN, func(chain []byte) {
			eachNested(attrs, unix.NFTA_RULE_EXPRESSIONS, func(list []byte) { fn(text(chain), list) })
		})
	})
}

// Spoofed returns how many frames the filter has dropped since the table was made;
// 0 without a table.
func Spoofed() (frames uint64, err error) {
	f, err := dialFilter()
	if err != nil {
		return 0, err
	}
	defer f.close()
	err = f.eachRule(func() { frames = 0 }, func(chain string, list []byte) {
		if chain != chainSpoofed {
			return
		}
		eachNested(list, unix.NFTA_LIST_ELEM, func(expr []byte) {
			if !nestAttr(0, textAttr(unix.NFTA_EXPR_NAME, "counter")).within(expr) {
				return
			}
			eachNested(expr, unix.NFTA_EXPR_DATA, func(data []byte) {
				eachNested(data, unix.NFTA_COUNTER_PACKETS, func(v []byte) {
					if len(v) == 8 {
						frames += binary.BigEndian.Uint64(v)
					}
				})
			})
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return frames, wrap("read source filter's counter", errNoFilter(err))
}
