package vxlan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// fake is a Kernel in memory.
type fake struct {
	s State
	// after is called after every change.
	after func(Op)
}

func (f *fake) State() (State, error) { return f.s.Clone(), nil }

func (f *fake) Apply(ops []Op) error {
	for _, o := range ops {
		switch e := o.Entry.(type) {
		case FDB:
			put(f.s.FDB, o.Del, e.MAC, e.Dst)
		case Neigh:
			put(f.s.Neighs, o.Del, e.IP, e.MAC)
		case Subnet:
			put(f.s.Routes, o.Del, e.Dst, e.Route)
		}
		if f.after != nil {
			f.after(o)
		}
	}
	return nil
}

func put[K comparable, V any](m map[K]V, del bool, k K, v V) {
	if del {
		delete(m, k)
		return
	}
	m[k] = v
}

var errInjected = errors.New("injected")

// flaky refuses one change in eight.
type flaky struct {
	Kernel
	r       *rand.Rand
	refused int
}

func (f *flaky) Apply(ops []Op) error {
	var pass []Op
	var errs []error
	for _, o := range ops {
		if f.r.IntN(8) == 0 {
			errs = append(errs, &OpError{o, errInjected})
			continue
		}
		pass = append(pass, o)
	}
	f.refused += len(errs)
	return errors.Join(append(errs, f.Kernel.Apply(pass))...)
}

// text is a state in the words of ip and bridge.
func text(s State) string {
	var lines []string
	for _, o := range Diff(s, Empty()) {
		lines = append(lines, o.Entry.String())
	}
	return sorted(lines)
}

func sorted(lines []string) string {
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// peersOf returns what node i announces: no subnet, an IPv4 one (1), an IPv6 one
// (2) or both, from one of two underlay addresses and with one of two MACs. The
// IPv4 one may be on the same link (4).
func peersOf(i, families, underlay, mac int) (peers []Peer) {
	m := MAC{0x0e, 0, 0, 0, byte(mac), byte(i)}
	u := netip.AddrFrom4([4]byte{192, 0, 2, byte(100*underlay + i)})
	if families&1 != 0 {
		gw := netip.AddrFrom4([4]byte{10, 244, byte(i), 0})
		peers = append(peers, Peer{netip.PrefixFrom(gw, 24), gw, m, u, families&4 != 0})
	}
	if families&2 != 0 {
		gw := addr(fmt.Sprintf("fd00:0:0:%x::", i))
		peers = append(peers, Peer{netip.PrefixFrom(gw, 64), gw, m, u, false})
	}
	return peers
}

// randomPeers returns what seven nodes might announce.
func randomPeers(r *rand.Rand) (peers []Peer) {
	for i := 1; i <= 7; i++ {
		peers = append(peers, peersOf(i, r.IntN(8), r.IntN(2), r.IntN(2))...)
	}
	return peers
}

// transitions drives k through peer sets by random, against refusals, and
// compares what shown says k holds with what it should.
func transitions(t *testing.T, k Kernel, n int, shown func() string) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	f := &flaky{Kernel: k, r: r}
	for i := range n {
		want := Desired(randomPeers(r))
		for attempt := 0; ; attempt++ {
			refused := f.refused
			_, err := Reconcile(f, Exactly(want))
			if err == nil {
				break
			}
			var op *OpError
			if !errors.Is(err, errInjected) || !errors.As(err, &op) || f.refused == refused || attempt == 100 {
				t.Fatalf("transition %d, attempt %d, %d refused: %v", i, attempt, f.refused-refused, err)
			}
		}
		if got := shown(); got != text(want) {
			t.Fatalf("transition %d: kernel holds\n%s\nwant\n%s", i, got, text(want))
		}
		if ops := reconcile(t, k, want); len(ops) != 0 {
			t.Fatalf("transition %d: a second Reconcile issued %v", i, ops)
		}
	}
	if f.refused < n/8 {
		t.Errorf("only %d changes were refused", f.refused)
	}
}
