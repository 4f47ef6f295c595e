package etcd

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

const (
	// warnEvery is how often a wait that goes on is reported.
	warnEvery = 30 * time.Second

	// Between two attempts a wait pauses for retryMin, then twice as long each
	// time, up to retryMax.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// What etcd is waited for, as it stands in the log.
const (
	stateAway    = "etcd not reachable"
	stateRefused = "etcd refuses"
	stateEmpty   = "etcd holds no network configuration"
)

// A waitError is a request that was not served, and that is worth trying again.
type waitError struct {
	state string
	text  string // shorter than err's, if not empty
	err   error
}

func (e *waitError) Error() string {
	if e.text != "" {
		return e.state + ": " + e.text
	}
	return e.state + ": " + e.err.Error()
}

func (e *waitError) Unwrap() error { return e.err }

// retry calls try until it succeeds or fails for good, that is, with anything
// but a *waitError. When ctx ends it returns ctx's error.
func (m *Manager) retry(ctx context.Context, try func(context.Context) error) error {
	for n := 0; ; n++ {
		err := try(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var wait *waitError
		if !errors.As(err, &wait) {
			// Success, or etcd has answered and the answer is no use.
			m.outage.over()
			return err
		}
		m.outage.report(wait)
		if !sleep(ctx, pause(n)) {
			return ctx.Err()
		}
	}
}

// pause is how long to wait after n failures in a row before this one: a random
// time, so that nodes which lost etcd together do not come back together.
func pause(n int) time.Duration {
	d := min(retryMin<<min(n, 16), retryMax)
	return d/2 + rand.N(d/2)
}

// An outage reports what is waited for: at once, and then every warnEvery.
type outage struct {
	log       *slog.Logger
	endpoints string

	mu    sync.Mutex
	state string // empty: all is well
	since time.Time
	due   time.Time // the next warning
}

func newOutage(log *slog.Logger, endpoints []string) *outage {
	return &outage{log: log, endpoints: strings.Join(endpoints, ",")}
}

// report is to be called at every failure.
func (o *outage) report(w *waitError) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.state == "" {
		o.since = now
	}
	if o.state == w.state && now.Before(o.due) {
		return
	}
	// On a grid from the beginning: a pause before the attempt that brings the
	// warning does not put off all that follow.
	o.state, o.due = w.state, o.since.Add((now.Sub(o.since)/warnEvery+1)*warnEvery)
	cause := w.text
	if cause == "" {
		cause = w.err.Error()
	}
	o.log.Warn(w.state, "endpoints", o.endpoints, "for", now.Sub(o.since).Round(time.Second), "error", cause)
}

// over is to be called at every success.
func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state == "" {
		return
	}
	o.log.Info("etcd serves again", "endpoints", o.endpoints, "after", time.Since(o.since).Round(time.Second))
	o.state = ""
}
