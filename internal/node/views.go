package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

// errBusy says that the loop had no time for a question, or does not turn yet.
var errBusy = errors.New("overlayd does not hold a lease yet, or is busy: see /readyz")

// status collects what the node is and does. While the start still waits, only
// what is known by then is filled in.
func (n *node) status(ctx context.Context) (api.Status, error) {
	s := api.Status{
		Node: n.cfg.Node, Version: n.cfg.Version, Started: n.started,
		NotReady: n.notReady(), Resolve: string(n.cfg.Resolve),
		Store: api.Store{Kind: n.cfg.Store},
	}
	s.Ready = s.NotReady == nil
	var err error
	if n.do(ctx, func(l *loop) { err = l.fill(&s) }) && len(s.Lease.Subnets) > 0 {
		// A slot file that cannot be read is one fact more, and hides no other.
		var serr error
		if s.Slots, serr = n.slots(ctx, s.Lease.Subnets); serr != nil {
			s.Slots.Error = serr.Error()
		}
	}
	return s, err
}

func (n *node) slots(ctx context.Context, subnets []netip.Prefix) (api.Slots, error) {
	pool, err := ipam.Open(n.cfg.RunDir, subnets)
	if err != nil {
		return api.Slots{}, err
	}
	defer func() { _ = pool.Close() }()
	u, err := pool.Usage(ctx)
	return api.Slots{Total: u.Total, Held: u.Held, Resting: u.Resting}, err
}

func (l *loop) fill(s *api.Status) error {
	s.Store.Revision, s.Store.Snapshot = l.snapshot.Revision, l.taken
	for _, i := range l.snapshot.Ignored {
		s.Store.Ignored = append(s.Store.Ignored, api.Ignored(i))
	}
	s.Lease = leaseView(l.snapshot.Own, true)
	s.Underlay = api.Underlay{Interface: l.underlay.Interface, MTU: l.underlay.MTU, Reason: l.underlay.Reason, Lost: l.lost}
	for _, e := range l.underlay.Ends {
		s.Underlay.Addresses = append(s.Underlay.Addresses, e.Addr)
	}
	s.PodMTU, s.Backend, s.Devices = l.mtu, l.network.Backend.Type, []api.Device{}
	for _, o := range l.overlays {
		if c, link := o.device.Config(), o.device.Link(); c.Name != "" {
			s.Devices = append(s.Devices, api.Device{
				Name: c.Name, Index: link.Index, Up: link.Up, VNI: c.VNI, Port: c.Port, Local: c.Local, MAC: link.MAC.String(), MTU: link.MTU,
			})
		}
	}
	s.Misses, s.Kernel, s.Warnings = l.misses, l.kernel, l.warnings
	if l.unwritable != "" {
		s.Kernel.LastError = strings.TrimPrefix(l.kernel.LastError+"; "+l.unwritable, "; ")
	}
	s.Dropped = l.dropped()
	peers, err := l.peerViews()
	s.Peers.Total = len(peers)
	for _, p := range peers {
		if p.InSync {
			s.Peers.InSync++
		}
	}
	return err
}

// dropped counts what the rules drop.
func (l *loop) dropped() (d api.Dropped) {
	var err, perr error
	if l.cfg.Firewall != firewall.None && l.tunnels() && l.cfg.PeerFilter {
		d.VXLAN, err = l.firewall.Dropped()
	}
	d.Spoofed, perr = pod.Spoofed()
	if err := errors.Join(err, perr); err != nil {
		d.Error = err.Error()
	}
	return d
}

// peers compares what the kernel holds for each peer with its lease.
func (n *node) peers(ctx context.Context) (peers []api.Peer, err error) {
	if !n.do(ctx, func(l *loop) { peers, err = l.peerViews() }) {
		return nil, errBusy
	}
	return peers, err
}

func (l *loop) peerViews() ([]api.Peer, error) {
	missing, direct, err := l.missing()
	if err != nil {
		return nil, err
	}
	var own []bool
	for _, e := range l.underlay.Ends {
		own = append(own, e.Local.Is4())
	}
	views := make([]api.Peer, 0, len(l.leases))
	for _, lease := range l.leases {
		p := api.Peer{Node: nodeName(lease), Subnets: lease.Subnets, MTU: lease.MTU, Misses: l.answered[nodeName(lease)]}
		for _, s := range lease.Subnets {
			if why := l.whyNot(lease, s, own); why != "" {
				p.Missing = append(p.Missing, why)
				continue
			}
			v, _ := choose(lease, s, own)
			if direct[s] {
				p.Direct = append(p.Direct, s)
			}
			for _, key := range []string{v.MAC.String(), s.Addr().String(), s.String()} {
				p.Missing = append(p.Missing, missing[key]...)
			}
			if !p.Underlay.IsValid() {
				p.Underlay = v.Underlay
				if l.tunnels() {
					p.MAC = v.MAC.String()
				}
			}
		}
		slices.Sort(p.Missing)
		p.Missing = slices.Compact(p.Missing)
		p.InSync = len(p.Missing) == 0
		views = append(views, p)
	}
	return views, nil
}

// missing is what the kernel lacks, by what an entry and a lease have in common
// (MAC, gateway or subnet), and which subnets are reached by plain routes.
func (l *loop) missing() (lacks map[string][]string, direct map[netip.Prefix]bool, err error) {
	lacks, direct = map[string][]string{}, map[netip.Prefix]bool{}
	for _, o := range l.overlays {
		have, err := o.device.State()
		if err != nil {
			return nil, nil, err
		}
		want := o.want
		if l.cfg.Resolve == OnMiss {
			want = want.OnMiss(have)
		}
		for dst, r := range want.Routes {
			direct[dst] = r.Direct
		}
		for _, op := range vxlan.Diff(want, have) {
			if !op.Del { // what is there too much is no peer's
				lacks[owner(op.Entry)] = append(lacks[owner(op.Entry)], op.Entry.String())
			}
		}
	}
	if !l.tunnels() { // a peer on another link has no route at all
		for _, lease := range l.leases {
			for _, s := range lease.Subnets {
				if !direct[s] {
					lacks[s.String()] = append(lacks[s.String()], "a link that both nodes are on, as host-gw needs it")
				}
			}
		}
	}
	return lacks, direct, nil
}

// owner is what an entry and a lease have in common.
func owner(e vxlan.Entry) string {
	switch e := e.(type) {
	case vxlan.FDB:
		return e.MAC.String()
	case vxlan.Neigh:
		return e.IP.String()
	case vxlan.Subnet:
		return e.Dst.String()
	}
	return ""
}

// pods joins held slots and pods' links. It asks files and kernel, not the loop.
func (n *node) pods(ctx context.Context) ([]api.Pod, error) {
	slots, err := ipam.List(ctx, n.cfg.RunDir)
	if err != nil {
		return nil, err
	}
	ports, err := pod.List()
	if err != nil {
		return nil, err
	}
	links := map[ipam.Key]string{} // by the alias: a renamed link is the pod's all the same
	for _, p := range ports {
		links[ipam.Key{Container: p.Container, IfName: p.IfName}] = p.HostName
	}
	bridge, _, err := pod.ReadBridge(n.cfg.Bridge)
	if err != nil {
		return nil, err
	}
	views := make([]api.Pod, 0, len(slots))
	for _, s := range slots {
		v := api.Pod{
			Pod: s.Pod, Container: s.Key.Container, IfName: s.Key.IfName, Addresses: s.Addrs,
			Slot: s.Index, AgeSecs: int64(s.Age.Seconds()), Link: links[s.Key],
		}
		if guest, ok := bridge.With(s.Addrs); v.Link == "" && ok && s.Imported {
			v.Link = guest.HostName
		}
		views = append(views, v)
	}
	return views, nil
}
