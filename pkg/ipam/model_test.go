package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A model is a slot file as one would write it without a file.
type model struct {
	l     layout
	slots []modelSlot
}

type modelSlot struct {
	key      Key // zero: free
	released time.Duration
	acquired time.Duration
}

func (m *model) find(k Key) int {
	return slices.IndexFunc(m.slots, func(s modelSlot) bool { return s.key == k })
}

func (s modelSlot) rests(now time.Duration) bool {
	return s.key == Key{} && s.released != 0 && now-s.released < Rest
}

// choose is what Acquire must choose; noSlot: nothing is free.
func (m *model) choose(now time.Duration) int {
	best := noSlot
	for i := firstSlot; i < m.l.end(); i++ {
		s := m.slots[i]
		if s.key == (Key{}) && !s.rests(now) && (best == noSlot || s.released < m.slots[best].released) {
			best = i
		}
	}
	return best
}

func (m *model) usage(now time.Duration) Usage {
	u := Usage{Total: m.l.end() - firstSlot}
	for _, s := range m.slots {
		switch {
		case s.key != Key{}:
			u.Held++
		case s.rests(now):
			rest := s.released + Rest - now
			if u.Resting++; u.Resting == 1 || rest < u.Next {
				u.Next = rest
			}
		}
	}
	return u
}

// text writes what is held.
func (m *model) text(now time.Duration) string {
	var lines []string
	for i, s := range m.slots {
		if s.key != (Key{}) {
			lines = append(lines, fmt.Sprintf("%d %s %s", i, s.key, now-s.acquired))
		}
	}
	return strings.Join(lines, "\n")
}

// A run is one sequence of random operations on a pool and on the model.
type run struct {
	*testing.T
	rand  *rand.Rand
	clock *fakeClock
	dir   string
	pool  *Pool
	model model
	last  []Slot // answers of Acquire, to cancel one
}

// TestRandomOperations compares pool and model after each of many operations.
func TestRandomOperations(t *testing.T) {
	for seed := range uint64(20) {
		subnets := []string{"10.244.1.0/28", "10.244.1.0/28 fd00::/64", "fd00::/124"}[seed%3]
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &run{T: t, rand: rand.New(rand.NewPCG(seed, 1)), clock: &fakeClock{time.Hour}, dir: t.TempDir()}
			r.reopen(subnets)
			r.model = model{l: r.pool.layout, slots: make([]modelSlot, r.pool.layout.count)}
			for range 400 {
				r.step(subnets)
				r.compare()
				if t.Failed() {
					return
				}
			}
		})
	}
}

func (r *run) reopen(subnets string) {
	if r.pool != nil {
		_ = r.pool.Close()
	}
	r.pool = newPool(r, r.dir, subnets, r.clock)
}

// step does one operation; keys are few, so that most hold something.
func (r *run) step(subnets string) {
	k := key(r.rand.IntN(20))
	switch n := r.rand.IntN(100); {
	case n < 40:
		r.acquire(Request{Key: k})
	case n < 50:
		r.acquire(Request{Key: k, Addrs: r.addresses()})
	case n < 70:
		r.release(k)
	case n < 80 && len(r.last) > 0:
		r.cancel(r.last[r.rand.IntN(len(r.last))])
	case n < 83:
		r.retain()
	case n < 87:
		r.reopen(subnets)
	default:
		r.clock.advance(time.Duration(r.rand.Int64N(int64(Rest / 2))))
	}
	r.clock.advance(1) // no two releases at one time, except those of one Retain
}

// addresses returns one or two addresses of one slot, reserved ones included.
func (r *run) addresses() []netip.Addr {
	l := r.pool.layout
	a := l.addrs(r.rand.IntN(l.count))
	return a[:1+r.rand.IntN(l.families())]
}

func (r *run) acquire(req Request) {
	now := r.clock.now()
	s, err := r.pool.Acquire(r.Context(), req)
	want, refused := r.model.choose(now), false
	if len(req.Addrs) > 0 {
		want, _ = r.model.l.index(req.Addrs[0])
		refused = want < firstSlot || want >= r.model.l.end()
	}
	// What the key holds comes before everything but an address never given.
	if at := r.model.find(req.Key); at >= 0 && !refused {
		refused, want = len(req.Addrs) > 0 && want != at, at
	} else if want != noSlot && r.model.slots[want].key != (Key{}) {
		refused = true
	}
	switch {
	case refused:
		if _, bad := errors.AsType[*RequestError](err); !bad {
			r.Errorf("Acquire(%v): %+v, %v, want a request error", req, s, err)
		}
		return
	case want == noSlot:
		var full *ExhaustedError
		if !errors.As(err, &full) || full.Usage != r.model.usage(now) {
			r.Errorf("Acquire(%v): %+v, %v, want exhausted %+v", req, s, err, r.model.usage(now))
		}
		return
	case err != nil || s.Index != want:
		r.Errorf("Acquire(%v): %+v, %v, want slot %d", req, s, err, want)
		return
	}
	if m := &r.model.slots[want]; m.key == (Key{}) {
		m.key, m.acquired = req.Key, now
	}
	r.last = append(r.last, s)
}

func (r *run) release(k Key) {
	at := r.model.find(k)
	do := r.pool.Release
	if r.rand.IntN(2) == 0 {
		do = folder{r.dir, r.clock.now}.releaseAll
	}
	ok, err := do(r.Context(), k)
	if err != nil || ok != (at >= 0) {
		r.Errorf("Release(%v): %v, %v, want %v", k, ok, err, at >= 0)
	}
	if at >= 0 {
		r.model.slots[at].key, r.model.slots[at].released = Key{}, r.clock.now()
	}
}

func (r *run) cancel(s Slot) {
	if err := r.pool.Cancel(r.Context(), s); err != nil {
		r.Errorf("Cancel(%+v): %v", s, err)
	}
	m := &r.model.slots[s.Index]
	if m.key != s.Key || m.acquired != s.acquired {
		return
	}
	if m.key = (Key{}); !s.fresh {
		m.released = r.clock.now()
	}
}

func (r *run) retain() {
	odd := func(s Slot) bool { return s.Index%2 == 1 }
	freed, err := folder{r.dir, r.clock.now}.retain(r.Context(), odd, r.pool.layout.subnets[:1])
	if err != nil {
		r.Errorf("Retain: %v", err)
	}
	for _, s := range freed {
		m := &r.model.slots[s.Index]
		if m.key != s.Key || odd(s) {
			r.Errorf("Retain freed slot %d of %v, held by %v", s.Index, s.Key, m.key)
		}
		m.key, m.released = Key{}, r.clock.now()
	}
}

// compare looks at everything that can be seen.
func (r *run) compare() {
	now := r.clock.now()
	if u, err := r.pool.Usage(r.Context()); err != nil || u != r.model.usage(now) {
		r.Errorf("usage %+v, %v, want %+v", u, err, r.model.usage(now))
	}
	all, err := folder{r.dir, r.clock.now}.list(r.Context())
	var lines []string
	for _, e := range all {
		lines = append(lines, fmt.Sprintf("%d %s %s", e.Index, e.Key, e.Age))
		if want := r.model.l.addrs(e.Index); !slices.Equal(e.Addrs, want[:r.model.l.families()]) {
			r.Errorf("slot %d has %v, want %v", e.Index, e.Addrs, want)
		}
	}
	if got, want := strings.Join(lines, "\n"), r.model.text(now); err != nil || got != want {
		r.Errorf("held (%v):\n%s\nwant\n%s", err, got, want)
	}
}
