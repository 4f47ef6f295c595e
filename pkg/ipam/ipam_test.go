package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A fakeClock is a time since boot that stands still.
type fakeClock struct{ t time.Duration }

func (c *fakeClock) now() time.Duration      { return c.t }
func (c *fakeClock) advance(d time.Duration) { c.t += d }
func prefixes(t testing.TB, text string) (p []netip.Prefix) {
	t.Helper()
	for f := range strings.FieldsSeq(text) {
		s, err := netip.ParsePrefix(f)
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, s)
	}
	return p
}

func addrs(t testing.TB, text string) (a []netip.Addr) {
	t.Helper()
	for f := range strings.FieldsSeq(text) {
		x, err := netip.ParseAddr(f)
		if err != nil {
			t.Fatal(err)
		}
		a = append(a, x)
	}
	return a
}

// newPool opens the pool of subnets in dir on a clock.
func newPool(t testing.TB, dir, subnets string, c *fakeClock) *Pool {
	t.Helper()
	p, err := Open(dir, prefixes(t, subnets))
	if err != nil {
		t.Fatal(err)
	}
	p.now = c.now
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func key(n int) Key { return Key{fmt.Sprintf("container-%d", n), "eth0"} }

// acquire takes a slot that must be there.
func acquire(t testing.TB, p *Pool, n int, want ...netip.Addr) Slot {
	t.Helper()
	s, err := p.Acquire(t.Context(), Request{Key: key(n), Pod: fmt.Sprintf("default/pod-%d", n), Addrs: want})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// release frees a slot that must be held.
func release(t testing.TB, p *Pool, n int) {
	t.Helper()
	if found, err := p.Release(t.Context(), key(n)); err != nil || !found {
		t.Fatalf("Release(%v) = %v, %v, want true", key(n), found, err)
	}
}

// text writes a slot as the tests compare it.
func text(s Slot) string {
	return fmt.Sprintf("%d %s %s %v", s.Index, s.Key, s.Pod, s.Addrs)
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// slotPath is the file of subnets in dir.
func slotPath(t testing.TB, dir, subnets string) string {
	return filepath.Join(dir, fileName(prefixes(t, subnets)[0]))
}

// fileNames lists a folder.
func fileNames(t testing.TB, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range all {
		names = append(names, n.Name())
	}
	return strings.Join(names, " ")
}
