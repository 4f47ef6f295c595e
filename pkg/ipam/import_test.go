package ipam

import (
	"bytes"
	"errors"
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
