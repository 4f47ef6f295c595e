package ipam

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// imports makes requests for pods 1, 2, … of one address each.
func imports(t *testing.T, text string) (list []Request) {
	for i, a := range addrs(t, text) {
		list = append(list, Request{Key: key(i + 1), Addrs: addrs(t, a.String())})
	}
	return list
}

func TestImportHoldsWhatIsNamed(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", c)
	list := imports(t, "10.244.1.2 10.244.1.3 10.244.1.254")
	for round, want := range []int{3, 0} { // the second time nothing is new
		if n, err := p.Import(t.Context(), list); err != nil || n != want {
			t.Fatalf("round %d: %d, %v, want %d", round, n, err, want)
		}
	}
	slots, err := List(t.Context(), dir)
	if err != nil || len(slots) != 3 {
		t.Fatalf("%v, %v, want three slots", slots, err)
	}
	for i, s := range slots {
		if s.Key != list[i].Key || s.Addrs[0] != list[i].Addrs[0] || !s.Imported || !s.Held {
			t.Errorf("slot %+v, want %v, imported", s, list[i])
		}
	}
	// No address is given twice.
	for n := range freeSlots(t, p) {
		s := acquire(t, p, 10+n)
		if s.Imported || s.Index == 2 || s.Index == 3 || s.Index == 254 {
			t.Fatalf("given: %+v", s)
		}
	}
	if _, err := p.Acquire(t.Context(), Request{Key: key(999)}); !errors.Is(err, ErrExhausted) {
		t.Errorf("after the last: %v, want %v", err, ErrExhausted)
	}
}

// freeSlots is how many slots can be given.
func freeSlots(t *testing.T, p *Pool) int {
	t.Helper()
	u, err := p.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u.Free()
}

func TestImportEndsWithTheRelease(t *testing.T) {
	c := &fakeClock{time.Hour}
	p := newPool(t, t.TempDir(), "10.244.1.0/24", c)
	if _, err := p.Import(t.Context(), imports(t, "10.244.1.9")); err != nil {
		t.Fatal(err)
	}
	release(t, p, 1)
	c.advance(Rest)
	if s := acquire(t, p, 2, addrs(t, "10.244.1.9")...); s.Imported {
		t.Errorf("given anew: %+v, want it without the mark", s)
	}
}

// TestImportOfOnePodWithSeveralSlots: the other plugin chose each family's
// address by itself.
func TestImportOfOnePodWithSeveralSlots(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24 fd00:1::/64", c)
	list := []Request{
		{Key: key(1), Addrs: addrs(t, "10.244.1.5")},
		{Key: key(1), Addrs: addrs(t, "fd00:1::9")},
		{Key: key(2), Addrs: addrs(t, "10.244.1.7 fd00:1::7")},
	}
	if n, err := p.Import(t.Context(), list); err != nil || n != 3 {
		t.Fatalf("%d, %v, want 3", n, err)
	}
	if found, err := ReleaseAll(t.Context(), dir, key(1)); err != nil || !found {
		t.Fatalf("release: %v, %v", found, err)
	}
	slots, err := List(t.Context(), dir)
	if err != nil || len(slots) != 1 || slots[0].Key != key(2) {
		t.Errorf("left: %v, %v, want the other pod's", slots, err)
	}
}

func TestImportIsAllOrNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		list string
		want string
	}{
		{"given to a pod", "10.244.1.7 10.244.1.8", `address "10.244.1.8": of container-2/eth0: its slot was given to container-50/eth0, pod "default/pod-50"`},
		{"one address twice", "10.244.1.7 10.244.1.7", "of container-2/eth0: its slot was given to container-1/eth0"},
		{"held in another file", "10.244.1.7 10.244.1.9", "was given to container-51/eth0"},
		{"gateway", "10.244.1.7 10.244.1.1", "is reserved"},
		{"broadcast", "10.244.1.7 10.244.1.255", "is reserved"},
		{"outside", "10.244.1.7 10.244.2.7", "want one of the first 256 addresses of 10.244.1.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &fakeClock{time.Hour}
			dir := t.TempDir()
			p := newPool(t, dir, "10.244.1.0/24", c)
			acquire(t, p, 50, addrs(t, "10.244.1.8")...)
			acquire(t, newPool(t, dir, "10.244.0.0/23", c), 51, addrs(t, "10.244.1.9")...)
			before := read(t, slotPath(t, dir, "10.244.1.0/24"))
			n, err := p.Import(t.Context(), imports(t, tt.list))
			var bad *RequestError
			if n != 0 || !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d, %v, want an error with %q", n, err, tt.want)
			}
			if after := read(t, slotPath(t, dir, "10.244.1.0/24")); !bytes.Equal(before, after) {
				t.Error("the file has changed")
			}
		})
	}
	p := newPool(t, t.TempDir(), "10.244.1.0/24", &fakeClock{time.Hour})
	for _, req := range []Request{{Key: key(1)}, {Key: Key{"", "eth0"}, Addrs: addrs(t, "10.244.1.7")}} {
		if _, err := p.Import(t.Context(), []Request{req}); err == nil {
			t.Errorf("%+v is imported", req)
		}
	}
}

// TestImportTakesWhatRests: a pod that lives has its address, whoever had it last.
func TestImportTakesWhatRests(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", c)
	acquire(t, p, 50, addrs(t, "10.244.1.8")...)
	release(t, p, 50)
	other := newPool(t, dir, "10.244.0.0/23", c)
	acquire(t, other, 51, addrs(t, "10.244.1.9")...)
	release(t, other, 51)
	if n, err := p.Import(t.Context(), imports(t, "10.244.1.8 10.244.1.9")); err != nil || n != 2 {
		t.Errorf("%d, %v, want both", n, err)
	}
}

func TestRetainSeesTheMark(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24", c)
	acquire(t, p, 50)
	if _, err := p.Import(t.Context(), imports(t, "10.244.1.8")); err != nil {
		t.Fatal(err)
	}
	freed, err := Retain(t.Context(), dir, func(s Slot) bool { return s.Imported })
	if err != nil || len(freed) != 1 || freed[0].Key != key(50) {
		t.Errorf("freed %v, %v, want what was acquired", freed, err)
	}
}

// TestImportOfSharedSlots: two pods cross, so each of two slots is both's. It is
// nobody else's while one of them is there.
func TestImportOfSharedSlots(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24 fd00:1::/64", c)
	list := []Request{
		{Key: key(1), Pod: "a/p", Addrs: addrs(t, "10.244.1.5")}, {Key: key(1), Pod: "a/p", Addrs: addrs(t, "fd00:1::9")},
		{Key: key(2), Pod: "a/q", Addrs: addrs(t, "10.244.1.9")}, {Key: key(2), Pod: "a/q", Addrs: addrs(t, "fd00:1::5")},
	}
	for round, want := range []int{2, 0} {
		if n, err := p.Import(t.Context(), list); err != nil || n != want {
			t.Fatalf("round %d: %d, %v, want %d", round, n, err, want)
		}
	}
	for _, k := range []Key{key(1), key(2)} {
		if found, err := ReleaseAll(t.Context(), dir, k); found || err != nil {
			t.Errorf("release of %s: %t, %v, want nothing freed", k, found, err)
		}
	}
	slots, err := List(t.Context(), dir)
	if err != nil || len(slots) != 2 {
		t.Fatalf("%v, %v, want two slots", slots, err)
	}
	for _, s := range slots {
		if !s.Imported || !s.Key.OwnedBy(key(1)) || !s.Key.OwnedBy(key(2)) || s.Key.OwnedBy(key(3)) || s.Key == key(1) || s.Key == key(2) {
			t.Errorf("slot %+v, want one of both pods", s)
		}
		if !strings.Contains(s.Pod, "a/p") || !strings.Contains(s.Pod, "a/q") {
			t.Errorf("pod %q, want both", s.Pod)
		}
	}
	// One of them alone, as when it is repeated after the other has gone.
	if n, err := p.Import(t.Context(), list[2:]); err != nil || n != 0 {
		t.Errorf("again, of one: %d, %v, want it held", n, err)
	}
}

// TestImportOfASecondOwner: the first was entered by an earlier run.
func TestImportOfASecondOwner(t *testing.T) {
	c := &fakeClock{time.Hour}
	dir := t.TempDir()
	p := newPool(t, dir, "10.244.1.0/24 fd00:1::/64", c)
	for i, a := range []string{"10.244.1.5", "fd00:1::5"} {
		if n, err := p.Import(t.Context(), []Request{{Key: key(i + 1), Addrs: addrs(t, a)}}); err != nil || n != 1-i {
			t.Fatalf("%s: %d, %v, want %d", a, n, err, 1-i)
		}
	}
	slots, err := List(t.Context(), dir)
	if err != nil || len(slots) != 1 || !slots[0].Key.OwnedBy(key(1)) || !slots[0].Key.OwnedBy(key(2)) {
		t.Errorf("%v, %v, want one slot of both", slots, err)
	}
}

// TestCheckImport: it says what Import would, and makes nothing.
func TestCheckImport(t *testing.T) {
	long := Key{strings.Repeat("x", 100), "eth0"}
	for _, tt := range []struct {
		name string
		list []Request
		want string
	}{
		{"free", imports(t, "10.244.1.7 fd00:1::b"), ""},
		{"shared", imports(t, "10.244.1.7 fd00:1::7"), ""},
		{"given to a pod", imports(t, "10.244.1.8"), "was given to container-50/eth0"},
		{"held in another file", imports(t, "10.244.1.9"), "was given to container-51/eth0"},
		{"beyond", imports(t, "fd00:1::1:5"), "want one of the first 256 addresses"},
		{"one address twice", imports(t, "10.244.1.7 10.244.1.7"), "was given to container-1/eth0"},
		{"ids too long together", []Request{{Key: long, Addrs: addrs(t, "10.244.1.7")}, {Key: Key{long.Container, "eth1"}, Addrs: addrs(t, "fd00:1::7")}}, "longer than 180 bytes together"},
		{"id with a slash", []Request{{Key: Key{"a/b", "eth0"}, Addrs: addrs(t, "10.244.1.7")}}, "without slash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &fakeClock{time.Hour}
			dir := t.TempDir()
			p := newPool(t, dir, "10.244.1.0/24 fd00:1::/64", c)
			acquire(t, newPool(t, dir, "10.244.0.0/23", c), 51, addrs(t, "10.244.1.9")...)
			for _, there := range []bool{false, true} {
				if there {
					acquire(t, p, 50, addrs(t, "10.244.1.8")...)
				} else if tt.name == "given to a pod" {
					continue
				}
				err := p.CheckImport(t.Context(), tt.list)
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("check: %v, want %q", err, tt.want)
				}
				if slots, err := List(t.Context(), dir); err != nil || len(slots) > 2 {
					t.Errorf("the check has entered %v, %v", slots, err)
				}
				if _, err := os.Stat(slotPath(t, dir, "10.244.1.0/24")); (err == nil) != there {
					t.Errorf("slot file: %v, want it there: %t", err, there)
				}
			}
			if _, err := p.Import(t.Context(), tt.list); (err == nil) != (tt.want == "") {
				t.Errorf("import: %v, want as the check: %q", err, tt.want)
			}
		})
	}
}

func TestSlotOf(t *testing.T) {
	p := newPool(t, t.TempDir(), "10.244.1.0/24 fd00:1::/64", &fakeClock{time.Hour})
	for text, want := range map[string]bool{
		"10.244.1.1": false, "10.244.1.2": true, "10.244.1.255": false, "10.244.2.2": false,
		"fd00:1::1": false, "fd00:1::2": true, "fd00:1::fe": true, "fd00:1::ff": false, "fd00:1::1:5": false,
	} {
		if _, got := p.SlotOf(addrs(t, text)[0]); got != want {
			t.Errorf("%s: %t, want %t", text, got, want)
		}
	}
}
