package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An Underlay is the node's own end of the network that carries the tunnels.
type Underlay struct {
	Interface string
	MTU       int        // bytes
	Addr      netip.Addr // which other nodes send to
	Local     netip.Addr // of the interface; packets leave with it
	Reason    string     // why this one, in words
}

// FindUnderlay chooses the underlay. With iface empty it is the interface of
// the default route, else the one of that name or that has that address. With
// public valid, that is the address other nodes send to, even if the
// interface does not bear it (a node behind NAT).
func FindUnderlay(iface string, public netip.Addr) (Underlay, error) {
	link, local, why, err := underlayLink(iface)
	if err != nil {
		return Underlay{}, err
	}
	u := Underlay{Interface: link.Attrs().Name, MTU: link.Attrs().MTU, Addr: local, Local: local, Reason: why}
	if public.IsValid() {
		u.Addr = public
		u.Reason += ", address by --public-ip"
		if u.Local, err = localFor(link, local, public); err != nil {
			return Underlay{}, err
		}
	}
	if !u.Addr.IsValid() {
		return Underlay{}, fmt.Errorf("interface %s (%s) has no global address: give it one, or choose another with --iface", u.Interface, why)
	}
	return u, nil
}

// localFor returns the link's own address behind the public one: that itself,
// the preferred one, or the first of the same family.
func localFor(link netlink.Link, preferred, public netip.Addr) (netip.Addr, error) {
	all, err := addresses(link)
	if err != nil {
		return netip.Addr{}, err
	}
	if slices.Contains(all, public) {
		return public, nil
	}
	for _, a := range append([]netip.Addr{preferred}, all...) {
		if a.IsValid() && a.Is4() == public.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("--public-ip %s: interface %s has no address of that family to send from", public, link.Attrs().Name)
}

func underlayLink(iface string) (netlink.Link, netip.Addr, string, error) {
	if iface == "" {
		return defaultRouteLink()
	}
	if want, err := netip.ParseAddr(iface); err == nil {
		return linkOfAddress(want)
	}
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return nil, netip.Addr{}, "", fmt.Errorf("--iface %q: %w", iface, err)
	}
	addr, err := globalAddress(link)
	return link, addr, "named by --iface", err
}

func linkOfAddress(want netip.Addr) (netlink.Link, netip.Addr, string, error) {
	links, err := retry(netlink.LinkList)
	if err != nil {
		return nil, want, "", fmt.Errorf("read links: %w", err)
	}
	for _, l := range links {
		addrs, err := addresses(l)
		if err != nil {
			return nil, want, "", err
		}
		if slices.Contains(addrs, want) {
			return l, want, "has the address of --iface", nil
		}
	}
	return nil, want, "", fmt.Errorf("--iface %s: no interface has this address", want)
}

// defaultRouteLink finds the interface of the best default route, IPv4 first.
func defaultRouteLink() (netlink.Link, netip.Addr, string, error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, netip.Addr{}, "", fmt.Errorf("read routes: %w", err)
		}
		index, src, ok := bestDefault(routes)
		if !ok {
			continue
		}
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return nil, netip.Addr{}, "", fmt.Errorf("interface %d of the default route: %w", index, err)
		}
		addr, _ := netip.AddrFromSlice(src)
		if addr = addr.Unmap(); !addr.IsValid() {
			addr, err = globalAddress(link)
		}
		return link, addr, "has the default route", err
	}
	return nil, netip.Addr{}, "", errors.New("no default route, so the underlay interface cannot be guessed: name it with --iface")
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

// globalAddress returns the link's first global address, IPv4 before IPv6.
func globalAddress(l netlink.Link) (netip.Addr, error) {
	addrs, err := addresses(l)
	if err != nil || len(addrs) == 0 {
		return netip.Addr{}, err
	}
	return addrs[0], nil
}

// addresses returns the link's global addresses, IPv4 before IPv6.
func addresses(l netlink.Link) (found []netip.Addr, err error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(l, fam) })
		if err != nil {
			return nil, fmt.Errorf("read addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
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
