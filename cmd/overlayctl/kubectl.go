package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// pluginName is what overlayctl is called where kubectl finds it in the PATH as
// its command `overlay`.
const pluginName = "kubectl-overlay"

const aboutPlugin = `kubectl overlay runs overlayctl on a node of the cluster, in overlayd's container,
and without --node on one node after the other.

Usage: kubectl overlay [flags] <command of overlayctl> [its flags]

Flags:
`

// A plugin is one run of kubectl overlay. Where the cluster is, and who asks, is
// kubectl's to know.
type plugin struct {
	node      string
	namespace string
	selector  string
	pass      []string // flags for kubectl, as they were given
	args      []string // for overlayctl

	in       io.Reader
	out, err io.Writer
}

// runPlugin executes one command line of kubectl overlay and returns the exit
// status: of several nodes' the largest.
func runPlugin(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	p := &plugin{in: in, out: out, err: errs}
	help, err := p.parse(args)
	if errors.Is(err, flag.ErrHelp) {
		_, _ = io.WriteString(out, help) // nowhere to complain
		return exitOK
	}
	status := exitUsage
	if err == nil {
		status, err = p.run(ctx)
	}
	if err != nil {
		_, _ = fmt.Fprintln(errs, "kubectl overlay:", err) // nowhere left to complain
		return max(status, exitError)
	}
	return status
}

// parse reads the flags before the command. What stands behind it is overlayctl's.
func (p *plugin) parse(args []string) (help string, err error) {
	set := flag.NewFlagSet(pluginName, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&p.node, "node", "", "`name` of the Node; without it all")
	set.StringVar(&p.selector, "selector", "app.kubernetes.io/name=vxlan-cni", "`labels` of overlayd's pods")
	set.StringVar(&p.namespace, "n", "kube-system", "`namespace` of overlayd's pods")
	for name, usage := range map[string]string{"context": "`name` of kubectl's context", "kubeconfig": "kubectl's configuration `file`"} {
		set.Func(name, usage, func(v string) error {
			p.pass = append(p.pass, "--"+name+"="+v)
			return nil
		})
	}
	if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
		var b bytes.Buffer
		b.WriteString(aboutPlugin)
		set.SetOutput(&b)
		set.PrintDefaults()
		return b.String(), err
	} else if err != nil {
		return "", err
	}
	if p.args = set.Args(); len(p.args) == 0 {
		return "", errors.New("no command: want one of overlayctl's, such as status; see kubectl overlay --help")
	}
	return "", nil
}

// run finds the pods and has overlayctl run in each of them.
func (p *plugin) run(ctx context.Context) (status int, err error) {
	pods, err := p.pods(ctx)
	if err != nil {
		return exitError, err
	}
	for i, pod := range pods {
		if len(pods) > 1 {
			_, _ = fmt.Fprintf(p.out, "%snode %s\n", strings.Repeat("\n", min(i, 1)), printable(pod[0])) // exec's errors tell
		}
		err := p.exec(ctx, pod[1], len(pods) == 1)
		var ended *exec.ExitError
		switch {
		case errors.As(err, &ended) && ended.ExitCode() > 0: // it has said why
			status = max(status, ended.ExitCode())
		case err != nil:
			return exitError, err
		}
	}
	return status, nil
}

// pods returns node and name of overlayd's pods, sorted by node.
func (p *plugin) pods(ctx context.Context) (pods [][2]string, err error) {
	args := []string{"get", "pods", "-n", p.namespace, "-l", p.selector, "-o",
		`jsonpath={range .items[*]}{.spec.nodeName}{" "}{.metadata.name}{"\n"}{end}`}
	where := "in namespace " + p.namespace
	if p.node != "" {
		args = append(args, "--field-selector", "spec.nodeName="+p.node)
		where = "on node " + p.node + ", " + where
	}
	var out bytes.Buffer
	c := p.kubectl(ctx, args...)
	c.Stdin, c.Stdout = nil, &out
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("find overlayd's pods: kubectl: %w", err)
	}
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		if node, name, ok := strings.Cut(lines.Text(), " "); ok && node != "" {
			pods = append(pods, [2]string{node, name})
		}
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("no pod of overlayd %s", where)
	}
	slices.SortFunc(pods, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return pods, nil
}

// exec runs overlayctl in a pod. One alone may ask questions, if there is
// somebody to ask.
func (p *plugin) exec(ctx context.Context, pod string, alone bool) error {
	args := []string{"exec", "-n", p.namespace, pod, "-c", "overlayd"}
	if f, ok := p.in.(*os.File); ok && alone {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			args = append(args, "-i", "-t")
		}
	}
	return p.kubectl(ctx, append(append(args, "--", "overlayctl"), p.args...)...).Run()
}

func (p *plugin) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "kubectl", append(slices.Clone(p.pass), args...)...)
	c.Stdin, c.Stdout, c.Stderr = p.in, p.out, p.err
	return c
}
