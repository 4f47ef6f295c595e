package netlab

import (
	"testing"
	"time"
)

// series makes a report of pings sent at 0, 10, 20, … ms that were answered at
// the given milliseconds, -1 for those that were not.
func series(answered ...int) Report {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var r Report
	for i, ms := range answered {
		e := Echo{Sent: t0.Add(time.Duration(i) * 10 * time.Millisecond)}
		if ms >= 0 {
			e.Answered = t0.Add(time.Duration(ms) * time.Millisecond)
		}
		r.Echoes = append(r.Echoes, e)
	}
	return r
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name               string
		report             Report
		lost               int
		rtt, silence       int // ms
		after15            int // ms
		answeredAfter15Too bool
	}{
		{name: "none", report: series()},
		{name: "all", report: series(1, 11, 21, 31), rtt: 1, silence: 10, after15: 6, answeredAfter15Too: true},
		{name: "two lost", report: series(1, -1, -1, 32), lost: 2, rtt: 2, silence: 31, after15: 17, answeredAfter15Too: true},
		{name: "parked", report: series(1, 45, 45, 45), rtt: 25, silence: 44, after15: 30, answeredAfter15Too: true},
		{name: "lost at the start", report: series(-1, -1, 21, 31), lost: 2, rtt: 1, silence: 21, after15: 6, answeredAfter15Too: true},
		{name: "lost at the end", report: series(1, 11, -1, -1), lost: 2, rtt: 1, silence: 19},
		{name: "all lost", report: series(-1, -1, -1), lost: 3, silence: 20},
		{name: "out of order", report: series(1, 29, 24, 31), rtt: 4, silence: 23, after15: 9, answeredAfter15Too: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
			r := c.report
			if r.Lost() != c.lost || r.RTT() != ms(c.rtt) || r.Silence() != ms(c.silence) {
				t.Errorf("%v; want %d lost, median %v, silence %v", r, c.lost, ms(c.rtt), ms(c.silence))
			}
			if len(r.Echoes) == 0 {
				return
			}
			if r.Stall() != ms(10) {
				t.Errorf("stall %v, want 10 ms", r.Stall())
			}
			r.Echoes[len(r.Echoes)-1].Sent = r.Echoes[len(r.Echoes)-1].Sent.Add(ms(50))
			if r.Stall() != ms(60) {
				t.Errorf("last request 50 ms late: stall %v, want 60 ms", r.Stall())
			}
			d, ok := r.AnsweredAfter(r.Echoes[0].Sent.Add(ms(15)))
			if ok != c.answeredAfter15Too || ok && d != ms(c.after15) {
				t.Errorf("answered after 15 ms: %v %t, want %v", d, ok, ms(c.after15))
			}
		})
	}
}
