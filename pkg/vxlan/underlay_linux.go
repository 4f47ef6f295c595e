package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An Underlay is the node's own end of the network that carries the tunnels.
type Underlay struct {
	Interface string
	Index     int
	MTU       int    // bytes
	Ends      []End  // one per underlay family in use, IPv4 first; at least one
	Reason    string // why this one, in words
}

// An End is the node's address on the underlay, of one family.
type End struct {
	Addr  netip.Addr // which other nodes send to
	Local netip.Addr // of the interface; packets leave with it
}

// End returns the node's end of a family, and whether there is one.
func (u Underlay) End(is4 bool) (End, bool) {
	for _, e := range u.Ends {
		if e.Local.Is4() == is4 {
			return e, true
		}
	}
	return End{}, false
}

// Equal reports whether two are the same, whatever the reason for them.
func (u Underlay) Equal(o Underlay) bool {
	return u.Interface == o.Interface && u.Index == o.Index && u.MTU == o.MTU && slices.Equal(u.Ends, o.Ends)
}

// A Choice says which underlay to find. Of Ifaces, Regexes and CanReach one at
// most may be given; the zero value is the interface of the default route.
type Choice struct {
	Ifaces   []string         // names or addresses; the first that is there counts
	Regexes  []*regexp.Regexp // the same for expressions that a name or address matches
	CanReach netip.Addr       // the interface that packets to this address leave by

	Public []netip.Addr // which other nodes send to, one per family at most, even if the interface does not bear them (a node behind NAT)

	Pods4, Pods6 bool           // the families that pods have: each rides an underlay of its own family if there is one
	Avoid        []netip.Prefix // addresses that are no underlay's: the pod networks
}

// FindUnderlay chooses the underlay.
func FindUnderlay(c Choice) (Underlay, error) {
	found, err := c.link()
	if err != nil {
		return Underlay{}, err
	}
	a := found.link.Attrs()
	u := Underlay{Interface: a.Name, Index: a.Index, MTU: a.MTU, Reason: found.why}
	local := map[bool]netip.Addr{} // by is4: the address to send from
	all, err := c.addresses(found.link)
	if err != nil {
		return Underlay{}, err
	}
	for _, a := range append([]netip.Addr{found.addr}, all...) {
		if _, ok := local[a.Is4()]; a.IsValid() && !ok {
			local[a.Is4()] = a
		}
	}
	if err := c.checkPublic(u, local); err != nil {
		return Underlay{}, err
	}
	for _, is4 := range c.families(found, local) {
		u.Ends = append(u.Ends, c.end(local[is4], all))
	}
	if len(u.Ends) == 0 {
		return Underlay{}, fmt.Errorf("interface %s (%s) has no global address: give it one, or choose another with --iface", u.Interface, found.why)
	}
	if len(c.Public) > 0 {
		u.Reason += ", address by --public-ip"
	}
	return u, nil
}

// checkPublic refuses a public address of a family that cannot be sent from.
func (c Choice) checkPublic(u Underlay, local map[bool]netip.Addr) error {
	for _, p := range c.Public {
		if _, ok := local[p.Is4()]; !ok {
			return fmt.Errorf("--public-ip %s: interface %s has no address of that family to send from", p, u.Interface)
		}
	}
	return nil
}

// families are those of the underlay that are used, IPv4 first: the pods' own as far
// as the interface has them, and those of addresses that somebody named. Where
// the named ones are of no family that pods have they alone count.
func (c Choice) families(found candidate, local map[bool]netip.Addr) (use []bool) {
	named := c.Public
	if found.named {
		named = append(slices.Clone(named), found.addr)
	}
	asked := map[bool]bool{}
	for _, a := range named {
		asked[a.Is4()] = true
	}
	pods := map[bool]bool{true: c.Pods4, false: c.Pods6}
	elsewhere := len(named) > 0 && !(asked[true] && pods[true]) && !(asked[false] && pods[false])
	for _, is4 := range []bool{true, false} {
		if _, ok := local[is4]; ok && (asked[is4] || pods[is4] && !elsewhere) {
			use = append(use, is4)
		}
	}
	for _, is4 := range []bool{true, false} {
		if _, ok := local[is4]; ok && len(use) == 0 {
			use = append(use, is4) // pods of the other family ride on it
		}
	}
	return use
}

// end is the node's end with that local address. A public address that the
// interface bears is sent from, too.
func (c Choice) end(local netip.Addr, all []netip.Addr) End {
	e := End{Addr: local, Local: local}
	for _, p := range c.Public {
		if p.Is4() != local.Is4() {
			continue
		}
		e.Addr = p
		if slices.Contains(all, p) {
			e.Local = p
		}
	}
	return e
}

// A candidate is a link that may be the underlay's.
type candidate struct {
	link  netlink.Link
	addr  netip.Addr // preferred; invalid: none is
	why   string
	named bool // somebody named addr
}

func (c Choice) link() (candidate, error) {
	switch {
	case len(c.Ifaces) > 0:
		return c.firstOf(len(c.Ifaces), func(i int) (candidate, error) { return c.named(c.Ifaces[i]) })
	case len(c.Regexes) > 0:
		return c.firstOf(len(c.Regexes), func(i int) (candidate, error) { return c.matching(c.Regexes[i]) })
	case c.CanReach.IsValid():
		return towards(c.CanReach)
	}
	return defaultRouteLink()
}

// firstOf returns the first of n candidates that is there, or what each lacks.
func (c Choice) firstOf(n int, get func(int) (candidate, error)) (candidate, error) {
	var errs []error
	for i := range n {
		found, err := get(i)
		if err == nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	return candidate{}, errors.Join(errs...)
}

// named finds an interface by its name or an address of it.
func (c Choice) named(iface string) (candidate, error) {
	want, err := netip.ParseAddr(iface)
	if err != nil {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return candidate{}, fmt.Errorf("--iface %q: %w", iface, err)
		}
		return candidate{link: link, why: "named by --iface"}, nil
	}
	found, err := c.search(func(_ string, addrs []netip.Addr) (netip.Addr, bool) { return want, slices.Contains(addrs, want) })
	if err != nil {
		return candidate{}, err
	}
	if found.link == nil {
		return candidate{}, fmt.Errorf("--iface %s: no interface has this address", want)
	}
	found.why, found.named = "has the address of --iface", true
	return found, nil
}

// matching finds the first interface of which the name or an address matches.
func (c Choice) matching(re *regexp.Regexp) (candidate, error) {
	found, err := c.search(func(name string, addrs []netip.Addr) (netip.Addr, bool) {
		for _, a := range addrs {
			if re.MatchString(a.String()) {
				return a, true
			}
		}
		return netip.Addr{}, re.MatchString(name) && len(addrs) > 0
	})
	if err != nil {
		return candidate{}, err
	}
	if found.link == nil {
		return candidate{}, fmt.Errorf("--iface-regex %q: matches name or address of no interface with a global address", re)
	}
	found.why = fmt.Sprintf("matches --iface-regex %s", re)
	return found, nil
}

// search returns the first link, in the order of indices, that is wanted; the
// zero value if none is. Our own devices are not looked at.
func (c Choice) search(want func(name string, addrs []netip.Addr) (netip.Addr, bool)) (candidate, error) {
	links, err := retry(netlink.LinkList)
	if err != nil {
		return candidate{}, fmt.Errorf("read links: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Alias, alias) {
			continue
		}
		addrs, err := c.addresses(l)
		if err != nil {
			return candidate{}, err
		}
		if addr, ok := want(l.Attrs().Name, addrs); ok {
			return candidate{link: l, addr: addr}, nil
		}
	}
	return candidate{}, nil
}

// towards finds the interface that packets to an address leave by.
func towards(to netip.Addr) (candidate, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil {
		return candidate{}, fmt.Errorf("--iface-can-reach %s: %w", to, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 || routes[0].Type == unix.RTN_LOCAL {
		return candidate{}, fmt.Errorf("--iface-can-reach %s: no route leads out of the node to it", to)
	}
	why := fmt.Sprintf("reaches %s, as --iface-can-reach asks", to)
	return linkOf(routes[0].LinkIndex, routes[0].Src, why)
}

// linkOf is the candidate with a link's index and, if it is known, its address.
func linkOf(index int, src net.IP, why string) (candidate, error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return candidate{}, fmt.Errorf("interface %d (%s): %w", index, why, err)
	}
	addr, _ := netip.AddrFromSlice(src)
	return candidate{link: link, addr: addr.Unmap(), why: why}, nil
}

// defaultRouteLink finds the interface of the best default route, IPv4 first.
func defaultRouteLink() (candidate, error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return candidate{}, fmt.Errorf("read routes: %w", err)
		}
		if index, src, ok := bestDefault(routes); ok {
			return linkOf(index, src, "has the default route")
		}
	}
	return candidate{}, errors.New("no default route, so the underlay interface cannot be guessed: name it with --iface")
}

// bestDefault returns interface and preferred source of the default route with
// the lowest metric. Of several next hops the first counts.
func bestDefault(routes []netlink.Route) (index int, src net.IP, ok bool) {
	metric := 0
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		via := r.LinkIndex
		if via == 0 && len(r.MultiPath) > 0 {
			via = r.MultiPath[0].LinkIndex
		}
		if via != 0 && r.Type == unix.RTN_UNICAST && (!ok || r.Priority < metric) {
			index, src, metric, ok = via, r.Src, r.Priority, true
		}
	}
	return index, src, ok
}

// unsteady are addresses that other nodes should not be told: they are not
// checked yet, on their way out, or of the kind that changes daily (RFC 8981).
const unsteady = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY

// addresses returns the link's global addresses, IPv4 before IPv6, without those
// to avoid. An IPv6 one that is not checked yet is better than none.
func (c Choice) addresses(l netlink.Link) (found []netip.Addr, err error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(l, fam) })
		if err != nil {
			return nil, fmt.Errorf("read addresses of %s: %w", l.Attrs().Name, err)
		}
		// IFA_F_TEMPORARY is IFA_F_SECONDARY of IPv4, which means nothing here.
		slices.SortStableFunc(list, func(a, b netlink.Addr) int {
			if fam == unix.AF_INET {
				return 0
			}
			return min(1, a.Flags&unsteady) - min(1, b.Flags&unsteady)
		})
		for _, a := range list {
			ip, ok := netip.AddrFromSlice(a.IP)
			avoid := func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) }
			if ok && a.Scope == unix.RT_SCOPE_UNIVERSE && !slices.ContainsFunc(c.Avoid, avoid) {
				found = append(found, ip.Unmap())
			}
		}
	}
	return found, nil
}

// retry repeats a dump that the kernel says was interrupted by a change.
func retry[T any](dump func() ([]T, error)) (list []T, err error) {
	const attempts = 8
	for range attempts {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, err
}
