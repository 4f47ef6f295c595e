package vxlan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Whatever the peers change to, the kernel follows, and once it holds what it
// should there is nothing left to do.
func TestReconcileFollowsRandomTransitions(t *testing.T) {
	k := &fake{s: Empty()}
	transitions(t, k, 500, func() string { return text(k.s) })
}

// While one set of peers becomes another, no route leads to a gateway that
// cannot be reached, after any single change.
func TestDiffKeepsRoutesReachable(t *testing.T) {
	sets := [][]Peer{
		nil,
		peersOf(1, 1, 0, 0),
		slices.Concat(peersOf(1, 3, 0, 0), peersOf(2, 3, 0, 0)),
		slices.Concat(peersOf(1, 3, 1, 0), peersOf(2, 2, 0, 1)), // one moved, one with a new MAC
		slices.Concat(peersOf(1, 2, 1, 1), peersOf(3, 3, 0, 0)),
		slices.Concat(peersOf(1, 7, 0, 0), peersOf(2, 5, 1, 0)), // on the same link
	}
	for i, from := range sets {
		for j, to := range sets {
			k := &fake{s: Desired(from)}
			k.after = func(o Op) {
				for dst, r := range k.s.Routes {
					if r.Direct {
						continue
					}
					mac, ok := k.s.Neighs[r.Via]
					if _, known := k.s.FDB[mac]; !ok || !known {
						t.Errorf("set %d to %d: after %q the route to %s leads nowhere", i, j, o, dst)
					}
				}
			}
			reconcile(t, k, Desired(to))
			if got, want := text(k.s), text(Desired(to)); got != want {
				t.Errorf("set %d to %d: holds\n%s\nwant\n%s", i, j, got, want)
			}
		}
	}
}

func TestDiffOrder(t *testing.T) {
	rank := func(o Op) int {
		switch o.Entry.(type) {
		case FDB:
			return map[bool]int{false: 1, true: 5}[o.Del]
		case Neigh:
			return map[bool]int{false: 2, true: 4}[o.Del]
		default:
			return map[bool]int{false: 3, true: 0}[o.Del]
		}
	}
	have := Desired(slices.Concat(peersOf(1, 3, 0, 0), peersOf(2, 3, 0, 0)))
	want := Desired(slices.Concat(peersOf(2, 3, 1, 1), peersOf(3, 3, 0, 0)))
	ops := Diff(want, have)
	if !slices.IsSortedFunc(ops, func(a, b Op) int { return rank(a) - rank(b) }) {
		t.Errorf("routes out, FDB, neighbours, routes in, neighbours and FDB out; got %v", ops)
	}
	// Node 2's neighbours change in place, its FDB entry does not.
	var lines []string
	for _, o := range ops {
		lines = append(lines, o.String())
	}
	const all = `del fdb 0e:00:00:00:00:01 dst 192.0.2.1
del fdb 0e:00:00:00:00:02 dst 192.0.2.2
del neigh 10.244.1.0 lladdr 0e:00:00:00:00:01
del neigh fd00:0:0:1:: lladdr 0e:00:00:00:00:01
del route 10.244.1.0/24 via 10.244.1.0 onlink
del route fd00:0:0:1::/64 via fd00:0:0:1:: onlink
set fdb 0e:00:00:00:00:03 dst 192.0.2.3
set fdb 0e:00:00:00:01:02 dst 192.0.2.102
set neigh 10.244.2.0 lladdr 0e:00:00:00:01:02
set neigh 10.244.3.0 lladdr 0e:00:00:00:00:03
set neigh fd00:0:0:2:: lladdr 0e:00:00:00:01:02
set neigh fd00:0:0:3:: lladdr 0e:00:00:00:00:03
set route 10.244.3.0/24 via 10.244.3.0 onlink
set route fd00:0:0:3::/64 via fd00:0:0:3:: onlink`
	if got := sorted(lines); got != all {
		t.Errorf("changes\n%s\nwant\n%s", got, all)
	}
}

func TestOnMissAsksForRoutesAndKeepsWhatWasAnswered(t *testing.T) {
	all := Desired(slices.Concat(peersOf(1, 3, 0, 0), peersOf(2, 1, 0, 0)))
	k := &fake{s: Empty()}
	step := func(name string, s State, want string) {
		t.Helper()
		if _, err := Reconcile(k, s.OnMiss); err != nil {
			t.Fatal(err)
		}
		if got := text(k.s); got != want {
			t.Errorf("%s: holds\n%s\nwant\n%s", name, got, want)
		}
		if ops, _ := Reconcile(k, s.OnMiss); len(ops) != 0 {
			t.Errorf("%s: a second Reconcile issued %v", name, ops)
		}
	}
	const routes = `route 10.244.1.0/24 via 10.244.1.0 onlink
route 10.244.2.0/24 via 10.244.2.0 onlink
route fd00:0:0:1::/64 via fd00:0:0:1:: onlink`
	step("at first", all, routes)

	if err := k.Apply(all.Resolve(Miss{IP: addr("10.244.1.0")})); err != nil {
		t.Fatal(err)
	}
	step("after a miss", all, "fdb 0e:00:00:00:00:01 dst 192.0.2.1\nneigh 10.244.1.0 lladdr 0e:00:00:00:00:01\n"+routes)

	// The node comes back with another MAC and address: what was asked for
	// follows, the rest still waits.
	moved := Desired(slices.Concat(peersOf(1, 3, 1, 1), peersOf(2, 1, 0, 0)))
	step("after a move", moved, "fdb 0e:00:00:00:01:01 dst 192.0.2.101\nneigh 10.244.1.0 lladdr 0e:00:00:00:01:01\n"+routes)

	delete(k.s.FDB, MAC{0x0e, 0, 0, 0, 1, 1})
	step("after a loss of the FDB entry", moved, "fdb 0e:00:00:00:01:01 dst 192.0.2.101\nneigh 10.244.1.0 lladdr 0e:00:00:00:01:01\n"+routes)

	k.s.Neighs[addr("10.244.9.0")] = MAC{2}
	k.s.FDB[MAC{2}] = addr("192.0.2.9")
	step("after the peer left", Desired(peersOf(2, 1, 0, 0)), "route 10.244.2.0/24 via 10.244.2.0 onlink")
}

func TestResolve(t *testing.T) {
	s := Desired(peersOf(1, 3, 0, 0))
	broken := Desired(peersOf(1, 1, 0, 0))
	clear(broken.FDB)
	mac := MAC{0x0e, 0, 0, 0, 0, 1}
	for _, c := range []struct {
		name string
		s    State
		miss Miss
		want []Op
	}{
		{"neighbour", s, Miss{IP: addr("10.244.1.0")}, []Op{
			{Entry: FDB{mac, addr("192.0.2.1")}}, {Entry: Neigh{addr("10.244.1.0"), mac}},
		}},
		{"IPv6 neighbour", s, Miss{IP: addr("fd00:0:0:1::")}, []Op{
			{Entry: FDB{mac, addr("192.0.2.1")}}, {Entry: Neigh{addr("fd00:0:0:1::"), mac}},
		}},
		{"FDB entry", s, Miss{MAC: mac}, []Op{{Entry: FDB{mac, addr("192.0.2.1")}}}},
		{"unknown neighbour", s, Miss{IP: addr("10.244.2.0")}, nil},
		{"a pod, not a gateway", s, Miss{IP: addr("10.244.1.7")}, nil},
		{"unknown MAC", s, Miss{MAC: MAC{2}}, nil},
		{"nothing", s, Miss{}, nil},
		{"no peers", Empty(), Miss{IP: addr("10.244.1.0")}, nil},
		{"neighbour without FDB entry", broken, Miss{IP: addr("10.244.1.0")}, nil},
	} {
		if got := c.s.Resolve(c.miss); !slices.Equal(got, c.want) {
			t.Errorf("%s: %s is answered by %v, want %v", c.name, c.miss, got, c.want)
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	s := Desired(peersOf(1, 3, 0, 0))
	before := text(s)
	c := s.Clone()
	clear(c.FDB)
	clear(c.Neighs)
	clear(c.Routes)
	if text(s) != before {
		t.Error("a change of the clone changed the original")
	}
}

// unreadable is a Kernel whose tables cannot be read.
type unreadable struct{ fake }

func (*unreadable) State() (State, error) { return State{}, errInjected }

func TestReconcileChangesNothingItCannotRead(t *testing.T) {
	k := &unreadable{fake{s: Empty(), after: func(o Op) { t.Errorf("%s was carried out", o) }}}
	ops, err := Reconcile(k, Exactly(Desired(peersOf(1, 3, 0, 0))))
	if !errors.Is(err, errInjected) || ops != nil {
		t.Errorf("got %v, %v", ops, err)
	}
}

func TestOpErrorNamesTheChange(t *testing.T) {
	ops := []Op{{Entry: FDB{MAC{2}, addr("192.0.2.1")}}, {Del: true, Entry: Neigh{addr("10.0.0.0"), MAC{2}}}}
	if err := joinOpErrors(ops, make([]error, 2)); err != nil {
		t.Errorf("no refusal made the error %v", err)
	}
	err := joinOpErrors(ops, []error{nil, errInjected})
	if err == nil || err.Error() != "del neigh 10.0.0.0 lladdr 02:00:00:00:00:00: injected" || !errors.Is(err, errInjected) {
		t.Errorf("got %v", err)
	}
}

func TestRefusedNamesWhatWasNotDone(t *testing.T) {
	ops := []Op{{Entry: FDB{MAC{2}, addr("192.0.2.1")}}, {Entry: Neigh{addr("10.0.0.0"), MAC{2}}}, {Del: true, Entry: Neigh{addr("10.1.0.0"), MAC{2}}}}
	err := errors.Join(errors.New("something else"), fmt.Errorf("wrapped: %w", joinOpErrors(ops[:2], []error{nil, errInjected})), joinOpErrors(ops[2:], []error{errInjected}))
	if got := Refused(err); !slices.Equal(got, ops[1:]) {
		t.Errorf("refused were %v, want %v", got, ops[1:])
	}
	if got := Refused(nil); len(got) != 0 {
		t.Errorf("without an error: %v", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if err := testConfig().check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"1 to 15 bytes": func(c *Config) { c.Name = "sixteen-bytes-ab" },
		"VNI 0":         func(c *Config) { c.VNI = 0 },
		"VNI 16777216":  func(c *Config) { c.VNI = 1 << 24 },
		"port 0":        func(c *Config) { c.Port = 0 },
		"MAC 00:":       func(c *Config) { c.MAC = MAC{} },
		"MAC 03:":       func(c *Config) { c.MAC[0] = 3 },
		"local address": func(c *Config) { c.Local = addr("0.0.0.0") },
		"address inv":   func(c *Config) { c.Local = Config{}.Local },
		"::ffff":        func(c *Config) { c.Local = addr("::ffff:192.0.2.1") },
		"MTU -1":        func(c *Config) { c.MTU = -1 },
		"with its":      func(c *Config) { c.Addrs = append(c.Addrs, Subnet{}.Dst) },
	} {
		c := testConfig()
		spoil(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestOverhead(t *testing.T) {
	if v4, v6 := Overhead(true), Overhead(false); v4 != 50 || v6 != 70 {
		t.Errorf("overhead %d and %d, want 50 and 70", v4, v6)
	}
}
