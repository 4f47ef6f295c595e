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

// A loop is the one goroutine that owns the kernel. Every branch of it ends in
// making the kernel hold what the leases ask for.
type loop struct {
	cfg      Config
	network  subnet.Config
	underlay vxlan.Underlay
	log      *slog.Logger
	journal  *journal

	device  *vxlan.Device
	monitor *vxlan.Monitor
	ready   func()       // called once, when the first reconcile is complete
	guard   func() error // says that the run folder is not ours any more
	fatal   error        // ends the loop

	snapshot subnet.Snapshot
	taken    time.Time // when the snapshot came
	retained retention
	leases   []subnet.Lease // peers' leases, with those in their grace time
	want     vxlan.State
	nodeOf   map[vxlan.MAC]string
	answered map[string]uint64 // node → misses
	mtu      int

	bridgeMAC net.HardwareAddr // of a bridge that was there before us; else nil

	heard       []vxlan.Change // by others since the last comparison
	bridgeIndex int
	clock       schedule
	repairs     *rate.Limiter
	wait        time.Duration // before the next retry
	misses      api.MissCount
	kernel      api.Kernel
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
	ops, err := vxlan.Reconcile(l.device, vxlan.Exactly(l.want))
	l.count(ops, err)
	if err != nil {
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
	before := l.want
	l.derive(l.taken)
	if moved || !l.synced || !sameState(before, l.want) {
		l.reconcile("snapshot")
	}
}

// derive computes the wanted state from the snapshot and the grace times.
func (l *loop) derive(now time.Time) {
	l.leases = l.retained.update(l.snapshot.Own, l.snapshot.Peers, now)
	l.want = vxlan.Desired(peersOf(l.leases, l.underlay4()))
	l.nodeOf = make(map[vxlan.MAC]string, len(l.leases))
	for _, lease := range l.leases {
		if v, ok := vtepOf(lease, l.underlay4()); ok {
			l.nodeOf[vxlan.MAC(v.MAC)] = nodeName(lease)
		}
	}
	if end, ok := l.retained.next(); ok {
		l.clock.set(expire, end)
	} else {
		l.clock.clear(expire)
	}
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

// settle makes the own lease the device's address.
func (l *loop) settle() error {
	c := l.device.Config()
	c.Addrs, c.Networks = nil, l.networks()
	for _, s := range l.snapshot.Own.Subnets {
		c.Addrs = append(c.Addrs, netip.PrefixFrom(s.Addr(), s.Addr().BitLen()))
	}
	l.log.Info("own lease", "subnets", l.snapshot.Own.Subnets)
	l.journal.event("lease", fmt.Sprintf("own subnets are %v", l.snapshot.Own.Subnets))
	return l.device.SetConfig(c)
}

func (l *loop) underlay4() bool { return l.device.Config().Local.Is4() }

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
	if !e.Dirty() {
		return
	}
	l.heard = append(l.heard, e.Changes...)
	if e.Overruns > 0 {
		l.journal.event("foreign", "the kernel dropped notifications: everything is compared")
	}
	if !l.clock[repair].IsZero() {
		return // it will be seen to
	}
	// At once, unless the last repair was a moment ago: then somebody works
	// against us or is not finished, and every round costs a look at all tables.
	now := time.Now()
	delay := max(l.repairs.ReserveN(now, 1).DelayFrom(now), repairGap-now.Sub(l.kernel.Last))
	l.clock.set(repair, now.Add(delay))
	if delay <= 0 {
		l.due(now)
	}
}

// answer sets the entries that a miss asks for.
func (l *loop) answer(m vxlan.Miss, read time.Time) {
	ops := l.want.Resolve(m)
	told := api.Miss{Time: read, Kind: "L2MISS"}
	mac := m.MAC
	if m.IP.IsValid() {
		told.Kind, told.Addr = "L3MISS", m.IP
		mac = l.want.Neighs[m.IP]
	} else {
		told.MAC = m.MAC.String()
	}
	if ops == nil {
		l.misses.Unknown++
	} else {
		err := l.device.Apply(ops)
		l.count(ops, err)
		told.Node, told.Answered = l.nodeOf[mac], err == nil
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
	for task, why := range map[task]string{audit: "audit", retry: "retry", repair: "repair", expire: "grace time over"} {
		if !l.clock.take(task, now) {
			continue
		}
		switch task {
		case audit:
			l.clock.set(audit, now.Add(auditEvery))
			l.fatal = l.guard()
		case expire:
			l.derive(now)
		}
		l.reconcile(why)
	}
}

// reconcile makes device, bridge and tables right, and remembers how it went.
func (l *loop) reconcile(why string) {
	if len(l.snapshot.Own.Subnets) == 0 {
		return // nothing is known of the own subnet yet
	}
	l.monitor.SetScope(l.scope())
	did, err := l.device.Ensure()
	bridge, berr := l.ensureBridge()
	did = append(did, bridge...)
	l.kernel.Operations += uint64(len(did))
	if err != nil || berr != nil {
		l.kernel.Errors++
	}
	l.monitor.SetScope(l.scope())

	var ops []vxlan.Op
	if err == nil {
		want := vxlan.Exactly(l.want)
		if l.cfg.Resolve == OnMiss {
			want = l.want.OnMiss
		}
		ops, err = vxlan.Reconcile(l.device, want)
		l.count(ops, err)
	}
	err = errors.Join(err, berr)
	l.kernel.Reconciles++
	l.kernel.Last = time.Now()
	l.blame(len(did)+len(ops) > 0)
	l.tell(why, did, ops, err)
	l.pace(err)
	l.publish()
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

// blame journals what others did: all of it, if something had to be undone, else
// what somebody did by name. In on-miss mode a flushed table is such a thing:
// its entries come back when they are asked for. Much else of what is heard is
// the kernel's own account of what we asked for.
func (l *loop) blame(undone bool) {
	if undone && len(l.heard) > 0 {
		l.kernel.Foreign++
	}
	for _, c := range l.heard {
		if undone || c.Port != 0 {
			l.journal.event("foreign", fmt.Sprintf("%s (netlink port %d)", c.Text, c.Port))
		}
	}
	l.heard = nil
}

// pace decides when refused changes are tried again.
func (l *loop) pace(err error) {
	l.clock.clear(repair)
	if err == nil {
		l.wait = 0
		l.clock.clear(retry)
		return
	}
	l.wait = min(max(2*l.wait, retryFirst), retryMax)
	l.clock.set(retry, time.Now().Add(l.wait))
}

func (l *loop) scope() vxlan.Scope {
	return vxlan.Scope{
		Index:    l.device.Link().Index,
		Bridge:   l.bridgeIndex,
		Names:    []string{l.cfg.Device, l.cfg.Bridge},
		Ports:    []uint32{l.device.Port()},
		Networks: l.networks(),
		// Of links and FDB entries the kernel does not say who changed them:
		// what is as wanted is no news. Nobody writes to l.want; derive
		// replaces it.
		Device:   l.device.Config(),
		Want:     l.want,
		Gateways: l.bridge().Gateways,
	}
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
		l.kernel.LastError = err.Error()
	case err == nil && l.kernel.LastError != "":
		l.log.Info("kernel holds everything again")
		l.kernel.LastError = ""
	}
}
