// Package outage waits for a store that does not serve, and says so in the log.
package outage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Pauses between two attempts: PauseMin first, then twice as long each time, up
// to PauseMax.
const (
	PauseMin = 100 * time.Millisecond
	PauseMax = 5 * time.Second
)

// warnEvery is how often a wait that goes on is reported.
const warnEvery = 30 * time.Second

// A Wait is the error of an attempt that is worth making again: the store did
// not serve it, or lacks something that somebody else is to put there.
type Wait struct {
	State string // what is waited for, as it stands in the log
	Text  string // shorter than Err's; Err's if empty
	Err   error
}

func (w *Wait) Error() string { return w.State + ": " + w.text() }
func (w *Wait) Unwrap() error { return w.Err }

func (w *Wait) text() string {
	if w.Text != "" {
		return w.Text
	}
	return w.Err.Error()
}

// A Reporter says in the log what is waited for: at once, then every 30 s, and
// when it is over. Its methods may be called from several goroutines.
type Reporter struct {
	log *slog.Logger

	mu    sync.Mutex
	state string // empty: all is well
	since time.Time
	due   time.Time // the next warning
}

// NewReporter returns a Reporter to which all is well.
func NewReporter(log *slog.Logger) *Reporter { return &Reporter{log: log} }

// Report is to be called at every failure.
func (r *Reporter) Report(w *Wait) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.state == "" {
		r.since = now
	}
	if r.state == w.State && now.Before(r.due) {
		return
	}
	// On a grid from the beginning: a pause before the attempt that brings the
	// warning does not put off all that follow.
	r.state, r.due = w.State, r.since.Add((now.Sub(r.since)/warnEvery+1)*warnEvery)
	r.log.Warn(w.State, "for", now.Sub(r.since).Round(time.Second), "error", w.text())
}

// Over is to be called at every success, and at every answer that is no use.
func (r *Reporter) Over() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == "" {
		return
	}
	r.log.Info("no longer: "+r.state, "after", time.Since(r.since).Round(time.Second))
	r.state = ""
}

// Retry calls try until it succeeds or fails for good, that is, with anything
// but a *Wait. When ctx ends it returns ctx's error.
func (r *Reporter) Retry(ctx context.Context, try func(context.Context) error) error {
	for n := 0; ; n++ {
		err := try(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var wait *Wait
		if !errors.As(err, &wait) {
			r.Over()
			return err
		}
		r.Report(wait)
		if !Sleep(ctx, Pause(n)) {
			return ctx.Err()
		}
	}
}

// RetryAndTell is Retry for those who read the error and no log: at the end of
// ctx it says also what was waited for.
func (r *Reporter) RetryAndTell(ctx context.Context, try func(context.Context) error) error {
	var last *Wait
	err := r.Retry(ctx, func(ctx context.Context) error {
		err := try(ctx)
		if wait, ok := errors.AsType[*Wait](err); ok {
			last = wait
		}
		return err
	})
	if err != nil && ctx.Err() != nil && last != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// Pause is how long to wait after n failures in a row before this one: a random
// time, so that nodes which lost the store together do not come back together.
func Pause(n int) time.Duration {
	d := min(PauseMin<<min(n, 16), PauseMax)
	return d/2 + rand.N(d/2)
}

// Sleep waits, and says whether ctx did not end meanwhile.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
