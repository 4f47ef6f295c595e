package node

import "time"

// A task is something that the loop does at a time rather than on an event.
type task int

const (
	audit  task = iota // compare everything although nothing was heard
	retry              // try refused changes again
	repair             // undo others' changes
	expire             // a peer's grace time is over
	follow             // look at the underlay
	tasks              // how many there are
)

// A schedule says when each task is due; the zero time is never. One timer on
// the earliest serves all, so an idle node sleeps until there is something to do.
type schedule [tasks]time.Time

func (s *schedule) set(t task, at time.Time) { s[t] = at }
func (s *schedule) clear(t task)             { s[t] = time.Time{} }

// setEarlier sets t unless it is due before at already.
func (s *schedule) setEarlier(t task, at time.Time) {
	if s[t].IsZero() || at.Before(s[t]) {
		s[t] = at
	}
}

// take reports whether t is due, and if so takes it off.
func (s *schedule) take(t task, now time.Time) bool {
	if s[t].IsZero() || s[t].After(now) {
		return false
	}
	s[t] = time.Time{}
	return true
}

// earliest returns when the next task is due; some task always is set.
func (s *schedule) earliest() time.Time {
	var first time.Time
	for _, at := range s {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}
