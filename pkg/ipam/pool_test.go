package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestAcquireOrder(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/29", c) // slots 2 to 6
	for n, want := range []int{2, 3, 4} {
		if s := acquire(t, p, n); s.Index != want || !s.Held || s.Age != 0 {
			t.Errorf("%d: %+v, want slot %d", n, s, want)
		}
	}
	release(t, p, 1) // slot 3, before slot 2
	c.advance(time.Second)
	release(t, p, 0)
	if s := acquire(t, p, 5); s.Index != 5 {
		t.Errorf("slot %d, want the never used 5 and not one that rests", s.Index)
	}
	c.advance(Rest)
	for n, want := range map[int]int{6: 6} { // never used goes before released
		if s := acquire(t, p, n); s.Index != want {
			t.Errorf("slot %d, want %d", s.Index, want)
		}
	}
	for n, want := range []int{3, 2} { // then the longest released
		if s := acquire(t, p, 10+n); s.Index != want {
			t.Errorf("slot %d, want %d", s.Index, want)
		}
	}
}

func TestAcquireIsIdempotent(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/24 fd00::/64", c)
	first := acquire(t, p, 1)
	c.advance(time.Minute)
	again := acquire(t, p, 1, addrs(t, "fd00::2")...)
	if text(first) != text(again) || again.Age != time.Minute || again.fresh || !first.fresh {
		t.Errorf("second %+v, want %+v a minute later", again, first)
	}
	if want := "2 container-1/eth0 default/pod-1 [10.244.1.2 fd00::2]"; text(first) != want {
		t.Errorf("slot %s, want %s", text(first), want)
	}
	_, err := p.Acquire(t.Context(), Request{Key: key(1), Addrs: addrs(t, "10.244.1.9")})
	if want := `address "10.244.1.9": container-1/eth0 holds [10.244.1.2 fd00::2] already`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	other, err := p.Acquire(t.Context(), Request{Key: Key{key(1).Container, "net1"}})
	if err != nil || other.Index == first.Index {
		t.Errorf("slot %d, %v for another interface, want another slot", other.Index, err)
	}
}

func TestRest(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/30", c) // slot 2 alone
	acquire(t, p, 1)
	request := Request{Key: key(2)}
	exhausted := func(want string) {
		t.Helper()
		_, err := p.Acquire(t.Context(), request)
		var full *ExhaustedError
		if !errors.Is(err, ErrExhausted) || !errors.As(err, &full) || err.Error() != want {
			t.Fatalf("error %v, want %s", err, want)
		}
	}
	exhausted("no free address in 10.244.1.0/30: 1 of 1 held, 0 resting")
	release(t, p, 1)
	exhausted("no free address in 10.244.1.0/30: 0 of 1 held, 1 resting, the next is free in 2m0s")
	c.advance(Rest - time.Millisecond)
	exhausted("no free address in 10.244.1.0/30: 0 of 1 held, 1 resting, the next is free in 1ms")
	c.advance(time.Millisecond)
	if s, err := p.Acquire(t.Context(), request); err != nil || s.Index != 2 {
		t.Fatalf("slot %+v, %v, want 2", s, err)
	}
}

// After a reboot that the file survived, the clock is behind it.
func TestReleasedInTheFuture(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/30", c)
	acquire(t, p, 1)
	release(t, p, 1)
	c.t = time.Minute
	if s := acquire(t, p, 2); s.Index != 2 {
		t.Errorf("slot %+v, want 2", s)
	}
	c.t = time.Second
	if s := acquire(t, p, 2); s.Age != 0 {
		t.Errorf("held for %s, want 0", s.Age)
	}
}

func TestRequestedAddress(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/24 fd00::/64", c)
	acquire(t, p, 1, addrs(t, "10.244.1.9")...)
	for want, n := range map[string]int{"10.244.1.20": 2, "fd00::1e": 3, "10.244.1.40 fd00::28": 4, "fd00::32 10.244.1.50": 5} {
		if s := acquire(t, p, n, addrs(t, want)...); s.Index != 10*n || len(s.Addrs) != 2 {
			t.Errorf("%s: %s, want both addresses of slot %d", want, text(s), 10*n)
		}
	}
	if s := acquire(t, p, 100); s.Index != 2 {
		t.Errorf("slot %d without a request, want 2", s.Index)
	}
	release(t, p, 1)
	if s := acquire(t, p, 6, addrs(t, "10.244.1.9")...); s.Index != 9 {
		t.Errorf("slot %d, want 9 although it rests", s.Index)
	}
	for request, want := range map[string]string{
		"10.244.2.7":            "want one of the first 256 addresses of 10.244.1.0/24 or fd00::/64",
		"fd00::100":             "want one of the first 256 addresses",
		"10.244.1.0":            "is reserved",
		"10.244.1.1":            "is reserved",
		"fd00::1":               "is reserved",
		"10.244.1.255":          "is reserved",
		"fd00::ff":              "is reserved",
		"10.244.1.7 fd00::8":    "and 10.244.1.7 are not of one slot",
		"10.244.1.7 10.244.1.8": "and 10.244.1.7 are not of one slot",
		"10.244.1.7 10.244.1.7": "is asked for twice",
		"10.244.1.20":           `its slot was given to container-2/eth0, pod "default/pod-2"`,
		"::ffff:10.244.1.7":     "want one of",
		"fd00::7%eth0":          "want one of",
	} {
		_, err := p.Acquire(t.Context(), Request{Key: key(99), Addrs: addrs(t, request)})
		var bad *RequestError
		if !errors.As(err, &bad) || bad.Field != "address" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", request, err, want)
		}
	}
}

func TestKeyBounds(t *testing.T) {
	p := newPool(t, t.TempDir(), "10.244.1.0/24", &fakeClock{time.Hour})
	long := strings.Repeat("c", maxContainer)
	for _, c := range []struct {
		key  Key
		want string // start of the error
	}{
		{Key{long, strings.Repeat("i", 15)}, ""},
		{Key{long + "c", "eth0"}, `container id "` + long + `c": has 181 bytes, want 1 to 180`},
		{Key{"", "eth0"}, `container id "": has 0 bytes, want 1 to 180`},
		{Key{"c", ""}, `interface name "": has 0 bytes, want 1 to 15`},
		{Key{"c", strings.Repeat("i", 16)}, `interface name "iiiiiiiiiiiiiiii": has 16 bytes, want 1 to 15`},
	} {
		_, err := p.Acquire(t.Context(), Request{Key: c.key})
		if got := ""; err != nil {
			if got = err.Error(); got != c.want {
				t.Errorf("error %q, want %q", got, c.want)
			}
		} else if c.want != "" {
			t.Errorf("%v was taken, want %q", c.key, c.want)
		}
		// To release what cannot be held is no error: DEL must succeed.
		if found, err := p.Release(t.Context(), c.key); err != nil || found != (c.want == "") {
			t.Errorf("Release: %v, %v", found, err)
		}
	}
}

func TestCancel(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/30", c)
	path := slotPath(t, dir, "10.244.1.0/30")
	cancel := func(s Slot) {
		t.Helper()
		if err := p.Cancel(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	s := acquire(t, p, 1)
	cancel(s)
	if !blank(read(t, path)[offset(2):offset(3)]) {
		t.Error("a slot that was never used is not so again")
	}
	old := acquire(t, p, 1)
	release(t, p, 1)
	c.advance(Rest)
	s = acquire(t, p, 2)
	c.advance(time.Second)
	cancel(s)
	if u, err := p.Usage(t.Context()); err != nil || u != (Usage{Total: 1}) {
		t.Errorf("usage %+v, %v, want one slot that does not rest", u, err)
	}
	s = acquire(t, p, 1)
	for _, stale := range []Slot{old, {Index: 2, Key: key(9)}, {Index: 77, Key: key(1)}} {
		cancel(stale) // not that hold, not the holder, no such slot
	}
	if again := acquire(t, p, 1); again.fresh {
		t.Error("a stale Cancel freed the slot")
	} else {
		cancel(again) // held before: a pod may have used it
	}
	cancel(s)
	if u, err := p.Usage(t.Context()); err != nil || u.Resting != 1 {
		t.Errorf("usage %+v, %v, want a slot that rests", u, err)
	}
}

func TestRelease(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/24", c)
	if found, err := p.Release(t.Context(), key(1)); found || err != nil {
		t.Errorf("Release of nothing: %v, %v", found, err)
	}
	acquire(t, p, 1)
	acquire(t, p, 2)
	release(t, p, 1)
	if found, err := p.Release(t.Context(), key(1)); found || err != nil {
		t.Errorf("second Release: %v, %v", found, err)
	}
	u, err := p.Usage(t.Context())
	if want := (Usage{Total: 253, Held: 1, Resting: 1, Next: Rest}); u != want || err != nil || u.Free() != 251 {
		t.Errorf("usage %+v, %v, want %+v", u, err, want)
	}
}

// Dual stack switched on, moved and switched off: what is held keeps its
// addresses, and nobody else gets them.
func TestSecondSubnetChanges(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	header := func() []netip.Prefix {
		l, _, reason := parseHeader(read(t, slotPath(t, dir, "10.244.1.0/28"))[:recordSize])
		if reason != "" {
			t.Fatal(reason)
		}
		return l.subnets[:l.families()]
	}
	for n, step := range []struct{ subnets, want string }{
		{"10.244.1.0/28", "2 container-0/eth0 default/pod-0 [10.244.1.2]"},
		{"10.244.1.0/28 fd00::/64", "3 container-1/eth0 default/pod-1 [10.244.1.3 fd00::3]"},
		{"10.244.1.0/28 fd01::/64", "4 container-2/eth0 default/pod-2 [10.244.1.4 fd01::4]"},
		{"10.244.1.0/28", "5 container-3/eth0 default/pod-3 [10.244.1.5]"},
		{"10.244.1.0/28 fd00::/124", "6 container-4/eth0 default/pod-4 [10.244.1.6 fd00::6]"},
	} {
		p := newPool(t, dir, step.subnets, c)
		if got := text(acquire(t, p, n)); got != step.want {
			t.Errorf("%s: %s, want %s", step.subnets, got, step.want)
		}
		if got := header(); !slices.Equal(got, prefixes(t, step.subnets)) {
			t.Errorf("header has %v, want %s", got, step.subnets)
		}
	}
	held, err := List(t.Context(), dir)
	if err != nil || len(held) != 5 {
		t.Fatalf("%d slots held, %v, want 5", len(held), err)
	}
	if got := text(held[1].Slot); got != "3 container-1/eth0 default/pod-1 [10.244.1.3 fd00::3]" {
		t.Errorf("held before: %s", got)
	}
}

// The node's lease of one family moved and the other's not, or its length
// changed: an address that a pod has by the old file is not given by the new.
func TestAddressesOfOtherFiles(t *testing.T) {
	for _, c := range []struct {
		before, after string
		held, rests   string // an address that is so in the old file
		want          string // slots to be given
		request       string // address that must be refused
	}{
		{"10.244.1.0/29 fd00::/64", "10.244.2.0/29 fd00::/64", "10.244.1.2", "10.244.1.4", "[3 5 6]", "fd00::2"},
		{"10.244.1.0/29 fd00::/64", "fd00::/125", "10.244.1.3", "10.244.1.6", "[2 4 5 7]", "fd00::3"},
		{"10.244.1.0/24", "10.244.1.8/29", "10.244.1.10", "10.244.1.12", "[3 5 6]", "10.244.1.10"},
		{"10.244.1.8/29", "10.244.1.0/28", "10.244.1.10", "10.244.1.12", "[2 3 4 5 6 7 8 9 11 13 14]", "10.244.1.10"},
		{"10.244.1.0/29 fd00::/64", "10.244.2.0/29 fd01::/64", "10.244.1.2", "10.244.1.4", "[2 3 4 5 6]", ""},
	} {
		clock := &fakeClock{time.Hour}
		dir := t.TempDir()
		before := newPool(t, dir, c.before, clock)
		acquire(t, before, 1, addrs(t, c.held)...)
		acquire(t, before, 2, addrs(t, c.rests)...)
		release(t, before, 2)
		after := newPool(t, dir, c.after, clock)
		if c.request != "" {
			_, err := after.Acquire(t.Context(), Request{Key: key(3), Addrs: addrs(t, c.request)})
			if want := "its slot was given to container-1/eth0"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s to %s: %v, want %q", c.before, c.after, err, want)
			}
		}
		var got []int
		var err error
		for n := 10; err == nil; n++ {
			var s Slot
			if s, err = after.Acquire(t.Context(), Request{Key: key(n)}); err == nil {
				got = append(got, s.Index)
			}
		}
		if fmt.Sprint(got) != c.want || !errors.Is(err, ErrExhausted) {
			t.Errorf("%s to %s: slots %v, %v, want %s", c.before, c.after, got, err, c.want)
		}
		if want := fmt.Sprintf("%d of %[1]d held", after.layout.end()-firstSlot); !strings.Contains(err.Error(), want) {
			t.Errorf("%s to %s: %v, want %q", c.before, c.after, err, want)
		}
		clock.advance(Rest)
		if s, err := after.Acquire(t.Context(), Request{Key: key(99)}); (err == nil) != (c.request != "") {
			t.Errorf("%s to %s: after the rest %+v, %v", c.before, c.after, s, err)
		}
	}
}

func TestCloseEndsThePool(t *testing.T) {
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour})
	acquire(t, p, 1)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Usage(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want %v", err, os.ErrClosed)
	}
	if held, err := List(t.Context(), dir); err != nil || len(held) != 1 {
		t.Errorf("%v, %v, want the slot still held", held, err)
	}
	unopened := newPool(t, dir, "10.244.2.0/24", &fakeClock{time.Hour})
	if err := unopened.Close(); err != nil {
		t.Error(err)
	}
}

// A lock that another has is waited for as long as ctx lasts, by each
// operation, and nothing changes.
func TestLockIsBoundedByContext(t *testing.T) {
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour})
	s := acquire(t, p, 1)
	path := slotPath(t, dir, "10.244.1.0/24")
	before := read(t, path)
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour}) // its channel must be of the bubble
		for name, do := range operations(dir, p, s) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			start := time.Now()
			if err := do(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lock "+path) {
				t.Errorf("%s: %v, want %v that names the file", name, err, context.DeadlineExceeded)
			}
			if took := time.Since(start); took != 3*time.Second {
				t.Errorf("%s waited %s, want 3 s", name, took)
			}
			cancel()
		}
	})
	if string(read(t, path)) != string(before) {
		t.Error("the file changed")
	}
	_ = other.Close()
	release(t, p, 1)
}

// A folder that another makes a file in is waited for the same way.
func TestCreateIsBoundedByContext(t *testing.T) {
	dir := t.TempDir()
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Usage(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
		}
	})
	if names := fileNames(t, dir); names != "" {
		t.Errorf("folder has %s, want nothing", names)
	}
}

// operations are all that take a lock.
func operations(dir string, p *Pool, s Slot) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Acquire": func(ctx context.Context) error { _, err := p.Acquire(ctx, Request{Key: key(77)}); return err },
		"Acquire by address": func(ctx context.Context) error {
			_, err := p.Acquire(ctx, Request{Key: key(77), Addrs: []netip.Addr{p.layout.addrs(9)[0]}})
			return err
		},
		"Release": func(ctx context.Context) error { _, err := p.Release(ctx, s.Key); return err },
		"Cancel":  func(ctx context.Context) error { return p.Cancel(ctx, s) },
		"Usage":   func(ctx context.Context) error { _, err := p.Usage(ctx); return err },
		"List":    func(ctx context.Context) error { _, err := List(ctx, dir); return err },
		"ReleaseAll": func(ctx context.Context) error {
			_, err := ReleaseAll(ctx, dir, s.Key)
			return err
		},
		"Retain": func(ctx context.Context) error {
			_, err := Retain(ctx, dir, func(Slot) bool { return false }, netip.MustParsePrefix("10.9.9.0/24"))
			return err
		},
	}
}

func TestOneGoroutineWaitsForAnother(t *testing.T) {
	p := newPool(t, t.TempDir(), "10.244.1.0/24", &fakeClock{time.Hour})
	p.turn <- struct{}{}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test says so")
	cancel(cause)
	if _, err := p.Usage(ctx); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	<-p.turn
	if _, err := p.Usage(ctx); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

func TestGoroutinesShareAPool(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", c)
	slots := make([]Slot, 100)
	var group sync.WaitGroup
	for n := range slots {
		group.Go(func() {
			s, err := p.Acquire(t.Context(), Request{Key: key(n)})
			if err != nil {
				t.Error(err)
			}
			if slots[n] = s; n%2 == 0 {
				if _, err := p.Release(t.Context(), key(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	seen := map[int]bool{}
	for _, s := range slots {
		if seen[s.Index] {
			t.Errorf("slot %d was given twice", s.Index)
		}
		seen[s.Index] = true
	}
	u, err := p.Usage(t.Context())
	if err != nil || u.Held != 50 || u.Resting != 50 {
		t.Errorf("usage %+v, %v, want 50 held and 50 resting", u, err)
	}
}

// The folder may be removed under a pool: the next operation starts anew.
func TestFolderIsRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "vxlan-cni")
	p := newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour})
	acquire(t, p, 1)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if s := acquire(t, p, 2); s.Index != 2 {
		t.Errorf("slot %d, want 2 of a new file", s.Index)
	}
	if held, err := List(t.Context(), dir); err != nil || len(held) != 1 || held[0].Key != key(2) {
		t.Errorf("%v, %v, want the new slot alone", held, err)
	}
}

// The largest file is not read where nothing was ever written. Each slot is
// seen once and in order all the same, wherever it was written to.
func TestLargestFile(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "fd00::/64", c)
	used := []int{2, 510, 511, 512, 4100, 30001, 50000, 65535} // one at each end of a chunk too
	for n, i := range used {
		if s := acquire(t, p, n, p.layout.addrs(i)[0]); s.Index != i {
			t.Fatalf("slot %d, want %d", s.Index, i)
		}
	}
	var seen, got []int
	err := p.file.scan(func(i int, r record) {
		if seen = append(seen, i); r.state() == held {
			got = append(got, i)
		}
	})
	if err != nil || !slices.Equal(got, used) {
		t.Errorf("held %v, %v, want %v", got, err, used)
	}
	for i := range MaxSlots {
		if i >= len(seen) || seen[i] != i {
			t.Fatalf("%d slots were seen, %d not in its place, want each of %d once", len(seen), i, MaxSlots)
		}
	}
	if s := acquire(t, p, 99); s.Index != 3 {
		t.Errorf("slot %d, want 3", s.Index)
	}
	for _, i := range []int{300, 20000, 65534} {
		b := []byte{1}
		if _, err := p.file.f.WriteAt(b, offset(i)+300); err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if _, err := p.Usage(t.Context()); !errors.As(err, &corrupt) || corrupt.Offset != offset(i) {
			t.Errorf("error %v, want one at offset %d", err, offset(i))
		}
		if _, err := p.file.f.WriteAt([]byte{0}, offset(i)+300); err != nil {
			t.Fatal(err)
		}
	}
}
