package main

import (
	"fmt"
	"strings"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
)

// statusText is the node at a glance: one line a subject, what needs a look in
// colour.
func statusText(l look, s api.Status) string {
	t := newTable()
	t.add(plain, "node", s.Node)
	if s.Ready {
		t.add(good, "ready", "yes")
	} else {
		t.add(bad, "ready", "no: "+orNone(strings.Join(s.NotReady, "; "), "overlayd does not say why"))
	}
	for _, w := range s.Warnings {
		t.add(warn, "warning", w)
	}
	t.add(plain, "overlayd", fmt.Sprintf("%s, started %s", s.Version, l.ago(s.Started)))
	addStore(t, l, s.Store)
	t.add(toneIf(len(s.Lease.Subnets) == 0, bad), "lease", leaseLine(l, s.Lease))
	t.add(toneIf(len(s.Underlay.Addresses) == 0, bad), "underlay", underlayLine(s.Underlay))
	if s.Underlay.Lost != "" {
		t.add(warn, "  lost", s.Underlay.Lost)
	}
	for _, d := range s.Devices {
		t.add(toneIf(!d.Up, bad), "device", deviceLine(d))
	}
	switch {
	case len(s.Devices) > 0:
	case s.Backend == "host-gw":
		t.add(plain, "device", "none, host-gw")
	default:
		t.add(bad, "device", "none")
	}
	t.add(toneIf(s.Peers.InSync < s.Peers.Total, warn), "peers",
		fmt.Sprintf("%d/%d in sync, resolve %s", s.Peers.InSync, s.Peers.Total, s.Resolve))
	t.add(toneIf(s.Misses.Overruns > 0, warn), "misses", fmt.Sprintf("%d received, %d answered, %d unknown, %d overruns",
		s.Misses.Received, s.Misses.Answered, s.Misses.Unknown, s.Misses.Overruns))
	addKernel(t, l, s.Kernel)
	t.add(plain, "dropped", fmt.Sprintf("%d VXLAN packets of strangers, %d spoofed frames of pods", s.Dropped.VXLAN, s.Dropped.Spoofed))
	t.add(toneIf(s.Slots.Total > 0 && free(s.Slots) == 0, warn), "slots", fmt.Sprintf("%d held, %d resting, %d free of %d",
		s.Slots.Held, s.Slots.Resting, free(s.Slots), s.Slots.Total))
	return t.text(l)
}

func addStore(t *table, l look, s api.Store) {
	if s.Snapshot.IsZero() {
		t.add(bad, "store", fmt.Sprintf("%s, no answer yet", s.Kind))
	} else {
		t.add(plain, "store", fmt.Sprintf("%s, revision %d, seen %s", s.Kind, s.Revision, l.ago(s.Snapshot)))
	}
	for _, i := range s.Ignored {
		t.add(warn, "  ignored", i.Key+": "+i.Reason)
	}
}

func addKernel(t *table, l look, k api.Kernel) {
	t.add(plain, "kernel", fmt.Sprintf("%d operations, %d errors, %d reconciles, last %s; %d changes by others undone",
		k.Operations, k.Errors, k.Reconciles, l.ago(k.Last), k.Foreign))
	if k.LastError != "" {
		t.add(warn, "  last error", k.LastError)
	}
}

func leaseLine(l look, own api.Lease) string {
	if len(own.Subnets) == 0 {
		return "none held"
	}
	line := list(own.Subnets)
	if own.Reserved {
		return line + ", reserved"
	}
	if !own.Expiry.IsZero() {
		line += ", expires in " + short(own.Expiry.Sub(l.now))
	}
	return line
}

func underlayLine(u api.Underlay) string {
	if len(u.Addresses) == 0 {
		return "none found"
	}
	return fmt.Sprintf("%s on %s, mtu %d (%s)", list(u.Addresses), u.Interface, u.MTU, orNone(u.Reason, "no reason given"))
}

func deviceLine(d api.Device) string {
	up := "DOWN"
	if d.Up {
		up = "up"
	}
	return fmt.Sprintf("%s %s, vni %d, port %d, mac %s, mtu %d", d.Name, up, d.VNI, d.Port, d.MAC, d.MTU)
}

// free is how many slots are neither held nor resting.
func free(s api.Slots) int { return s.Total - s.Held - s.Resting }

// orNone is s, or none where s is empty.
func orNone(s, none string) string {
	if s == "" {
		return none
	}
	return s
}

// versions are the builds on both ends of the socket.
type versions struct {
	Client      version.Build `json:"client"`
	Daemon      string        `json:"daemon,omitempty"`
	Unreachable string        `json:"unreachable,omitempty"` // why Daemon is not known
}

func versionText(l look, v versions) string {
	t := newTable()
	t.add(plain, "overlayctl", v.Client.String())
	t.add(toneIf(v.Unreachable != "", warn), "overlayd", orNone(v.Daemon, "unknown: "+v.Unreachable))
	return t.text(l)
}
