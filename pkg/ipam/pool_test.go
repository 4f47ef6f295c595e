package ipam

import (
	"context"
	"errors"
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

// After a reboot that the file survived, the clock is behind it.
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
// The node's lease of one family moved and the other's not, or its length
// changed: an address that a pod has by the old file is not given by the new.
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
	// What a disk's file system has cached by now it takes for written to.
	for _, i := range []int{1000, 20000, 51000} {
		if err := unix.Fallocate(int(p.file.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset(i), 3000*recordSize); err != nil {
			t.Fatal(err)
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
