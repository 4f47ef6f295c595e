package firewall

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

const (
	// lockWait is how many seconds iptables waits for another one to finish. Who
	// asked for the rules waits, too, and tries again.
	lockWait = 2

	// runWithin bounds a run of iptables-restore that hangs.
	runWithin = 10 * time.Second
)

// errNoIPTables says that a program is needed and not there.
var errNoIPTables = errors.New("no program of this flavour is installed")

// A xcommand writes the tables of one family by running iptables-restore.
type xcommand struct {
	family  family
	restore string // path of the program
	nft     bool   // its flavour
	random  bool   // it knows --random-fully

	// known is what the kernel holds for each wanted chain once iptables has put
	// it there: the kernel's form of a rule is not ours.
	known map[string]string
}

// findIPTables looks for the first of the programs whose flavour will do.
func findIPTables(f family, will func(nft bool) bool, names ...string) (*xcommand, error) {
	proto := iptables.ProtocolIPv4
	if f.six {
		proto = iptables.ProtocolIPv6
	}
	for _, name := range names {
		if f.six {
			name = strings.Replace(name, "iptables", "ip6tables", 1)
		}
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		version, err := exec.Command(path, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s --version: %w", path, err)
		}
		nft := strings.Contains(string(version), "nf_tables")
		if !will(nft) {
			continue
		}
		program, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return &xcommand{family: f, restore: path + "-restore", nft: nft, random: program.HasRandomFully()}, nil
	}
	return nil, fmt.Errorf("iptables (%s): %w", f.name, errNoIPTables)
}

// wants is what r asks for, of what this iptables knows.
func (x *xcommand) wants(r Rules) []xwant {
	wants := r.xchains(x.family)
	if !x.random {
		for _, w := range wants {
			for i := range w.lines {
				w.lines[i] = strings.Replace(w.lines[i], " --random-fully", "", 1)
			}
		}
	}
	return wants
}

// wrong says why the tables have to be written, "" if they are right.
func (x *xcommand) wrong(wants []xwant, have map[string]xtable) string {
	for _, w := range wants {
		t := have[w.table]
		content, ok := x.known[w.key()]
		if !ok || content != t.content(w.chain) {
			return "chain " + w.chain + " differed"
		}
		if w.calls != "" {
			if _, right := t.place(w); !right {
				return w.calls + " did not call " + w.chain + " in time"
			}
		}
	}
	for name, t := range have {
		for _, chain := range t.ours() {
			if !slices.ContainsFunc(wants, func(w xwant) bool { return w.table == name && w.chain == chain }) {
				return "chain " + chain + " was left over"
			}
		}
	}
	return ""
}

// step makes the tables right, nil if they are. have is what the kernel holds,
// read returns it anew.
func (x *xcommand) step(wants []xwant, have map[string]xtable, read func() (map[string]xtable, error)) step {
	why := x.wrong(wants, have)
	if why == "" {
		return nil
	}
	return func() ([]string, error) {
		if err := x.run(restore(wants, have, x.nft)); err != nil {
			return nil, err
		}
		after, err := read()
		if err != nil {
			return nil, err
		}
		x.known = map[string]string{}
		for _, w := range wants {
			x.known[w.key()] = after[w.table].content(w.chain)
		}
		// After a start it may have been right all along.
		if x.wrong(wants, have) == "" {
			return nil, nil
		}
		return []string{fmt.Sprintf("wrote iptables (%s): %s", x.family.name, why)}, nil
	}
}

// run has iptables-restore carry text out.
func (x *xcommand) run(text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), runWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.restore, "--noflush", "--wait", fmt.Sprint(lockWait))
	cmd.WaitDelay = time.Second // for its pipes, should a child of it keep them
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		err = cmp.Or(context.Cause(ctx), err)
		return fmt.Errorf("%s: %w: %s", x.restore, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
