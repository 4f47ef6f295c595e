package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/peterbourgon/ff/v3/ffcli"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// errNoTerminal says that nobody can be asked.
var errNoTerminal = errors.New("standard input is no terminal")

// asker returns a function that asks on w a question that is answered on r by y
// or n; everything else is no.
func asker(r io.Reader, w io.Writer) func(question string) (bool, error) {
	return func(question string) (bool, error) {
		f, ok := r.(*os.File)
		if !ok {
			return false, errNoTerminal
		}
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
			return false, errNoTerminal
		}
		if _, err := fmt.Fprint(w, question+" [y/N] "); err != nil {
			return false, err
		}
		line, err := bufio.NewReader(f).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line))), nil
	}
}

// leaseCommand is `overlayctl lease`, which has one command of its own.
func (p *program) leaseCommand() *ffcli.Command {
	const full = "overlayctl lease release"
	release := p.command("lease release", "end the lease of another node, such as one that was drained for good; the others keep their entries of it for overlayd's --grace", nil)
	release.Name, release.ShortUsage = "release", full+flagsUsage+" NODE"
	release.Exec = func(ctx context.Context, args []string) error {
		if len(args) > 1 { // flags may stand behind the node too
			if err := release.FlagSet.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
				p.out.WriteString(helpText(release))
				return nil
			} else if err != nil {
				p.named = release
				return p.flagError(err)
			}
			args = append(args[:1:1], release.FlagSet.Args()...)
		}
		if len(args) != 1 {
			return usageError{fmt.Sprintf("lease release takes one node, got %q", args), full}
		}
		return p.release(ctx, args[0])
	}
	lease := p.command("lease", "change a lease: release", nil)
	lease.Subcommands = []*ffcli.Command{release}
	lease.Exec = func(_ context.Context, args []string) error {
		if len(args) == 0 {
			return usageError{"no command: want release", "overlayctl lease"}
		}
		return usageError{fmt.Sprintf("unknown command %q: want release", args[0]), "overlayctl lease"}
	}
	return lease
}

// release ends the lease that a node has now, if nothing changes it meanwhile.
func (p *program) release(ctx context.Context, node string) error {
	leases, err := p.client().Leases(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(leases, func(l api.Lease) bool { return l.Node == node && l.Ignored == "" })
	if i < 0 {
		return fmt.Errorf("%q holds no lease; overlayctl leases shows who does", node)
	}
	l := leases[i]
	if l.Own {
		return fmt.Errorf("%q is this node, and its overlayd runs: it would take its lease again; stop it, and release the lease from another node", node)
	}
	if !p.yes {
		ok, err := p.ask(fmt.Sprintf("Release %s of %s? Another node may get it: pods that still run there lose the network.",
			list(l.Subnets), printable(node)))
		if errors.Is(err, errNoTerminal) {
			return usageError{"nobody can be asked, for " + err.Error() + ": want --yes", "overlayctl lease release"}
		}
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("not released, as you wish")
		}
	}
	done, err := p.client().Release(ctx, api.Release{Node: node, Revision: l.Revision})
	if err != nil {
		return err
	}
	if p.format == "json" {
		raw, err := json.Marshal(done)
		if err == nil {
			err = p.json(raw)
		}
		if err != nil {
			return err
		}
	}
	if done.TakenBack {
		return fmt.Errorf("%q took its lease again: its overlayd runs; stop it first", node)
	}
	if p.format == "table" {
		fmt.Fprintf(&p.out, "released %s of %s\n", list(l.Subnets), printable(node))
	}
	return nil
}
