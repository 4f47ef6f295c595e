package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"

	"github.com/vxlan-cni/vxlan-cni/internal/migrate"
)

// A migration is what the flags of migrate say.
type migration struct {
	from    string
	dryRun  bool
	flannel migrate.Flannel
}

func (m *migration) define(set *flag.FlagSet) {
	f := &m.flannel
	set.StringVar(&m.from, "from", "", "`network` that the node runs now: flannel")
	set.BoolVar(&m.dryRun, "dry-run", false, "print what would be done, and do nothing")
	set.StringVar(&f.SubnetEnv, "subnet-env", f.SubnetEnv, "`file` in which flannel tells the node's subnet")
	set.StringVar(&f.Device, "device", f.Device, "`name` of flannel's VXLAN device")
	set.StringVar(&f.Bridge, "bridge", f.Bridge, "`name` of the bridge that pods hang on")
	set.StringVar(&f.Network, "cni-network", f.Network, "`name` of flannel's CNI network")
	set.StringVar(&f.Networks, "cni-networks", f.Networks, "`folder` in which host-local keeps the addresses of each network")
	set.StringVar(&f.Results, "cni-results", f.Results, "`folder` of the runtime's cache, for the pods' names")
	set.StringVar(&f.Proc, "proc", f.Proc, "`folder` in which to look for flanneld")
}

// migrate prints what a migration finds, and carries it out unless it is a dry
// run. What does not fit is printed with the rest, and is an error.
func (p *program) migrate(ctx context.Context) error {
	m := p.migration
	if m.from != "flannel" {
		return usageError{fmt.Sprintf("--from %q: want flannel", m.from), "overlayctl migrate"}
	}
	m.flannel.RunDir = p.runDir
	plan, err := m.flannel.Plan(ctx)
	if err != nil {
		return err
	}
	if !m.dryRun {
		err = m.flannel.Apply(ctx, &plan)
	} else if len(plan.Problems) > 0 {
		err = plan.Problems[0]
	}
	if p.format == "table" {
		p.out.WriteString(planText(p.look, plan, m.dryRun, err))
		return err
	}
	raw, jsonErr := json.Marshal(plan)
	if jsonErr != nil {
		return jsonErr
	}
	if jsonErr := p.json(raw); jsonErr != nil {
		return jsonErr
	}
	return err
}

// planText is the plan as lines by subject, its addresses as a table, and what to
// do next; failed is how the attempt ended.
func planText(l look, p migrate.Plan, dryRun bool, failed error) string {
	t := newTable()
	t.add(plain, "from", p.From)
	if len(p.Subnets) > 0 {
		t.add(plain, "subnets", fmt.Sprintf("%s of %s, mtu %d", list(p.Subnets), list(p.Networks), p.MTU))
		t.add(plain, "device", orNone(linkLine(p.Device), p.Device.Name+", absent: overlayd makes it"))
		t.add(plain, "bridge", orNone(bridgeLine(p.Bridge), p.Bridge.Name+", absent: no pod runs"))
	}
	for _, s := range p.Stays {
		t.add(plain, "stays", s)
	}
	for _, w := range p.Warnings {
		t.add(warn, "warning", w)
	}
	for _, e := range p.Problems {
		t.add(bad, "PROBLEM", e.Error())
	}
	text := t.text(l)
	if len(p.Addresses) > 0 {
		t = newTable("ADDRESS", "ACTION", "POD", "PORT", "CONTAINER", "INTERFACE")
		for _, a := range p.Addresses {
			t.add(toneIf(a.Action == migrate.Stale, warn), a.Addr.String(), a.Action, a.Pod, a.Port,
				a.Container[:min(shownContainer, len(a.Container))], a.IfName)
		}
		text += "\n" + t.text(l)
	}
	switch {
	case len(p.Problems) > 0:
		return text + "\nNothing was done: see PROBLEM.\n"
	case dryRun:
		return text + "\nNothing was done: this is a dry run.\n"
	case failed != nil:
		return text + "\nThe addresses were not entered: do not start overlayd before they are.\n"
	}
	return text + fmt.Sprintf("\n%d addresses entered. Now start overlayd with: %s\n", p.Imported, strings.Join(p.Flags, " "))
}

func linkLine(d migrate.Link) string {
	if !d.Found {
		return ""
	}
	return fmt.Sprintf("%s, mac %s, mtu %d: overlayd makes it anew, with its own mac", d.Name, d.MAC, d.MTU)
}

func bridgeLine(b migrate.Bridge) string {
	if !b.Found {
		return ""
	}
	return fmt.Sprintf("%s, %s, mac %s, %d pods: stays as it is", b.Name, list(b.Addrs), b.MAC, b.Ports)
}
