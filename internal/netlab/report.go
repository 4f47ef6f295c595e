package netlab

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A Report is what became of a series of pings, in the order of sending.
type Report struct {
	To        netip.Addr
	Echoes    []Echo
	Twice     int   // answers that came again
	SendError error // the last request that the kernel refused, nil if none
}

// Sent is the number of requests.
func (r Report) Sent() int { return len(r.Echoes) }

// Lost is the number of requests without answer.
func (r Report) Lost() int {
	n := 0
	for _, e := range r.Echoes {
		if e.Answered.IsZero() {
			n++
		}
	}
	return n
}

// RTT is the median round trip of the answered requests, 0 if there are none.
func (r Report) RTT() time.Duration {
	var all []time.Duration
	for _, e := range r.Echoes {
		if !e.Answered.IsZero() {
			all = append(all, e.Answered.Sub(e.Sent))
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Silence is the longest time without an answer: between two answers, between
// the first request and the first answer, or between the last answer and the
// last request. It cannot be shorter than the interval of the pings.
func (r Report) Silence() time.Duration {
	if len(r.Echoes) == 0 {
		return 0
	}
	times := []time.Time{r.Echoes[0].Sent}
	for _, e := range r.Echoes {
		if !e.Answered.IsZero() {
			times = append(times, e.Answered)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	longest := r.Echoes[len(r.Echoes)-1].Sent.Sub(times[len(times)-1])
	for i := range times[1:] {
		longest = max(longest, times[i+1].Sub(times[i]))
	}
	return longest
}

// Stall is the longest time between two requests. Where it is far above the
// interval the machine did not let the pinger run, and Silence says little.
func (r Report) Stall() time.Duration {
	var longest time.Duration
	for i := 1; i < len(r.Echoes); i++ {
		longest = max(longest, r.Echoes[i].Sent.Sub(r.Echoes[i-1].Sent))
	}
	return longest
}

// AnsweredAfter is the time from t to the first answer to a request that was
// sent at t or later, and whether there is one.
func (r Report) AnsweredAfter(t time.Time) (time.Duration, bool) {
	var first time.Time
	for _, e := range r.Echoes {
		if e.Answered.IsZero() || e.Sent.Before(t) {
			continue
		}
		if first.IsZero() || e.Answered.Before(first) {
			first = e.Answered
		}
	}
	return first.Sub(t), !first.IsZero()
}

func (r Report) String() string {
	s := fmt.Sprintf("%s: %d sent, %d lost, median %v, longest silence %v, stall %v",
		r.To, r.Sent(), r.Lost(), r.RTT(), r.Silence(), r.Stall())
	if r.SendError != nil {
		s += fmt.Sprintf(", last refusal: %v", r.SendError)
	}
	return s
}
