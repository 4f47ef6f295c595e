package ipam

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// noSlot is the index of no slot.
const noSlot = -1

// wanted checks a request and returns the slot of its addresses, or noSlot if
// it names none.
func (l layout) wanted(req Request) (int, error) {
	for _, f := range []struct {
		field, value string
		max          int
	}{
		{"container id", req.Key.Container, maxContainer},
		{"interface name", req.Key.IfName, maxIfName},
	} {
		if n := len(f.value); n == 0 || n > f.max {
			return noSlot, &RequestError{f.field, f.value, fmt.Sprintf("has %d bytes, want 1 to %d", n, f.max)}
		}
	}
	if m := req.MAC; m != nil && (len(m) != 6 || m[0]&1 != 0 || [6]byte(m) == [6]byte{}) {
		return noSlot, &RequestError{"MAC", m.String(), "want a unicast Ethernet address"}
	}
	want := noSlot
	for k, a := range req.Addrs {
		i, ok := l.index(a)
		reason := ""
		switch {
		case !ok:
			reason = fmt.Sprintf("want one of the first %d addresses of %s", l.count, l.text())
		case i < firstSlot || i >= l.end():
			reason = "is reserved: network, gateway or broadcast"
		case want != noSlot && i != want:
			reason = fmt.Sprintf("and %s are not of one slot, want addresses equally far from the start of %s",
				req.Addrs[0], l.text())
		case slices.Contains(req.Addrs[:k], a):
			reason = "is asked for twice"
		}
		if reason != "" {
			return noSlot, &RequestError{"address", a.String(), reason}
		}
		want = i
	}
	return want, nil
}

// text writes the subnets for people.
func (l layout) text() string {
	if l.families() == 2 {
		return fmt.Sprintf("%s or %s", l.subnets[0], l.subnets[1])
	}
	return l.subnets[0].String()
}

// covers returns an error if s, which is held already, is not what is asked for.
func (s Slot) covers(req Request) error {
	for _, a := range req.Addrs {
		if !slices.Contains(s.Addrs, a) {
			return &RequestError{"address", a.String(), fmt.Sprintf("%s holds %v already", s.Key, s.Addrs)}
		}
	}
	switch {
	case !bytes.Equal(s.MAC, req.MAC):
		return &RequestError{"MAC", req.MAC.String(), fmt.Sprintf("%s holds %v already, for MAC %q", s.Key, s.Addrs, s.MAC)}
	case s.Filtered != req.Filtered:
		return &RequestError{"source filter", strconv.FormatBool(req.Filtered), fmt.Sprintf("%s holds %v already, with %t", s.Key, s.Addrs, s.Filtered)}
	}
	return nil
}

// A candidate is a slot that could be given.
type candidate struct {
	index    int
	released time.Duration // since boot; 0: never used
}

// A survey is what Acquire sees in the file.
type survey struct {
	usage Usage
	mine  entry     // the slot that the key holds; unused if none
	want  entry     // the slot that was asked for; index noSlot if none
	best  candidate // of those that can be given, the one to give; index noSlot if none
	taken int       // slots that only the folder's other files keep from being given
}

// survey looks at all slots. Those in others are not to be had.
func (l layout) survey(f *slotFile, now time.Duration, key Key, want int, others map[int]entry) (survey, error) {
	v := survey{want: entry{index: want}, best: candidate{index: noSlot}}
	v.usage.Total = l.end() - firstSlot
	err := f.scan(func(i int, r record) {
		if r.holds(key) {
			v.mine = r.entry()
		}
		if i == want {
			v.want = r.entry()
			v.want.index = i // an unused record does not say it
		}
		if i >= firstSlot && i < l.end() {
			v.count(candidate{i, r.released()}, r.state(), restLeft(r, now), others)
		}
	})
	return v, err
}

// count adds a slot, which comes after those of lower index.
func (v *survey) count(c candidate, state byte, rest time.Duration, others map[int]entry) {
	switch {
	case state == held:
		v.usage.Held++
	case rest > 0:
		if v.usage.Resting++; v.usage.Resting == 1 || rest < v.usage.Next {
			v.usage.Next = rest
		}
	default:
		if _, ok := others[c.index]; ok {
			v.taken++
		} else if v.best.index == noSlot || c.released < v.best.released {
			v.best = c
		}
	}
}

// restLeft returns how long a slot still rests; 0 if it does not. A time of
// release in the future is from before a reboot that the file survived.
func restLeft(r record, now time.Duration) time.Duration {
	if r.state() != free || r.released() > now {
		return 0
	}
	return max(0, r.released()+Rest-now)
}

// choose returns the slot to give.
func (v survey) choose(l layout, others map[int]entry) (candidate, error) {
	switch {
	case v.want.index != noSlot:
		return v.chooseWanted(l, others)
	case v.best.index == noSlot:
		v.usage.Held += v.taken
		return candidate{}, &ExhaustedError{l.subnets[0], v.usage}
	}
	return v.best, nil
}

// chooseWanted returns the slot that was asked for, also if it rests: whoever
// names an address means the pod that had it.
func (v survey) chooseWanted(l layout, others map[int]entry) (candidate, error) {
	by, taken := others[v.want.index]
	if v.want.state == held {
		by, taken = v.want, true
	}
	if taken {
		a := l.addrs(v.want.index)[0]
		return candidate{}, &RequestError{"address", a.String(), fmt.Sprintf("its slot was given to %s, pod %q", by.key, by.pod)}
	}
	return candidate{v.want.index, v.want.released}, nil
}

// others returns what slots of the folder's other files, held or resting, have
// an address of ours, by the slot of ours that it is: the node's lease of one
// family may have moved, or changed its length, and the other's not.
//
// The files are looked at one after the other and before our own, never two
// locks at a time. So it does not see what an ADD acquires this very moment by
// a lease that has just been replaced.
func (p *Pool) others(ctx context.Context) (map[int]entry, error) {
	var taken map[int]entry
	err := folder{p.dir, p.now}.each(ctx, func(f *slotFile) error {
		now := p.now()
		return f.scan(func(_ int, r record) {
			if r.state() != held && restLeft(r, now) == 0 {
				return
			}
			for k := range 2 {
				if i, ok := p.layout.index(r.addr(k)); ok {
					if taken == nil {
						taken = map[int]entry{}
					}
					taken[i] = r.entry()
				}
			}
		})
	}, fileName(p.layout.subnets[0]))
	return taken, err
}
