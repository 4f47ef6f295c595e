package vxlan

import (
	"context"
	"fmt"
	"net/netip"
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

	mu       sync.Mutex
	scopes   []Scope
	underlay Lookout
	events   Events
}

// A Lookout says which news of the underlay matter. The zero value: none.
type Lookout struct {
	Interface string // the underlay's
	Index     int
	Routes    bool // any change of how others are reached; else only default routes matter
}

// Scope says what a Monitor should look at, for one device.
type Scope struct {
	Index    int            // of the device; changes when it is made anew; 0: it is not made yet
	Bridge   int            // index of the bridge that pods hang on
	Names    []string       // links whose changes matter: the device, the bridge
	Ports    []uint32       // netlink port ids of our own sockets, whose changes are no news
	Networks []netip.Prefix // routes inside them are ours to keep

	// Gateways are addresses of ours inside the networks that are on other links:
	// the bridge's, another device's. That one is set is no news: it is done by
	// whoever makes that link right, with a socket of its own.
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
	Underlay bool               // something has changed that the underlay's choice, address or MTU may follow
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
func Watch(scopes ...Scope) (*Monitor, error) {
	w, err := rtnl.Watch(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return nil, err
	}
	return &Monitor{watcher: w, scopes: scopes, ready: make(chan struct{}, 1), links: map[int]string{}}, nil
}

// SetScope replaces what is looked at: one Scope a device. What concerns all of them,
// such as the bridge and the networks, is in the first.
func (m *Monitor) SetScope(scopes ...Scope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scopes = scopes
}

// SetLookout replaces which news of the underlay matter.
func (m *Monitor) SetLookout(l Lookout) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.underlay = l
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
	return m.watcher.Run(ctx, m.note, func() { m.add(func(e *Events) { e.Overruns++ }) })
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
	scopes, underlay := m.scopes, m.underlay
	m.mu.Unlock()
	if n.Kind == unix.RTM_GETNEIGH {
		miss, ok := ParseMiss(n.Body)
		if ok && slices.ContainsFunc(scopes, func(s Scope) bool { return s.Index == miss.Device }) {
			m.add(func(e *Events) { e.miss(miss) })
		}
		return
	}
	if slices.ContainsFunc(scopes, func(s Scope) bool { return slices.Contains(s.Ports, n.Port) }) {
		return
	}
	if underlay.sees(n) {
		m.add(func(e *Events) { e.Underlay = true })
	}
	text := ""
	for _, s := range scopes {
		if text == "" {
			text = s.describe(n)
		}
	}
	if text != "" && (n.Kind == unix.RTM_NEWLINK || n.Kind == unix.RTM_DELLINK) {
		text = m.linkNews(n, text)
	}
	if text != "" {
		m.add(func(e *Events) { e.change(Change{time.Now(), n.Port, text}) })
	}
}

// sees reports whether a notification is news of the underlay.
func (o Lookout) sees(n rtnl.Notification) bool {
	if o.Interface == "" {
		return false
	}
	switch n.Kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, ok := parseLink(n.Body)
		return ok && n.Body[0] != unix.AF_BRIDGE && (l.Index == o.Index || l.name == o.Interface)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok := parseAddress(n.Body)
		return ok && a.index == o.Index
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok := parseRoute(n.Body)
		return ok && r.table == unix.RT_TABLE_MAIN && r.protocol != Protocol && (o.Routes || r.dst.Bits() == 0)
	}
	return false
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
