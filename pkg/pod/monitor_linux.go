package pod

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// pluginName is what the kernel calls the processes that attach pods: a program's
// name, cut to 15 bytes.
const pluginName = "vxlan-cni"

// A FilterMonitor tells when somebody has changed the filter's table, so that
// EnsureFilter should look.
type FilterMonitor struct {
	watcher *rtnl.Watcher
	ready   chan struct{}
	own     string      // what the kernel calls this process, and another one of the program
	foreign atomic.Bool // somebody else's change is among the news
	touched bool        // by the transaction that is being told; Run's own
}

// WatchFilter starts to listen in the calling thread's network namespace. What
// happens from now on is not missed, even before Run.
func WatchFilter() (*FilterMonitor, error) {
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return nil, fmt.Errorf("look for the own name: %w", err)
	}
	w, err := rtnl.WatchNetfilter(unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, err
	}
	return &FilterMonitor{watcher: w, ready: make(chan struct{}, 1), own: string(bytes.TrimSpace(name))}, nil
}

// Ready receives when there may be something to repair. What the plugin does is
// right, so it is no news; what EnsureFilter does is, for it may have met the plugin
// at work.
func (m *FilterMonitor) Ready() <-chan struct{} { return m.ready }

// Foreign says whether the news since the last call are of somebody else.
func (m *FilterMonitor) Foreign() bool { return m.foreign.Swap(false) }

// Run reads notifications until ctx ends, and closes the monitor.
func (m *FilterMonitor) Run(ctx context.Context) error {
	return m.watcher.Run(ctx, m.note, func() { m.tell(true) })
}

// note reads one notification. The kernel tells what a transaction did, and then that
// it is complete and whose it was.
func (m *FilterMonitor) note(n rtnl.Notification) {
	attrs := rtnl.NetfilterAttrs(n.Body)
	switch {
	case n.Kind>>8 != unix.NFNL_SUBSYS_NFTABLES || attrs == nil:
	case n.Kind&0xff != unix.NFT_MSG_NEWGEN:
		// Attribute 1 of all others is the table's name.
		m.touched = m.touched || n.Body[0] == unix.NFPROTO_BRIDGE && nestAttr(0, textAttr(unix.NFTA_TABLE_NAME, FilterTable)).within(attrs)
	case m.touched:
		m.touched = false
		by := func(name string) bool { return nestAttr(0, textAttr(unix.NFTA_GEN_PROC_NAME, name)).within(attrs) }
		if !by(pluginName) {
			m.tell(!by(m.own))
		}
	}
}

func (m *FilterMonitor) tell(foreign bool) {
	if foreign {
		m.foreign.Store(true)
	}
	select {
	case m.ready <- struct{}{}:
	default:
	}
}
