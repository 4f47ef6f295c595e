package ipam

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// twoFiles is a node whose lease moved: pods 1 and 2 in the old subnet, 2 and
// 3 in the new.
func twoFiles(t *testing.T, dir string, c *fakeClock) (oldPool, moved *Pool) {
	t.Helper()
	oldPool, moved = newPool(t, dir, "10.244.1.0/24", c), newPool(t, dir, "10.244.2.0/24", c)
	acquire(t, oldPool, 1)
	acquire(t, oldPool, 2)
	acquire(t, moved, 2)
	acquire(t, moved, 3)
	return oldPool, moved
}

// holders lists who holds what, as "file-number slot key".
func holders(t *testing.T, d folder) string {
	t.Helper()
	all, err := d.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range all {
		lines = append(lines, filepath.Base(e.File)+" "+e.Key.Container)
	}
	return strings.Join(lines, "\n")
}

func TestFoldersThatHoldNothing(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		if all, err := List(t.Context(), dir); len(all) != 0 || err != nil {
			t.Errorf("List: %v, %v", all, err)
		}
		if found, err := ReleaseAll(t.Context(), dir, key(1)); found || err != nil {
			t.Errorf("ReleaseAll: %v, %v", found, err)
		}
		if freed, err := Retain(t.Context(), dir, func(Slot) bool { return false }); len(freed) != 0 || err != nil {
			t.Errorf("Retain: %v, %v", freed, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	if _, err := List(t.Context(), file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("List of a file: %v, want an error that names it", err)
	}
}

func TestListAndReleaseAll(t *testing.T) {
	c := &fakeClock{time.Hour}
	d := folder{t.TempDir(), c.now}
	twoFiles(t, d.dir, c)
	write(t, filepath.Join(d.dir, "node.json"), []byte("{}"))
	write(t, filepath.Join(d.dir, "slots-10.244.3.0-24.bak"), []byte("not ours"))
	c.advance(time.Minute)
	all, err := d.list(t.Context())
	if err != nil || len(all) != 4 {
		t.Fatalf("%d slots, %v, want 4", len(all), err)
	}
	e := all[2]
	if got := text(e.Slot); got != "2 container-2/eth0 default/pod-2 [10.244.2.2]" || e.Age != time.Minute || !e.Held ||
		e.File != slotPath(t, d.dir, "10.244.2.0/24") {
		t.Errorf("third entry %s %s %s", got, e.Age, e.File)
	}
	for _, want := range []bool{true, false} {
		if found, err := d.releaseAll(t.Context(), key(2)); found != want || err != nil {
			t.Errorf("ReleaseAll: %v, %v, want %v", found, err, want)
		}
	}
	if got, want := holders(t, d), "slots-10.244.1.0-24 container-1\nslots-10.244.2.0-24 container-3"; got != want {
		t.Errorf("held:\n%s\nwant\n%s", got, want)
	}
}

func TestRetain(t *testing.T) {
	c := &fakeClock{time.Hour}
	d := folder{t.TempDir(), c.now}
	oldPool, current := twoFiles(t, d.dir, c)
	c.advance(time.Minute)
	var ages []time.Duration
	freed, err := d.retain(t.Context(), func(s Slot) bool {
		ages = append(ages, s.Age)
		return s.Key == key(3)
	}, current.layout.subnets[:1])
	if err != nil || len(freed) != 3 || !freed[0].Held || freed[0].Key != key(1) || len(ages) != 4 || ages[0] != time.Minute {
		t.Errorf("freed %+v, %v, asked for ages %v", freed, err, ages)
	}
	if got, want := holders(t, d), "slots-10.244.2.0-24 container-3"; got != want {
		t.Errorf("held:\n%s\nwant\n%s", got, want)
	}
	if u, err := oldPool.Usage(t.Context()); err != nil || u.Resting != 2 {
		t.Errorf("usage %+v, %v, want what was freed to rest", u, err)
	}
}

func TestRetainRemovesOldFiles(t *testing.T) {
	c := &fakeClock{time.Hour}
	d := folder{t.TempDir(), c.now}
	oldPool, current := twoFiles(t, d.dir, c)
	both := "slots-10.244.1.0-24 slots-10.244.2.0-24"
	none := func(Slot) bool { return false }
	every := func(Slot) bool { return true }
	subnets := current.layout.subnets[:1]
	for _, step := range []struct {
		name   string
		keep   func(Slot) bool
		wait   time.Duration
		known  bool
		remain string
	}{
		{"held", every, 0, true, both},
		{"resting", none, 0, true, both},
		{"nearly rested", none, Rest - 1, true, both},
		{"rested, current unknown", none, 1, false, both},
		{"rested", none, 0, true, "slots-10.244.2.0-24"},
		{"again", none, 0, true, "slots-10.244.2.0-24"},
	} {
		c.advance(step.wait)
		now := subnets
		if !step.known {
			now = nil
		}
		if _, err := d.retain(t.Context(), step.keep, now); err != nil {
			t.Fatal(err)
		}
		if got := fileNames(t, d.dir); got != step.remain {
			t.Fatalf("%s: folder has %s, want %s", step.name, got, step.remain)
		}
	}
	// A process that has the removed file open goes on in a new one.
	if s := acquire(t, oldPool, 9); s.Index != 2 {
		t.Errorf("slot %d, want 2", s.Index)
	}
	if got, want := holders(t, d), "slots-10.244.1.0-24 container-9"; got != want {
		t.Errorf("held:\n%s\nwant\n%s", got, want)
	}
}

// The exported functions look at the kernel's clock.
func TestBootTime(t *testing.T) {
	dir := t.TempDir()
	p, err := Open(dir, prefixes(t, "fd00::/120"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	start := bootTime()
	acquire(t, p, 1)
	all, err := List(t.Context(), dir)
	if most := bootTime() - start; err != nil || len(all) != 1 || all[0].Age <= 0 || all[0].Age > most {
		t.Fatalf("List: %+v, %v, want one slot between 0 and %s old", all, err, most)
	}
	if freed, err := Retain(t.Context(), dir, func(Slot) bool { return false }); err != nil || len(freed) != 1 {
		t.Errorf("Retain: %v, %v", freed, err)
	}
	u, err := p.Usage(t.Context())
	if err != nil || u.Resting != 1 || u.Next <= Rest-time.Minute || u.Next > Rest {
		t.Errorf("usage %+v, %v, want a slot that rests for nearly %s", u, err, Rest)
	}
	if found, err := ReleaseAll(t.Context(), dir, key(1)); found || err != nil {
		t.Errorf("ReleaseAll: %v, %v", found, err)
	}
}
