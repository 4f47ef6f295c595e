package vxlan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// maxChanges bounds the changes by others that are kept in words until the
// loop takes them; more are only counted.
const maxChanges = 64

// A Monitor reads what the kernel tells about one VXLAN device: misses, and
// changes by others to what is ours. It keeps them, coalesced, until Take.
type Monitor struct {
	watcher *rtnl.Watcher
	ready   chan struct{}
	links   map[int]string // what was last told of each link in scope; Run's own

	mu     sync.Mutex
	scope  Scope
	events Events
}

// Scope says what a Monitor should look at.
type Scope struct {
	Index    int            // of the device; changes when it is made anew; 0: it is not made yet
	Bridge   int            // index of the bridge that pods hang on
	Names    []string       // links whose changes matter: the device, the bridge, the underlay
	Ports    []uint32       // netlink port ids of our own sockets, whose changes are no news
	Networks []netip.Prefix // routes inside them are ours to keep

	// Gateways are the bridge's addresses. That one is set is no news: it is
	// done by whoever makes the bridge right, with a socket of its own.
	Gateways []netip.Prefix

	// Device and Want are what the device and its tables should be. The kernel
	// tells of links, FDB entries and IPv6 addresses without saying who asked;
	// there what makes them as they should be is no news. The zero values make
	// everything news. Want must not be changed afterwards.
	Device Config
	Want   State
}

// Events is what happened since the last Take.
type Events struct {
	Misses   map[Miss]time.Time // when each was first read
	Received uint64             // misses before coalescing
	Changes  []Change           // by others, oldest first, at most 64
	More     int                // changes beyond those
	Overruns int                // notifications were lost: everything may have changed, and again later
}

// Dirty reports whether the kernel may no longer hold what it should.
func (e Events) Dirty() bool { return len(e.Changes) > 0 || e.More > 0 || e.Overruns > 0 }

// A Change is something that somebody else did.
type Change struct {
	Time time.Time
	Port uint32 // netlink port id of who asked for it, for short tools the process id; 0: the kernel does not say
	Text string // in the words of ip monitor
}

// Watch starts to listen in the calling thread's network namespace. What
// happens from now on is not missed, even before Run.
func Watch(scope Scope) (*Monitor, error) {
	w, err := rtnl.Watch(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return nil, err
	}
	return &Monitor{watcher: w, scope: scope, ready: make(chan struct{}, 1), links: map[int]string{}}, nil
}

// SetScope replaces what is looked at.
func (m *Monitor) SetScope(s Scope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scope = s
}

// Ready receives when there is something to take.
func (m *Monitor) Ready() <-chan struct{} { return m.ready }

// Take returns what happened and starts anew.
func (m *Monitor) Take() Events {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.events
	m.events = Events{}
	return e
}

// Run reads until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = m.watcher.Close() })
	defer stop()
	for {
		err := m.watcher.Next(m.note)
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, rtnl.ErrOverrun):
			m.add(func(e *Events) { e.Overruns++ })
		case err != nil:
			return err
		}
	}
}

func (m *Monitor) add(fn func(*Events)) {
	m.mu.Lock()
	fn(&m.events)
	m.mu.Unlock()
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// note sorts one notification.
func (m *Monitor) note(n rtnl.Notification) {
	m.mu.Lock()
	scope := m.scope
	m.mu.Unlock()
	if n.Kind == unix.RTM_GETNEIGH {
		miss, index, ok := ParseMiss(n.Body)
		if ok && index == scope.Index {
			m.add(func(e *Events) { e.miss(miss) })
		}
		return
	}
	if slices.Contains(scope.Ports, n.Port) {
		return
	}
	text := scope.describe(n)
	if text != "" && (n.Kind == unix.RTM_NEWLINK || n.Kind == unix.RTM_DELLINK) {
		text = m.linkNews(n, text)
	}
	if text != "" {
		m.add(func(e *Events) { e.change(Change{time.Now(), n.Port, text}) })
	}
}

// linkNews returns text, what n says of a link, and "" if it was said before:
// the kernel repeats itself whenever anything at all changes, such as a bridge
// with each of its ports.
func (m *Monitor) linkNews(n rtnl.Notification, text string) string {
	l, _ := parseLink(n.Body)
	if n.Kind == unix.RTM_DELLINK {
		delete(m.links, l.Index)
		return text
	}
	said := fmt.Sprint(text, l.alias, l.forwarding, l.quiet)
	if m.links[l.Index] == said {
		return ""
	}
	m.links[l.Index] = said
	return text
}

func (e *Events) miss(m Miss) {
	if e.Misses == nil {
		e.Misses = map[Miss]time.Time{}
	}
	e.Received++
	if _, ok := e.Misses[m]; !ok {
		e.Misses[m] = time.Now()
	}
}

func (e *Events) change(c Change) {
	if len(e.Changes) >= maxChanges {
		e.More++
		return
	}
	e.Changes = append(e.Changes, c)
}

// describe puts a notification into words if it is about something of ours,
// and returns "" if not.
func (s Scope) describe(n rtnl.Notification) string {
	switch n.Kind {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return s.describeNeighbour(n)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return s.describeRoute(n)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return s.describeLink(n)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return s.describeAddress(n)
	case unix.RTM_NEWNETCONF:
		return s.describeSettings(n)
	}
	return ""
}

// Attributes of a netconfmsg (linux/netconf.h).
const (
	sizeofNetconfMsg  = 4 // the family, padded
	netconfIfindex    = 1
	netconfForwarding = 2
)

// describeSettings tells when forwarding is switched off where our packets come
// in. Of a link that has just been made the kernel tells all settings at once:
// what they are is no news, for whoever makes the link sets them next.
func (s Scope) describeSettings(n rtnl.Notification) string {
	if len(n.Body) < sizeofNetconfMsg {
		return ""
	}
	index, off, others := 0, false, false
	rtnl.EachAttr(n.Body[sizeofNetconfMsg:], func(kind uint16, v []byte) {
		switch kind {
		case netconfIfindex:
			index = int(int32(u32(v)))
		case netconfForwarding:
			off = u32(v) == 0
		default:
			others = true
		}
	})
	if !off || others || index <= 0 || index != s.Index && index != s.Bridge {
		return ""
	}
	return fmt.Sprintf("set forwarding off on link %d", index)
}

func (s Scope) describeAddress(n rtnl.Notification) string {
	// The bridge's gateway address lies inside the networks, too.
	a, ok := parseAddress(n.Body)
	if !ok || a.index != s.Index && !s.inside(a.prefix) {
		return ""
	}
	if n.Kind == unix.RTM_NEWADDR && slices.Contains(s.Gateways, a.prefix) {
		return ""
	}
	wanted := slices.Contains(s.Device.Addrs, a.prefix)
	ours := a.index == s.Index || s.Index == 0
	if n.Port == 0 && ours && s.Device.Name != "" && wanted == (n.Kind == unix.RTM_NEWADDR) {
		return ""
	}
	return verb(n, unix.RTM_DELADDR) + "address " + a.prefix.String()
}

func (s Scope) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(s.Networks, func(n netip.Prefix) bool {
		return p.Bits() >= n.Bits() && n.Contains(p.Addr())
	})
}

func verb(n rtnl.Notification, del uint16) string {
	if n.Kind == del {
		return "deleted "
	}
	return "set "
}

func (s Scope) describeNeighbour(n rtnl.Notification) string {
	nb, ok := parseNeighbour(n.Body)
	if !ok || nb.index != s.Index {
		return ""
	}
	if nb.family == unix.AF_BRIDGE {
		return s.describeFDB(n, nb)
	}
	// The kernel's own bookkeeping: questions in flight (those are misses),
	// answers that age, multicast groups.
	if n.Port == 0 && nb.state&permanent == 0 {
		return ""
	}
	// The kernel deletes in two steps. The first one, to FAILED, names who
	// asked for it; the second does not.
	if n.Kind == unix.RTM_DELNEIGH || nb.state&unix.NUD_FAILED != 0 {
		return fmt.Sprintf("deleted neigh %s", nb.ip)
	}
	kept := ""
	if nb.state&permanent == 0 {
		kept = ", not permanent"
	}
	return fmt.Sprintf("set neigh %s lladdr %s%s", nb.ip, nb.macText(), kept)
}

func (s Scope) describeFDB(n rtnl.Notification, nb neighbour) string {
	if nb.flags&unix.NTF_SELF == 0 || len(nb.mac) != len(MAC{}) {
		return "" // a bridge's entry for the device as its port
	}
	dst, wanted := s.Want.FDB[MAC(nb.mac)]
	if n.Kind == unix.RTM_DELNEIGH {
		if s.Want.FDB != nil && (!wanted || dst != nb.ip || nb.other) {
			return ""
		}
		return fmt.Sprintf("deleted fdb %s", nb.macText())
	}
	if wanted && dst == nb.ip && !nb.other && nb.state&permanent != 0 {
		return ""
	}
	kept := ""
	switch {
	case nb.state&permanent == 0:
		kept = ", not permanent"
	case nb.other:
		kept = ", with a port, VNI or device of its own"
	}
	return fmt.Sprintf("set fdb %s dst %s%s", nb.macText(), nb.ip, kept)
}

func (s Scope) describeRoute(n rtnl.Notification) string {
	r, ok := parseRoute(n.Body)
	if !ok || r.table != unix.RT_TABLE_MAIN {
		return ""
	}
	// The kernel's own routes to the node's subnet come and go with the bridge.
	if !s.inside(r.dst) && r.protocol != Protocol || r.protocol == unix.RTPROT_KERNEL {
		return ""
	}
	return fmt.Sprintf("%sroute %s via %s dev %d proto %d", verb(n, unix.RTM_DELROUTE), r.dst, r.via, r.index, r.protocol)
}

func (s Scope) describeLink(n rtnl.Notification) string {
	l, ok := parseLink(n.Body)
	// What AF_BRIDGE tells of a link are its settings as a bridge's port; the
	// end of them is the port's leaving.
	if ok && n.Body[0] == unix.AF_BRIDGE && n.Kind == unix.RTM_DELLINK && l.master == s.Bridge && s.Bridge != 0 {
		return "deleted port " + l.name + " of the bridge"
	}
	if !ok || n.Body[0] == unix.AF_BRIDGE || l.Index != s.Index && !slices.Contains(s.Names, l.name) {
		return ""
	}
	// A device that has just been made is not up yet. Either we made it, or the
	// end of the one before it was news.
	if n.Kind == unix.RTM_NEWLINK && l.name == s.Device.Name && (l.fresh || l.fits(s.Device)) {
		return ""
	}
	state := "down"
	if l.Up {
		state = "up"
	}
	return fmt.Sprintf("%slink %s %s mtu %d address %s", verb(n, unix.RTM_DELLINK), l.name, state, l.MTU, l.MAC)
}
