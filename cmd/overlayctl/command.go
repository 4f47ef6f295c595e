package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/migrate"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// flagsUsage ends each usage line.
const flagsUsage = " [flags]"

const about = `overlayctl shows what the overlayd of this node knows and does.

Exit status: 0 all is well; 1 overlayd is not running or did not answer, or
what was asked for cannot be; 2 wrong command line; 3 the node is not ready (status only).`

// errNotReady is the end of a status that was printed and is bad news.
var errNotReady = errors.New("the node is not ready")

// A usageError is a command line that cannot be carried out: what is wrong with
// it, and the command whose help tells how it is done right.
type usageError struct{ text, command string }

func (e usageError) Error() string { return e.text + "; see " + e.command + " --help" }

// A program is one run of overlayctl.
type program struct {
	look   look
	runDir string
	format format

	migration    migration
	installation installation
	expiry       bool // of leases
	yes          bool // of lease release
	ownVersion   bool // print that, and end
	ask          func(question string) (bool, error)

	out   bytes.Buffer
	named *ffcli.Command // whose flags asked for help or are wrong
}

func newProgram(l look) *program {
	return &program{look: l, format: "table", ask: asker(os.Stdin, os.Stderr), migration: migration{flannel: migrate.Default()}}
}

// execute carries out one command line and returns what belongs on standard
// output, with an error or without.
func (p *program) execute(ctx context.Context, args []string) (string, error) {
	if len(args) > 0 && args[0] == "help" { // as `go help vet`
		args = append(slices.Clone(args[1:]), "--help")
	}
	tree := p.tree()
	if err := tree.Parse(args); errors.Is(err, flag.ErrHelp) {
		return helpText(p.named), nil
	} else if err != nil {
		return "", p.flagError(err)
	}
	if p.ownVersion {
		return "overlayctl " + version.Read().String() + "\n", nil
	}
	err := tree.Run(ctx)
	return p.out.String(), err
}

// flagError is what package flag says, behind what ff says about it.
func (p *program) flagError(err error) error {
	if cause := errors.Unwrap(err); cause != nil {
		err = cause
	}
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		text = "unknown flag --" + name
	}
	command, _, _ := strings.Cut(p.named.ShortUsage, flagsUsage)
	return usageError{text, command}
}

// tree is the command line.
func (p *program) tree() *ffcli.Command {
	root := p.command("overlayctl", about, nil)
	root.ShortUsage = "overlayctl" + flagsUsage
	root.Subcommands = []*ffcli.Command{
		p.command("status", "the node at a glance; exit status 3 if it is not ready", p.status),
		p.command("peers", "the other nodes, and whether the kernel holds all that reaches them", show(p, api.PathPeers, peersText)),
		p.command("pods", "the pods of this node and their addresses", show(p, api.PathPods, podsText)),
		p.command("leases", "which node holds which subnet, and which records are ignored", p.leases),
		p.leaseCommand(),
		p.command("misses", "what the kernel asked for and was told, newest first", show(p, api.PathMisses, missesText)),
		p.command("events", "what overlayd saw and did, newest first", show(p, api.PathEvents, eventsText)),
		p.command("migrate", "take this node over from flannel: enter its pods' addresses, and say how to go on", p.migrate),
		p.command("install", "put the plugins into the runtime's folder, or newer ones in their place", p.install),
		p.command("uninstall", "take plugins, network configuration and run folder off this node; overlayd --cleanup does the kernel's part", p.uninstall),
		p.command("version", "the build of overlayctl and of the overlayd that runs", p.version),
	}
	root.Exec = func(_ context.Context, args []string) error {
		names := make([]string, len(root.Subcommands))
		for i, c := range root.Subcommands {
			names[i] = c.Name
		}
		want := "want one of " + strings.Join(names, ", ")
		if len(args) == 0 {
			return usageError{"no command: " + want, root.Name}
		}
		return usageError{fmt.Sprintf("unknown command %q: %s", args[0], want), root.Name}
	}
	p.prepare(root)
	return root
}

func (p *program) command(name, help string, exec func(context.Context) error) *ffcli.Command {
	full := "overlayctl " + name
	return &ffcli.Command{
		Name: name, ShortUsage: full + flagsUsage, ShortHelp: help,
		Exec: func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Sprintf("%s takes no arguments, got %q", name, args), full}
			}
			return exec(ctx)
		},
	}
}

// prepare gives a command, and those below it, the flags, which may stand before or after its name.
// What package flag would print goes nowhere: its errors come back and are
// printed as one line.
func (p *program) prepare(c *ffcli.Command) {
	set := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&p.runDir, "run-dir", subnet.RunDir, "`folder` in which overlayd keeps its socket")
	set.Var(&p.format, "o", "`format` of the output: table, or json as overlayd answers it")
	switch c.Name {
	case "overlayctl":
		set.BoolVar(&p.ownVersion, "version", false, "print the version of overlayctl and end")
	case "migrate":
		p.migration.define(set)
	case "install", "uninstall":
		p.installation.define(set)
	case "leases":
		set.BoolVar(&p.expiry, "expiry", false, "ask the store when each lease ends: a request for each")
	case "release":
		set.BoolVar(&p.yes, "yes", false, "do not ask")
	}
	c.FlagSet = set
	c.UsageFunc = func(c *ffcli.Command) string {
		p.named = c
		return ""
	}
	for _, sub := range c.Subcommands {
		p.prepare(sub)
	}
}

// leases prints the leases, with the end of each if asked for.
func (p *program) leases(ctx context.Context) error {
	path := api.PathLeases
	if p.expiry {
		path = api.PathLeasesExpiry
	}
	_, err := fetch(ctx, p, path, leasesText)
	return err
}

// status prints the status, and is an error if the node is not ready.
func (p *program) status(ctx context.Context) error {
	s, err := fetch(ctx, p, api.PathStatus, statusText)
	if err == nil && !s.Ready {
		err = errNotReady
	}
	return err
}

// version prints our own build and, if it answers, the daemon's.
func (p *program) version(ctx context.Context) error {
	v := versions{Client: version.Read()}
	if s, err := p.client().Status(ctx); err != nil {
		v.Unreachable = err.Error()
	} else {
		v.Daemon = s.Version
	}
	if p.format == "table" {
		p.out.WriteString(versionText(p.look, v))
		return nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return p.json(raw)
}

// show is a command that prints what overlayd answers at path.
func show[T any](p *program, path string, text func(look, T) string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := fetch(ctx, p, path, text)
		return err
	}
}

// fetch prints what overlayd answers at path, and returns it.
func fetch[T any](ctx context.Context, p *program, path string, text func(look, T) string) (T, error) {
	var a answer[T]
	if err := p.client().Get(ctx, path, &a); err != nil {
		return a.value, err
	}
	if p.format == "json" {
		return a.value, p.json(a.raw)
	}
	p.out.WriteString(text(p.look, a.value))
	return a.value, nil
}

func (p *program) client() *api.Client { return api.New(filepath.Join(p.runDir, api.SocketName)) }

// json prints raw as it is, but for the space between its tokens: what a newer
// daemon says and our types do not know is not lost.
func (p *program) json(raw []byte) error {
	if err := json.Indent(&p.out, raw, "", "  "); err != nil {
		return err
	}
	p.out.WriteByte('\n')
	return nil
}

// An answer is a JSON value, as it came and decoded.
type answer[T any] struct {
	raw   []byte
	value T
}

func (a *answer[T]) UnmarshalJSON(b []byte) error {
	a.raw = slices.Clone(b) // b belongs to the decoder
	return json.Unmarshal(b, &a.value)
}

// A format is a form of output. It is a flag.Value.
type format string

func (f *format) String() string { return string(*f) }

func (f *format) Set(s string) error {
	if s != "table" && s != "json" {
		return errors.New("want table or json")
	}
	*f = format(s)
	return nil
}

// helpText is what --help prints.
func helpText(c *ffcli.Command) string {
	var b strings.Builder
	usage := c.ShortUsage
	if len(c.Subcommands) > 0 {
		usage += " <command>"
	}
	fmt.Fprintf(&b, "%s\n\nUsage: %s\n", c.ShortHelp, usage)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, format, args...) // a strings.Builder takes everything
	}
	if len(c.Subcommands) > 0 {
		line("\nCommands:\n")
	}
	for _, sub := range c.Subcommands {
		line("  %s\t%s\n", sub.Name, sub.ShortHelp)
	}
	line("\nFlags:\n")
	c.FlagSet.VisitAll(func(f *flag.Flag) {
		dashes := "--"
		if len(f.Name) == 1 {
			dashes = "-"
		}
		argument, usage := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" {
			usage += " (default " + f.DefValue + ")"
		}
		line("  %s\t%s\n", strings.TrimSpace(dashes+f.Name+" "+argument), usage)
	})
	_ = w.Flush() // as above
	return b.String()
}
