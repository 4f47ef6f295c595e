package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

const (
	// auditEvery is how often the kernel is compared with the leases although
	// nothing was heard of it.
	auditEvery = 60 * time.Second

	// repairGap is the least time between two repairs. While somebody keeps
	// undoing them there are repairBurst at that pace, then repairRate a second.
	repairGap   = 10 * time.Millisecond
	repairBurst = 20
	repairRate  = 5

	// retryFirst and retryMax bound the wait before refused changes are tried
	// again.
	retryFirst = 100 * time.Millisecond
	retryMax   = 10 * time.Second
)

// An area is a part of what is ours that somebody else can change.
type area int

const (
	inTables area = iota // devices, bridge, routes, neighbours, FDB entries
	inRules              // of the firewall
	inFilter             // what pods may send by
	areas                // how many there are
)

// News is of a change by somebody else.
type news struct {
	vxlan.Change
	area area
}

// A loop is the one goroutine that owns the kernel. Every branch of it ends in
// making the kernel hold what the leases ask for.
type loop struct {
	cfg      Config
	network  subnet.Config
	underlay vxlan.Underlay
	lost     string // why the underlay is not to be found at the moment
	log      *slog.Logger
	journal  *journal
	report   func(warning bool, reason, text string) // to the cluster's admins

	unreachable map[netip.Addr]string // addresses that no peer can have, and why

	overlays []*overlay // one per underlay family, IPv4 first
	monitor  *vxlan.Monitor
	firewall *firewall.Firewall
	filter   *pod.FilterMonitor
	ready    func()               // called once, when the first reconcile is complete
	guard    func() error         // says that the run folder is not ours any more
	relet    func(subnet.Request) // has the lease updated
	moved    func()               // has the store's connections made anew
	fatal    error                // ends the loop

	snapshot subnet.Snapshot
	taken    time.Time // when the snapshot came
	retained retention
	leases   []subnet.Lease    // peers' leases, with those in their grace time
	answered map[string]uint64 // node → misses
	mtu      int               // bytes, of pods
	pathMTU  int               // bytes, that the ways to all peers take; 0: as the interface

	bridgeMAC net.HardwareAddr // of a bridge that was there before us; else nil

	heard       []news // of others' changes since the last comparison
	bridgeIndex int
	clock       schedule
	repairs     *rate.Limiter
	reserved    *rate.Reservation // for the newest repair
	wait        time.Duration     // before the next retry
	misses      api.MissCount
	warnings    []string // what is wrong around us, in words
	unfit       []string // pods whose links keep another MTU, and why
	kernel      api.Kernel
	differs     bool   // pods' MTU from that of most peers
	unwritable  string // why pods cannot start: node file or conflist
	synced      bool
}

// run turns until ctx ends. Snapshots and queries come by channel, the kernel's
// news by the monitor.
func (l *loop) run(ctx context.Context, snapshots <-chan subnet.Snapshot, queries <-chan func()) error {
	l.clock.set(audit, time.Now().Add(auditEvery))
	timer := time.NewTimer(auditEvery)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(l.clock.earliest()))
		select {
		case <-ctx.Done():
			return l.leave()
		case s := <-snapshots:
			l.take(s)
		case <-l.monitor.Ready():
			l.heed(l.monitor.Take())
		case <-l.firewall.Ready():
			l.heedBeside(inRules, "changed the firewall's rules")
		case <-l.filter.Ready():
			if l.filter.Foreign() {
				l.heedBeside(inFilter, "changed what pods may send by")
			} else {
				l.lookSoon()
			}
		case fn := <-queries:
			fn()
		case <-timer.C:
			l.due(time.Now())
		}
		if l.fatal != nil {
			return l.fatal
		}
	}
}

// leave prepares for the time without a daemon: what an on-miss node would have
// asked for is written now.
func (l *loop) leave() error {
	if l.cfg.Resolve != OnMiss || !l.synced {
		return nil
	}
	l.cfg.Resolve = Eager
	if _, err := l.reconcileOverlays(); err != nil {
		return fmt.Errorf("write all entries before leaving: %w", err)
	}
	return nil
}

// take makes the newest snapshot the wanted state. One that wants nothing else of
// the kernel, such as after a lease was renewed, costs no look at it: what others
// change is heard of, and the audit looks in any case.
func (l *loop) take(s subnet.Snapshot) {
	moved := !slices.Equal(l.snapshot.Own.Subnets, s.Own.Subnets)
	for _, i := range s.Ignored {
		if !slices.Contains(l.snapshot.Ignored, i) {
			l.log.Warn("stored record ignored", "key", i.Key, "reason", i.Reason)
			l.journal.event("lease", "ignored "+i.Key+": "+i.Reason)
		}
	}
	l.snapshot, l.taken = s, time.Now()
	if moved {
		if err := l.settle(); err != nil {
			l.log.Error("own lease cannot be used", "error", err)
		}
	}
	if changed := l.derive(l.taken); moved || !l.synced || changed {
		l.reconcile("snapshot")
	} else {
		l.warn() // a lease may say something else of its pods' MTU
	}
}

// derive computes the wanted state from the snapshot and the grace times, and says
// whether it is another than before.
func (l *loop) derive(now time.Time) (changed bool) {
	l.leases = l.retained.update(l.snapshot.Own, l.snapshot.Peers, now)
	peers := l.sortPeers(l.leases)
	for _, o := range l.overlays {
		want := vxlan.Desired(peers[o.is4()])
		changed = changed || !sameState(o.want, want)
		o.want, o.nodeOf = want, make(map[vxlan.MAC]string, len(l.leases))
		for _, lease := range l.leases {
			if v, ok := vtepOf(lease, o.is4()); ok {
				o.nodeOf[vxlan.MAC(v.MAC)] = nodeName(lease)
			}
		}
	}
	if end, ok := l.retained.next(); ok {
		l.clock.set(expire, end)
	} else {
		l.clock.clear(expire)
	}
	return changed
}

// nodeName is what a lease is called where people read it. Records of flannel
// name no node.
func nodeName(l subnet.Lease) string {
	if l.Node != "" {
		return l.Node
	}
	if len(l.VTEPs) > 0 {
		return l.VTEPs[0].Underlay.String()
	}
	return "?"
}

// settle makes the own lease the devices' addresses.
func (l *loop) settle() error {
	l.log.Info("own lease", "subnets", l.snapshot.Own.Subnets)
	l.journal.event("lease", fmt.Sprintf("own subnets are %v", l.snapshot.Own.Subnets))
	return l.configure()
}

func (l *loop) bridge() pod.Bridge {
	b := pod.Bridge{Name: l.cfg.Bridge, MTU: l.mtu, Hardware: l.bridgeMAC}
	for _, s := range l.snapshot.Own.Subnets {
		b.Gateways = append(b.Gateways, netip.PrefixFrom(s.Addr().Next(), s.Bits()))
	}
	b.Networks = l.networks()
	return b
}

// networks are the cluster's pod networks.
func (l *loop) networks() (all []netip.Prefix) {
	for _, r := range l.network.Ranges {
		all = append(all, r.Network)
	}
	return all
}

// heed answers misses and repairs what others changed.
func (l *loop) heed(e vxlan.Events) {
	for miss, read := range e.Misses {
		l.answer(miss, read)
	}
	l.misses.Received += e.Received
	l.misses.Overruns += uint64(e.Overruns)
	if e.Underlay || e.Overruns > 0 {
		l.clock.setEarlier(follow, time.Now().Add(followGap))
	}
	if !e.Dirty() {
		return
	}
	for _, c := range e.Changes {
		l.heard = append(l.heard, news{c, inTables})
	}
	if e.Overruns > 0 {
		l.journal.event("foreign", "the kernel dropped notifications: everything is compared")
	}
	l.lookSoon()
}

// heedBeside is heed for what is beside the overlay's own tables.
func (l *loop) heedBeside(a area, text string) {
	l.heard = append(l.heard, news{vxlan.Change{Time: time.Now(), Text: text}, a})
	l.lookSoon()
}

// lookSoon has everything compared.
func (l *loop) lookSoon() {
	if !l.clock[repair].IsZero() {
		return // it will be seen to
	}
	// At once, unless the last repair was a moment ago: then somebody works
	// against us or is not finished, and every round costs a look at all tables.
	now := time.Now()
	l.reserved = l.repairs.ReserveN(now, 1)
	delay := max(l.reserved.DelayFrom(now), repairGap-now.Sub(l.kernel.Last))
	l.clock.set(repair, now.Add(delay))
	if delay <= 0 {
		l.due(now)
	}
}

// answer sets the entries that a miss asks for.
func (l *loop) answer(m vxlan.Miss, read time.Time) {
	i := slices.IndexFunc(l.overlays, func(o *overlay) bool { return o.device.Link().Index == m.Device })
	if i < 0 {
		return // of a device that is made anew by now
	}
	o := l.overlays[i]
	ops := o.want.Resolve(m)
	told := api.Miss{Time: read, Kind: "L2MISS"}
	mac := m.MAC
	if m.IP.IsValid() {
		told.Kind, told.Addr = "L3MISS", m.IP
		mac = o.want.Neighs[m.IP]
	} else {
		told.MAC = m.MAC.String()
	}
	if ops == nil {
		l.misses.Unknown++
	} else {
		err := o.device.Apply(ops)
		l.count(ops, err)
		told.Node, told.Answered = o.nodeOf[mac], err == nil
		if err == nil {
			l.misses.Answered++
			l.answered[told.Node]++
		}
	}
	told.Micros = time.Since(read).Microseconds()
	l.journal.misses.add(told)
	l.log.Debug("miss", "question", m.String(), "node", told.Node, "answered", told.Answered)
}

// due does what the clock asks for.
func (l *loop) due(now time.Time) {
	for task, why := range map[task]string{audit: "audit", retry: "retry", repair: "repair", expire: "grace time over", follow: "underlay"} {
		if !l.clock.take(task, now) {
			continue
		}
		switch task {
		case audit:
			l.clock.set(audit, now.Add(auditEvery))
			l.fatal = l.guard()
			l.follow()
			continue
		case follow:
			l.follow()
			continue
		case expire:
			l.derive(now)
		}
		l.reconcile(why)
	}
}

// reconcile makes devices, bridge and tables right, and remembers how it went.
func (l *loop) reconcile(why string) {
	if len(l.snapshot.Own.Subnets) == 0 {
		return // nothing is known of the own subnet yet
	}
	l.monitor.SetScope(l.scopes()...)
	did, err := l.ensureOverlays()
	if err == nil && !l.synced {
		var old []string
		old, err = vxlan.RemoveDevices(l.deviceNames()...)
		did = append(did, old...)
	}
	l.monitor.SetScope(l.scopes()...)
	var ops []vxlan.Op
	failed := err != nil
	if !failed { // before what is beside it, which may have to wait for others
		ops, err = l.reconcileOverlays()
	}
	bridge, berr := l.ensureBridge()
	rules, ferr := l.ensureFirewall()
	filter, perr := l.ensureFilter()
	changes := [areas]int{inTables: len(did) + len(bridge), inRules: len(rules), inFilter: len(filter)}
	did = slices.Concat(did, bridge, rules, filter)
	beside := errors.Join(berr, ferr, perr)
	l.kernel.Operations += uint64(len(did))
	if failed || beside != nil {
		l.kernel.Errors++
	}
	l.monitor.SetScope(l.scopes()...)

	refused := vxlan.Refused(err)
	ops = slices.DeleteFunc(ops, func(o vxlan.Op) bool { return slices.Contains(refused, o) })
	err = errors.Join(err, beside)
	l.kernel.Reconciles++
	l.kernel.Last = time.Now()
	changes[inTables] += len(ops)
	l.blame(changes)
	l.tell(why, did, ops, err)
	l.pace(err)
	l.publish()
	if why != "repair" { // which must be quick
		l.warn()
	}
}

// ensureBridge makes the bridge right, hangs stray pods' links back on it, and
// returns what was changed, in words.
func (l *loop) ensureBridge() ([]string, error) {
	b, err := l.bridge().Ensure()
	if err != nil {
		return b.Changes, err
	}
	l.bridgeIndex = b.Index
	back, err := pod.Reattach(b.Index)
	return append(b.Changes, back...), err
}

// blame journals what others did: all of it, if something of the same had to be
// undone, else what somebody did by name. In on-miss mode a flushed table is such a
// thing: its entries come back when they are asked for. Much else of what is heard is
// the kernel's own account of what we asked for, and a look finds what the plugin is
// about to do itself.
func (l *loop) blame(changes [areas]int) {
	undone := "" // the first: how many there were would make each report another
	for _, n := range l.heard {
		if changes[n.area] > 0 && undone == "" {
			undone = n.Text
		}
		if changes[n.area] > 0 || n.Port != 0 {
			l.journal.event("foreign", fmt.Sprintf("%s (netlink port %d)", n.Text, n.Port))
		}
	}
	l.heard = nil
	if undone == "" {
		return
	}
	l.kernel.Foreign++
	l.report(true, reportRepaired, "somebody else changed what is the overlay's, and it is right again: "+undone)
}

// pace decides when refused changes are tried again.
func (l *loop) pace(err error) {
	l.clock.clear(repair)
	if l.reserved != nil {
		l.reserved.Cancel() // changes nothing unless it was waited for and not needed
	}
	if err == nil {
		l.wait = 0
		l.clock.clear(retry)
		return
	}
	l.wait = min(max(2*l.wait, retryFirst), retryMax)
	l.clock.set(retry, time.Now().Add(l.wait))
}

// count books changes that were attempted.
func (l *loop) count(ops []vxlan.Op, err error) {
	l.kernel.Operations += uint64(len(ops))
	if err != nil {
		l.kernel.Errors++
	}
}

// tell logs and journals what a reconcile did: the first change in full, the
// rest as a count.
func (l *loop) tell(why string, did []string, ops []vxlan.Op, err error) {
	for _, o := range ops {
		did = append(did, o.String())
	}
	if len(did) > 0 {
		text := did[0]
		if len(did) > 1 {
			text += fmt.Sprintf(" and %d more", len(did)-1)
		}
		l.log.Info("kernel changed", "why", why, "changes", len(did), "first", did[0])
		l.journal.event("reconcile", why+": "+text)
	}
	switch {
	case err != nil && l.kernel.LastError != err.Error():
		l.log.Error("kernel refused changes, trying again", "error", err)
		l.report(true, reportRefused, err.Error())
		l.kernel.LastError = err.Error()
	case err == nil && l.kernel.LastError != "":
		l.log.Info("kernel holds everything again")
		l.report(false, reportHolds, "the kernel holds everything again that the leases ask for")
		l.kernel.LastError = ""
	}
}
