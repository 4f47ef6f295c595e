package main

import (
	"context"
	"encoding/json"
	"flag"

	"github.com/vxlan-cni/vxlan-cni/internal/install"
)

// An installation is what the flags of install and uninstall say.
type installation struct {
	node install.Node
	from string // of install
	stay bool   // of uninstall
}

func (i *installation) define(set *flag.FlagSet) {
	n := &i.node
	set.StringVar(&n.BinDir, "bin-dir", "/opt/cni/bin", "`folder` in which the runtime looks for plugins")
	set.BoolVar(&n.DryRun, "dry-run", false, "print what would be done, and do nothing")
	if set.Name() == "install" {
		set.StringVar(&i.from, "from", "/opt/cni/bin", "`folder` of the plugins to install, as in the container image")
		return
	}
	set.StringVar(&n.ConfDir, "cni-conf-dir", "/etc/cni/net.d", "`folder` of the runtime's network configuration")
	set.BoolVar(&i.stay, "stay", false, "do not end before SIGTERM, as a DaemonSet wants it")
}

// install copies the plugins to the node.
func (p *program) install(context.Context) error {
	steps, err := p.installation.node.Install(p.installation.from)
	return p.steps(steps, err)
}

// uninstall removes what install, overlayd and the plugins put into folders.
func (p *program) uninstall(context.Context) error {
	p.installation.node.RunDir = p.runDir
	steps, err := p.installation.node.Uninstall()
	return p.steps(steps, err)
}

// steps prints what was done, also where not all of it could be.
func (p *program) steps(steps []install.Step, err error) error {
	if p.format == "table" {
		p.out.WriteString(stepsText(p.look, steps, p.installation.node.DryRun))
		return err
	}
	raw, jsonErr := json.Marshal(append([]install.Step{}, steps...))
	if jsonErr == nil {
		jsonErr = p.json(raw)
	}
	if jsonErr != nil {
		return jsonErr
	}
	return err
}

func stepsText(l look, steps []install.Step, dryRun bool) string {
	if len(steps) == 0 {
		return "nothing to do\n"
	}
	t := newTable("ACTION", "PATH", "WHY")
	for _, s := range steps {
		t.add(toneIf(s.Action == install.Left, warn), s.Action, s.Path, s.Why)
	}
	text := t.text(l)
	if dryRun {
		text += "\nNothing was done: this is a dry run.\n"
	}
	return text
}
