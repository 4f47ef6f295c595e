package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

const (
	// followGap is the least time from news of the underlay to a look at it: one
	// change comes as several, such as an address that is taken off and another
	// that is set.
	followGap = 50 * time.Millisecond

	// Refused updates of the lease are made again, after relet, then after twice
	// as long each time, up to reletMax.
	relet    = time.Second
	reletMax = 30 * time.Second
)

// choice is how the underlay is chosen.
func (c Config) choice(network subnet.Config) vxlan.Choice {
	o := vxlan.Choice{Ifaces: c.Ifaces, Regexes: c.IfaceRegexes, CanReach: c.CanReach}
	for _, p := range []netip.Addr{c.Public, c.Public6} {
		if p.IsValid() {
			o.Public = append(o.Public, p)
		}
	}
	for _, r := range network.Ranges {
		o.Avoid = append(o.Avoid, r.Network)
		o.Pods4 = o.Pods4 || r.Network.Addr().Is4()
		o.Pods6 = o.Pods6 || r.Network.Addr().Is6()
	}
	return o
}

// podMTU is what a pod may send in one packet: what the underlay carries, less
// the overhead of the tunnels. Backend.MTU is the underlay's, as flannel means
// it. A bound is what is known of the ways to the peers, 0 if nothing.
func podMTU(network subnet.Config, u vxlan.Underlay, bound int) (int, error) {
	outer := u.MTU
	if network.Backend.MTU != 0 {
		outer = network.Backend.MTU
	}
	if bound != 0 {
		outer = min(outer, bound)
	}
	mtu := outer
	if network.Backend.Type == subnet.TypeVXLAN {
		for _, e := range u.Ends {
			mtu = min(mtu, outer-vxlan.Overhead(e.Local.Is4()))
		}
	}
	least := 68 // RFC 791
	for _, r := range network.Ranges {
		if r.Network.Addr().Is6() {
			least = 1280 // RFC 8200, section 5
		}
	}
	if mtu < least {
		return 0, fmt.Errorf("interface %s: MTU %d leaves pods %d bytes, want at least %d", u.Interface, outer, mtu, least)
	}
	return mtu, nil
}

// A Reconnecter is a Manager whose connections to the store may hang on an address
// that the node has no more: they would be waited for until a time-out.
type Reconnecter interface{ Reconnect() }

// moved has the store's connections made anew.
func (n *node) moved() {
	if r, ok := n.manager.(Reconnecter); ok {
		r.Reconnect()
	}
}

// request is what the store is to lease: endpoints at the underlay's ends.
func (l *loop) request() subnet.Request {
	want := subnet.Request{Node: l.cfg.Node, MTU: l.mtu}
	for _, e := range l.underlay.Ends {
		v := subnet.VTEP{Underlay: e.Addr}
		if l.tunnels() {
			v.MAC, v.VNI = subnet.VTEPMAC(l.cfg.Node, e.Local.Is4()), l.network.Backend.VNI
		}
		want.VTEPs = append(want.VTEPs, v)
	}
	return want
}

// follow looks at the underlay, and makes devices, MTU, lease and routes follow it.
func (l *loop) follow() {
	if err := l.find(); err != nil {
		if l.lost != err.Error() {
			l.log.Warn("underlay not to be found, address and MTU stay as they are", "error", err)
			l.journal.event("underlay", "lost: "+err.Error())
			l.report(true, reportLost, "address and MTU stay as they are: "+err.Error())
		}
		l.lost = err.Error()
	} else {
		l.lost = ""
	}
	l.watchUnderlay()
	l.findUnreachable()
	l.derive(time.Now()) // which peers are on the same link may have changed
	l.reconcile("underlay")
	l.fitPods()
}

// find takes the underlay that there is now. One that cannot be found, for the moment
// or for good, leaves everything as it is; one that carries too little is followed,
// and the pods keep their MTU.
func (l *loop) find() error {
	u, err := vxlan.FindUnderlay(l.cfg.choice(l.network))
	if err != nil {
		return err
	}
	mtu, short := podMTU(l.network, u, l.pathMTU)
	if short != nil {
		mtu = l.mtu
	}
	if !u.Equal(l.underlay) || mtu != l.mtu {
		l.log.Info("underlay has changed", "interface", u.Interface, "addresses", addrsOf(u), "mtu", u.MTU, "reason", u.Reason)
		is := fmt.Sprintf("is %v on %s, mtu %d (%s)", addrsOf(u), u.Interface, u.MTU, u.Reason)
		l.journal.event("underlay", is)
		l.report(false, reportMoved, "the underlay "+is+", that of pods "+strconv.Itoa(mtu))
		if !slices.Equal(u.Ends, l.underlay.Ends) {
			l.moved()
		}
		l.underlay, l.mtu = u, mtu
		if err := l.configure(); err != nil {
			l.log.Error("underlay cannot be used", "error", err)
		}
		l.relet(l.request())
	}
	return short
}

// watchUnderlay tells the monitor which news to tell.
func (l *loop) watchUnderlay() {
	l.monitor.SetLookout(vxlan.Lookout{
		Interface: l.underlay.Interface, Index: l.underlay.Index,
		Routes: l.network.Backend.DirectRouting || !l.tunnels() || l.cfg.CanReach.IsValid(),
	})
}

func addrsOf(u vxlan.Underlay) (all []string) {
	for _, e := range u.Ends {
		all = append(all, e.Addr.String())
	}
	return all
}

// keepLet updates the lease whenever the loop asks for it: the newest request
// counts. While the store refuses, the data plane goes on with what it has.
func (n *node) keepLet(ctx context.Context) error {
	var want subnet.Request
	pending, wait := false, relet
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-ctx.Done():
			return nil
		case want = <-n.requests:
			pending, wait = true, relet
		case <-timer.C:
		}
		if !pending {
			continue
		}
		_, err := n.manager.Acquire(ctx, want)
		if ctx.Err() != nil {
			return nil
		}
		if pending = err != nil; pending {
			n.log.Warn("lease cannot be updated, trying again", "in", wait, "error", err)
			timer.Reset(wait)
			wait = min(2*wait, reletMax)
		}
	}
}

// relet puts a request in the place of one that was not taken yet.
func (n *node) relet(want subnet.Request) {
	select {
	case <-n.requests:
	default:
	}
	n.requests <- want
}
