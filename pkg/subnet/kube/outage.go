package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// warnEvery is how often a wait that goes on is reported.
	warnEvery = 30 * time.Second

	// Between two attempts a wait pauses for retryMin, then twice as long each
	// time, up to retryMax.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// What is waited for, as it stands in the log.
const (
	stateAway       = "Kubernetes API not reachable"
	stateRefused    = "Kubernetes API refuses"
	stateNoConfig   = "no network configuration"
	stateNoNode     = "Node not registered"
	stateUnassigned = "Node has no podCIDRs"
)

// A waitError is an attempt that is worth trying again.
type waitError struct {
	state string
	err   error
}

func (e *waitError) Error() string { return e.state + ": " + e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

// served makes a waitError of an error that says nothing of the request but
// that it was not served. What the caller must know of passes as it is: that
// something is not there, that a revision is too old or unknown, or that the
// server does not understand.
func served(err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &status):
		return &waitError{stateAway, err}
	case apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge):
		return err
	}
	switch code := status.Status().Code; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusTooManyRequests, code >= 500:
		return &waitError{stateRefused, err}
	}
	return err
}

// retry calls try until it succeeds or fails for good, that is, with anything
// but a *waitError. When ctx ends it returns ctx's error.
func (o *outage) retry(ctx context.Context, try func(context.Context) error) error {
	for n := 0; ; n++ {
		err := try(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var wait *waitError
		if !errors.As(err, &wait) {
			o.over()
			return err
		}
		o.report(wait)
		if !sleep(ctx, pause(n)) {
			return ctx.Err()
		}
	}
}

// pause is how long to wait after n failures in a row before this one: a random
// time, so that nodes which lost the server together do not come back together.
func pause(n int) time.Duration {
	d := min(retryMin<<min(n, 16), retryMax)
	return d/2 + rand.N(d/2)
}

// sleep waits, and says whether ctx did not end meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// An outage reports what is waited for: at once, and then every warnEvery.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex
	state string // empty: all is well
	since time.Time
	due   time.Time // the next warning
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
	o.log.Warn(w.state, "for", now.Sub(o.since).Round(time.Second), "error", w.err)
}

// over is to be called at every success.
func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state == "" {
		return
	}
	o.log.Info("no longer: "+o.state, "after", time.Since(o.since).Round(time.Second))
	o.state = ""
}

// named says which Node an error is about.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key(name), err)
}
