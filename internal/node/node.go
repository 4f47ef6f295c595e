package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

// A node is one daemon.
type node struct {
	cfg     Config
	log     *slog.Logger
	manager subnet.Manager
	started time.Time
	journal journal
	folder  runFolder

	waiting   atomic.Pointer[string] // what the start waits for; nil once the loop turns
	ready     atomic.Bool
	up        chan struct{} // closed when ready
	snapshots chan subnet.Snapshot
	requests  chan subnet.Request // of the lease, newest wins
	queries   chan func()
	loop      *loop // of the loop's goroutine alone, once it turns
}

// Run is the daemon. It returns nil when ctx ends; device, tables, bridge and
// node file stay as they are then, so that traffic goes on.
func Run(ctx context.Context, cfg Config, m subnet.Manager, log *slog.Logger) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return fmt.Errorf("make run folder: %w", err)
	}
	folder, err := lock(cfg.RunDir)
	if err != nil {
		return err
	}
	defer folder.unlock()
	if here, err := present(); err != nil {
		log.Warn("two daemons would undo each other's changes", "error", err)
	} else {
		defer func() { _ = here.Close() }()
	}
	n := &node{
		folder: folder,
		cfg:    cfg, log: log, manager: m, started: time.Now(),
		up: make(chan struct{}), snapshots: make(chan subnet.Snapshot, 1), requests: make(chan subnet.Request, 1), queries: make(chan func()),
	}
	n.wait("the store")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.serve(ctx) })
	g.Go(func() error { return n.start(ctx, g) })
	if err = g.Wait(); err != nil {
		n.report(true, reportFailed, err.Error())
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

func (n *node) wait(what string) { n.waiting.Store(&what) }

// start brings the node up, step by step, and then adds the tasks to g.
func (n *node) start(ctx context.Context, g *errgroup.Group) error {
	network, err := n.manager.Config(ctx)
	if err != nil || ctx.Err() != nil {
		return quiet(ctx, err)
	}
	if n.loop, err = n.newLoop(network); err != nil {
		return err
	}
	n.wait("a lease")
	want := n.loop.request()
	want.Want = n.folder.held(n.cfg.Node, n.log)
	_, err = n.manager.Acquire(ctx, want)
	if err != nil || ctx.Err() != nil {
		n.loop.close()
		return quiet(ctx, err)
	}
	n.wait("the first snapshot")
	g.Go(func() error { return n.loop.monitor.Run(ctx) })
	g.Go(func() error { return n.loop.firewall.Run(ctx) })
	g.Go(func() error { return n.loop.filter.Run(ctx) })
	g.Go(func() error { return n.manager.Run(ctx, n.offer) })
	g.Go(func() error { return n.keepLet(ctx) })
	if n.cfg.PathMTU {
		g.Go(func() error { return n.boundPaths(ctx) })
	}
	if a, ok := n.manager.(Announcer); ok {
		g.Go(func() error { return n.tell(ctx, a) })
	}
	if n.cfg.CNIConfDir != "" {
		g.Go(func() error { return n.watchConflist(ctx) })
	}
	g.Go(func() error {
		return sweeper{dir: n.cfg.RunDir, bridge: n.cfg.Bridge, every: n.cfg.Sweep, log: n.log, journal: &n.journal}.run(ctx)
	})
	g.Go(func() error {
		defer n.loop.close()
		return n.loop.run(ctx, n.snapshots, n.queries)
	})
	n.waiting.Store(nil)
	return nil
}

// warnOfUnsupported names what the network's configuration asks for and this
// version does not do. Peers are reached through the tunnel all the same.
func (n *node) warnOfUnsupported(c subnet.Config) {
	for key, on := range map[string]bool{
		"Backend.Learning": c.Backend.Learning,
		"Backend.GBP":      c.Backend.GBP,
	} {
		if on {
			n.log.Warn("configuration key is not supported yet, and ignored", "key", key)
		}
	}
}

// newLoop makes the loop, with the underlay as it is now. It listens before it
// looks, so that no change falls in between.
func (n *node) newLoop(network subnet.Config) (*loop, error) {
	monitor, err := vxlan.Watch(vxlan.Scope{})
	if err != nil {
		return nil, err
	}
	u, err := vxlan.FindUnderlay(n.cfg.choice(network))
	if err != nil {
		return nil, err
	}
	mtu, err := podMTU(network, u, 0)
	if err != nil {
		return nil, err
	}
	n.log.Info("underlay", "interface", u.Interface, "addresses", addrsOf(u), "mtu", u.MTU, "reason", u.Reason)
	n.warnOfUnsupported(network)
	rules, err := firewall.Open(n.cfg.Firewall, n.log)
	if err != nil {
		return nil, fmt.Errorf("%w; --firewall chooses another one, or none", err)
	}
	filter, err := pod.WatchFilter()
	if err != nil {
		return nil, err
	}
	l := &loop{
		cfg: n.cfg, network: network, underlay: u, mtu: mtu, log: n.log, journal: &n.journal, report: n.report,
		monitor: monitor, firewall: rules, filter: filter, ready: n.announce, guard: n.folder.check, relet: n.relet, moved: n.moved, bridgeMAC: n.bridgeMAC(),
		retained: retention{grace: n.cfg.Grace}, answered: map[string]uint64{},
		repairs: rate.NewLimiter(repairRate, repairBurst),
	}
	l.clock.set(follow, time.Now()) // what has changed while the store was waited for
	l.watchUnderlay()
	l.findUnreachable()
	return l, l.configure()
}

// bridgeMAC returns the MAC by which running pods know their gateway, if it is
// not ours to choose: what the node file says, or else that of a bridge with pods
// which was there before us; a new one would stall their connections until their
// neighbour entries fail.
func (n *node) bridgeMAC() net.HardwareAddr {
	if f, err := subnet.ReadNodeFile(n.cfg.RunDir); err == nil && f.Bridge == n.cfg.Bridge {
		if f.BridgeMAC == (subnet.MAC{}) {
			return nil
		}
		return f.BridgeMAC[:]
	}
	mac, err := pod.AdoptBridge(n.cfg.Bridge)
	switch {
	case err != nil:
		n.log.Warn("the bridge's MAC cannot be read", "bridge", n.cfg.Bridge, "error", err)
		return nil
	case mac != nil:
		n.log.Info("bridge with pods taken over", "bridge", n.cfg.Bridge, "mac", mac)
	}
	return mac
}

// offer puts s in the place of a snapshot that the loop has not taken yet.
func (n *node) offer(s subnet.Snapshot) {
	select {
	case <-n.snapshots:
	default:
	}
	n.snapshots <- s
}

// announce says once that the node is ready.
func (n *node) announce() {
	n.ready.Store(true)
	close(n.up)
	n.log.Info("ready", "after", time.Since(n.started).Round(time.Millisecond))
	// Reading and deriving everything for the first time left as much garbage as the
	// node will have for hours.
	debug.FreeOSMemory()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// do runs fn on the loop's goroutine, which alone may look at its state and the
// kernel. It reports false if the loop does not turn (yet) or ctx ends first; then
// fn does not run any more, and what it would have written is the caller's.
func (n *node) do(ctx context.Context, fn func(*loop)) bool {
	if n.waiting.Load() != nil {
		return false
	}
	var claimed atomic.Bool // by the loop, or by who gives up
	done := make(chan struct{})
	query := func() {
		defer close(done)
		if claimed.CompareAndSwap(false, true) {
			fn(n.loop)
		}
	}
	select {
	case n.queries <- query:
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	if claimed.CompareAndSwap(false, true) {
		return false
	}
	<-done // it has begun, and takes no longer than the kernel's answers
	return true
}

// quiet makes an error of ctx's end none.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
