package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// A Firewall keeps the kernel's rules as they should be, in the network namespace
// that it was opened in. Ensure and Run may be called at the same time.
type Firewall struct {
	mode  Mode
	log   *slog.Logger
	ready chan struct{}
	watch *watcher

	mu       sync.Mutex
	nft      *nft
	legacy   []*legacy            // one a family
	commands map[family]*xcommand // with IPTables, what writes each family
	rescue   map[family]*xcommand // what writes the legacy flavour
	rules    Rules                // of the last Ensure
	asked    bool                 // there was one
	failed   bool                 // the socket may hold answers that nobody waits for

	blocked struct{ nft, legacy, told []string }

	good       bool // the kernel holds them, as far as nftables goes at this generation
	generation uint32
}

// Open starts to listen to the kernel, in the calling thread's network namespace.
// Of the programs of iptables it needs those that the mode does.
func Open(mode Mode, log *slog.Logger) (*Firewall, error) {
	f := &Firewall{
		mode: mode, log: log, ready: make(chan struct{}, 1),
		commands: map[family]*xcommand{}, rescue: map[family]*xcommand{},
	}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Firewall) open() (err error) {
	if f.watch, err = watch(); err != nil {
		return err
	}
	if f.nft, err = dialNFT(); err != nil {
		return err
	}
	for _, fam := range families {
		l, err := openLegacy(fam, f.log)
		if err != nil {
			return err
		}
		f.legacy = append(f.legacy, l)
		if f.mode != IPTables {
			continue
		}
		x, err := findIPTables(fam, func(bool) bool { return true }, "iptables")
		if err != nil && (!fam.six || !errors.Is(err, errNoIPTables)) {
			return err
		}
		f.commands[fam] = x
	}
	return nil
}

// Close closes the sockets. The rules stay.
func (f *Firewall) Close() error {
	var errs []error
	if f.watch != nil {
		errs = append(errs, f.watch.close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nft != nil {
		errs = append(errs, f.nft.close())
	}
	for _, l := range f.legacy {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

// Ready receives when somebody else changed the rules, or something else that
// decides about them: Ensure has to be called.
func (f *Firewall) Ready() <-chan struct{} { return f.ready }

// Ensure makes the kernel hold r. It returns what it changed, in words; nothing
// if all was right. What cannot be done does not keep the rest from being done.
func (f *Firewall) Ensure(r Rules) (did []string, err error) {
	r, bad, err := r.normal()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.renew(); err != nil {
		return nil, err
	}
	f.good = f.good && f.rules.equal(r)
	f.rules, f.asked = r, true
	did, err = f.settle()
	return did, errors.Join(bad, err)
}

// settle changes what is wrong, and reads again, until nothing is.
func (f *Firewall) settle() (did []string, err error) {
	for range attempts {
		steps, err := f.steps()
		if err != nil {
			return did, err
		}
		if f.good {
			f.heard()
			f.tell()
			return did, nil
		}
		var errs []error
		for _, s := range steps {
			more, err := s()
			did, errs = append(did, more...), append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			f.failed = true
			return did, err
		}
	}
	return did, fmt.Errorf("the kernel holds something else after %d attempts: %q", attempts, did)
}

// heard takes back what Ready has to say: all of it has been dealt with.
func (f *Firewall) heard() {
	select {
	case <-f.ready:
	default:
	}
}

// renew takes a new socket after a failure: answers to what failed may still be
// on their way to the old one.
func (f *Firewall) renew() error {
	if !f.failed {
		return nil
	}
	n, err := dialNFT()
	if err != nil {
		return err
	}
	_ = f.nft.close()
	f.nft, f.failed = n, false
	return nil
}

// steps compares the kernel with the rules of the last Ensure and returns what
// is to be done. f.good is set if that is nothing.
func (f *Firewall) steps() (list []step, err error) {
	generation, err := f.nft.generation()
	if err != nil {
		f.failed = true
		return nil, err
	}
	if !f.good || f.generation != generation {
		f.good = false
		if list, err = f.nftSteps(); err != nil {
			f.failed = true
			return nil, err
		}
	}
	more, err := f.legacySteps()
	if err != nil {
		return nil, err
	}
	list = append(list, more...)
	f.good, f.generation = len(list) == 0, generation
	return list, nil
}

// nftSteps is what is to be done in nftables: in our table, and in those of
// iptables' nft flavour.
func (f *Firewall) nftSteps() (list []step, err error) {
	add := func(s step) {
		if s != nil {
			list = append(list, s)
		}
	}
	f.blocked.nft = nil
	if f.rules.Forward && f.mode != None {
		if f.blocked.nft, err = f.nft.strangers(!f.rescues()); err != nil {
			return nil, err
		}
	}
	var table *nftTable
	if f.mode == Auto || f.mode == NFTables {
		table = buildTable(f.rules)
	}
	s, err := f.nft.tableStep(table)
	if err != nil {
		return nil, err
	}
	add(s)
	for _, fam := range families {
		read := func() (map[string]xtable, error) { return f.nft.readX(fam, xtableNames...) }
		have, err := read()
		if err != nil {
			return nil, err
		}
		if x := f.commands[fam]; x != nil && x.nft {
			add(x.step(x.wants(f.rules), have, read))
			continue
		}
		for _, name := range xtableNames {
			if f.rescues() && name == "filter" {
				add(f.nft.forwardStep(f.rules, fam, have[name]))
			} else {
				add(f.nft.removeStep(fam, name, have[name]))
			}
		}
	}
	return list, nil
}

// rescues reports whether the accept goes into whichever FORWARD drops.
func (f *Firewall) rescues() bool { return f.mode == Auto || f.mode == IPTables }

// legacySteps is what is to be done in the tables of iptables' legacy flavour.
func (f *Firewall) legacySteps() (list []step, err error) {
	f.blocked.legacy = nil
	for _, l := range f.legacy {
		read := func() (map[string]xtable, error) { return l.read(xtableNames...) }
		have, err := read()
		if err != nil {
			return nil, err
		}
		drops := f.rules.Forward && have["filter"].blocker(forwardChain) >= 0
		if drops && f.mode == NFTables {
			f.blocked.legacy = append(f.blocked.legacy, "iptables FORWARD ("+l.family.name+", legacy)")
		}
		x := f.commands[l.family]
		var wants []xwant
		switch {
		case x != nil && !x.nft:
			wants = x.wants(f.rules)
		case f.rescues() && drops:
			wants = f.rules.xaccept(l.family)
		}
		if len(wants) == 0 && !slices.ContainsFunc(xtableNames, func(name string) bool { return len(have[name].ours()) > 0 }) {
			continue
		}
		if x == nil || x.nft {
			if x, err = f.legacyCommand(l.family); err != nil {
				list = append(list, func() ([]string, error) { return nil, err })
				continue
			}
		}
		if s := x.step(wants, have, read); s != nil {
			list = append(list, s)
		}
	}
	return list, nil
}

// legacyCommand finds the program that writes the legacy flavour.
func (f *Firewall) legacyCommand(fam family) (*xcommand, error) {
	if f.rescue[fam] == nil {
		x, err := findIPTables(fam, func(nft bool) bool { return !nft }, "iptables-legacy", "iptables")
		if err != nil {
			return nil, fmt.Errorf("legacy FORWARD drops what it does not know, or has rules of ours: %w", err)
		}
		f.rescue[fam] = x
	}
	return f.rescue[fam], nil
}

// Remove takes away everything of ours in both back ends, in the calling
// thread's network namespace, and nothing else. It returns what it did, in words.
func Remove() (did []string, err error) {
	f, err := Open(None, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	did, err = f.Ensure(Rules{})
	return did, errors.Join(err, f.Close())
}
