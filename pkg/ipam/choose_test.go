package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
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
