package vxlan

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// A MAC is a comparable Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// A Peer is a remote pod subnet and the tunnel endpoint that serves it.
type Peer struct {
	Subnet   netip.Prefix // pod subnet behind the peer
	Gateway  netip.Addr   // the peer's address inside the overlay, of the subnet's family
	MAC      MAC          // the peer's VTEP; zero: it has no tunnel
	Underlay netip.Addr   // where encapsulated packets are sent
	Direct   bool         // on the same link, so a plain route to Underlay will do
}

// State is what the kernel holds for one VXLAN device.
type State struct {
	FDB    map[MAC]netip.Addr     // VTEP MAC → underlay address
	Neighs map[netip.Addr]MAC     // gateway → VTEP MAC, ARP and NDP alike
	Routes map[netip.Prefix]Route // pod subnet → next hop

	// Asked are neighbours that the kernel has no lasting answer for: one in
	// flight, or one that somebody set for a while. They are read only: a
	// question whose notification was lost is seen here.
	Asked map[netip.Addr]bool
}

// A Route is how a pod subnet is reached.
type Route struct {
	Via    netip.Addr // next hop
	Direct bool       // Via is the peer's underlay address and there is no tunnel; else it is the gateway, onlink
}

// Empty returns a State without entries.
func Empty() State {
	return State{
		FDB: map[MAC]netip.Addr{}, Neighs: map[netip.Addr]MAC{}, Routes: map[netip.Prefix]Route{},
		Asked: map[netip.Addr]bool{},
	}
}

// Desired returns the state that reaches every peer. One that is reached directly
// has its tunnel's entries all the same: its route may become one through the
// tunnel at any moment. A peer with neither is not reached.
func Desired(peers []Peer) State {
	s := Empty()
	for _, p := range peers {
		tunnel := p.MAC != MAC{}
		if tunnel {
			s.FDB[p.MAC] = p.Underlay
			s.Neighs[p.Gateway] = p.MAC
		}
		switch {
		case p.Direct:
			s.Routes[p.Subnet] = Route{Via: p.Underlay, Direct: true}
		case tunnel:
			s.Routes[p.Subnet] = Route{Via: p.Gateway}
		}
	}
	return s
}

// Clone returns a copy that shares nothing with s.
func (s State) Clone() State {
	return State{maps.Clone(s.FDB), maps.Clone(s.Neighs), maps.Clone(s.Routes), maps.Clone(s.Asked)}
}

// OnMiss returns s as a node in on-miss mode holds it: every route, but of the
// neighbour and FDB entries only those whose keys are in have already, or are
// asked for. An entry that was asked for once stays, and follows s.
func (s State) OnMiss(have State) State {
	w := State{FDB: map[MAC]netip.Addr{}, Neighs: map[netip.Addr]MAC{}, Routes: s.Routes}
	for mac := range have.FDB {
		if dst, ok := s.FDB[mac]; ok {
			w.FDB[mac] = dst
		}
	}
	asked := slices.AppendSeq(slices.Collect(maps.Keys(have.Neighs)), maps.Keys(have.Asked))
	for _, ip := range asked {
		mac, ok := s.Neighs[ip]
		if !ok {
			continue
		}
		// A neighbour without its FDB entry would turn the next packet into
		// an L2MISS, and that one is dropped rather than parked.
		w.Neighs[ip], w.FDB[mac] = mac, s.FDB[mac]
	}
	return w
}

// Resolve returns the changes that answer m, and nil if no peer has what it
// asks for. The FDB entry comes first: the kernel sends the parked packet when
// the neighbour is set, and a packet without FDB entry is dropped.
func (s State) Resolve(m Miss) []Op {
	mac := m.MAC
	if m.IP.IsValid() {
		var ok bool
		if mac, ok = s.Neighs[m.IP]; !ok {
			return nil
		}
	}
	dst, ok := s.FDB[mac]
	if !ok {
		return nil
	}
	ops := []Op{{Entry: FDB{mac, dst}}}
	if m.IP.IsValid() {
		ops = append(ops, Op{Entry: Neigh{m.IP, mac}})
	}
	return ops
}

// A Miss is the kernel's question for an entry that it lacks: with IP a
// neighbour (L3MISS), without one the FDB entry of MAC (L2MISS).
type Miss struct {
	Device int // index of the device whose table it is
	IP     netip.Addr
	MAC    MAC
}

func (m Miss) String() string {
	if m.IP.IsValid() {
		return "L3MISS " + m.IP.String()
	}
	return "L2MISS " + m.MAC.String()
}

// An Op is one change to the kernel: an entry to set or, if Del, to remove.
type Op struct {
	Del   bool
	Entry Entry
}

func (o Op) String() string {
	if o.Del {
		return "del " + o.Entry.String()
	}
	return "set " + o.Entry.String()
}

// An Entry is an FDB, a Neigh or a Subnet.
type Entry interface{ fmt.Stringer }

// The kinds of Entry. Their texts are those of ip and bridge.
type (
	FDB struct {
		MAC MAC
		Dst netip.Addr
	}
	Neigh struct {
		IP  netip.Addr
		MAC MAC
	}
	Subnet struct {
		Dst   netip.Prefix
		Route Route
	}
)

func (e FDB) String() string   { return fmt.Sprintf("fdb %s dst %s", e.MAC, e.Dst) }
func (e Neigh) String() string { return fmt.Sprintf("neigh %s lladdr %s", e.IP, e.MAC) }
func (e Subnet) String() string {
	if e.Route.Direct {
		return fmt.Sprintf("route %s via %s", e.Dst, e.Route.Via)
	}
	return fmt.Sprintf("route %s via %s onlink", e.Dst, e.Route.Via)
}
