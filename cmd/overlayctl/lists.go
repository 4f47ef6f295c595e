package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// shownContainer is how much of a container id is shown, as crictl does.
const shownContainer = 13

func peersText(l look, peers []api.Peer) string {
	if len(peers) == 0 {
		return "no peers: no other node holds a lease\n"
	}
	t := newTable("NODE", "SUBNETS", "UNDERLAY", "MAC", "VIA", "MISSES", "IN SYNC")
	for _, p := range peers {
		sync := "yes"
		if !p.InSync {
			sync = "no: lacks " + orNone(strings.Join(p.Missing, "; "), "entries")
		}
		t.add(toneIf(!p.InSync, warn), p.Node, list(p.Subnets), known(p.Underlay), p.MAC, via(p), fmt.Sprint(p.Misses), sync)
	}
	return t.text(l)
}

// via says how packets to a peer's pods travel.
func via(p api.Peer) string {
	switch len(p.Direct) {
	case 0:
		return "tunnel"
	case len(p.Subnets):
		return "direct"
	}
	return "tunnel; direct to " + list(p.Direct)
}

func podsText(l look, pods []api.Pod) string {
	if len(pods) == 0 {
		return "no pods: no address of this node is held\n"
	}
	t := newTable("POD", "ADDRESSES", "LINK", "SLOT", "AGE", "CONTAINER", "INTERFACE")
	for _, p := range pods {
		// An address without a link is a pod in the making, or a leak.
		t.add(toneIf(p.Link == "", warn), p.Pod, list(p.Addresses), p.Link, strconv.Itoa(p.Slot),
			short(time.Duration(p.AgeSecs)*time.Second), p.Container[:min(shownContainer, len(p.Container))], p.IfName)
	}
	return t.text(l)
}

func leasesText(l look, leases []api.Lease) string {
	if len(leases) == 0 {
		return "no leases: no node holds a subnet\n"
	}
	t := newTable("NODE", "SUBNETS", "UNDERLAY", "MAC", "AGE", "EXPIRES IN", "REVISION", "NOTE")
	for _, lease := range leases {
		if lease.Ignored != "" {
			note := "ignored: "
			if lease.Conflict {
				note = "conflict: "
			}
			t.add(warn, "", orNone(list(lease.Subnets), lease.Key), "", "", "", "", "", note+lease.Ignored)
			continue
		}
		var underlays, macs, notes []string
		for _, v := range lease.VTEPs {
			underlays, macs = append(underlays, known(v.Underlay)), append(macs, v.MAC)
		}
		var age, expires string // not known of every record; expiry of others only if asked for
		if !lease.Since.IsZero() {
			age = short(l.now.Sub(lease.Since))
		}
		if !lease.Expiry.IsZero() {
			expires = short(lease.Expiry.Sub(l.now))
		}
		if lease.Own {
			notes = append(notes, "this node")
		}
		if lease.Reserved {
			notes, expires = append(notes, "reserved"), "never"
		}
		t.add(toneIf(lease.Own, good), lease.Node, list(lease.Subnets), strings.Join(underlays, ", "),
			strings.Join(macs, ", "), age, expires, fmt.Sprint(lease.Revision), strings.Join(notes, ", "))
	}
	return t.text(l)
}

func missesText(l look, misses []api.Miss) string {
	if len(misses) == 0 {
		return "no misses: the kernel has asked for nothing\n"
	}
	t := newTable("TIME", "KIND", "ASKED FOR", "NODE", "TOOK", "ANSWERED")
	for _, m := range misses {
		took, answered := (time.Duration(m.Micros) * time.Microsecond).String(), "yes"
		if !m.Answered {
			took, answered = "", "no"
		}
		t.add(toneIf(!m.Answered, warn), l.clock(m.Time), m.Kind, orNone(m.MAC, known(m.Addr)), m.Node, took, answered)
	}
	return t.text(l)
}

func eventsText(l look, events []api.Event) string {
	if len(events) == 0 {
		return "no events\n"
	}
	t := newTable("TIME", "KIND", "WHAT")
	for _, e := range events {
		t.add(toneIf(e.Kind == "foreign", warn), l.clock(e.Time), e.Kind, e.Text)
	}
	return t.text(l)
}
