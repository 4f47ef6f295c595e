package vxlan

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// testScope is what the tests' monitor looks at.
func testScope(d *Device, want State) Scope {
	return Scope{
		Index: d.Link().Index, Names: []string{testDevice}, Ports: []uint32{d.Port()},
		Networks: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00::/16")},
		Device:   d.Config(), Want: want,
	}
}

// listen makes a Monitor inside the namespace that does not read yet.
func listen(t *testing.T, ns *netlab.Namespace, s Scope) *Monitor {
	t.Helper()
	var m *Monitor
	if err := ns.Do(func() (err error) {
		m, err = Watch(s)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// read runs m until the test ends.
func read(t *testing.T, m *Monitor) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("monitor: %v", err)
		}
	})
}

// collect takes events until enough of them have come, and fails the test if
// that takes more than a second.
func collect(t *testing.T, m *Monitor, enough func(Events) bool) (all Events) {
	t.Helper()
	late := time.After(time.Second)
	for !enough(all) {
		select {
		case <-m.Ready():
			e := m.Take()
			all.Changes = append(all.Changes, e.Changes...)
			all.Received += e.Received
			all.More += e.More
			all.Underlay = all.Underlay || e.Underlay
			all.Overruns += e.Overruns
			for miss, when := range e.Misses {
				if all.Misses == nil {
					all.Misses = map[Miss]time.Time{}
				}
				all.Misses[miss] = when
			}
		case <-late:
			t.Fatalf("a second is over; so far %d changes, %d misses:\n%s%v", len(all.Changes), len(all.Misses), changeTexts(all.Changes), all.Misses)
		}
	}
	return all
}

func changeTexts(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(c.Text + "\n")
	}
	return b.String()
}

// find returns the first change whose text begins so.
func find(changes []Change, begins string) (Change, bool) {
	for _, c := range changes {
		if strings.HasPrefix(c.Text, begins) {
			return c, true
		}
	}
	return Change{}, false
}

var marks atomic.Int32

// barrier has somebody else make a change, and returns what was announced
// before it. The kernel announces in order.
func barrier(t *testing.T, m *Monitor, ns *netlab.Namespace) []Change {
	t.Helper()
	// Setting what is set already is not announced: another MAC each time.
	n := marks.Add(1)
	lladdr := fmt.Sprintf("lladdr %s", MAC{2, 0x99, 0, 0, byte(n >> 8), byte(n)})
	mark := "set neigh 10.244.99.99 " + lladdr
	run(t, ns, "ip neigh replace 10.244.99.99 dev overlay.1 nud reachable "+lladdr)
	e := collect(t, m, func(e Events) bool {
		_, ok := find(e.Changes, mark)
		return ok
	})
	last := e.Changes[len(e.Changes)-1]
	if !strings.HasPrefix(last.Text, mark) {
		t.Errorf("after the mark came %q", last.Text)
	}
	return e.Changes[:len(e.Changes)-1]
}
