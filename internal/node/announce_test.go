package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// announcer refuses some times.
type announcer struct {
	refuse int
	calls  []bool
	last   time.Time
}

func (a *announcer) Announce(_ context.Context, ready bool) error {
	a.calls, a.last = append(a.calls, ready), time.Now()
	if len(a.calls) <= a.refuse {
		return errors.New("refused")
	}
	return nil
}

func TestReadinessIsToldUntilItIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{log: slog.New(slog.DiscardHandler), up: make(chan struct{})}
		a := &announcer{refuse: 10}
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- n.tell(t.Context(), a) }()
		time.Sleep(time.Hour)
		if len(a.calls) > 0 {
			t.Fatal("announced before the node is ready")
		}
		n.announce()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, ready := range a.calls {
			if !ready {
				t.Error("announced as not ready")
			}
		}
		// 0.5+1+2+4+8+16+30+30+30+30 s
		if took := a.last.Sub(began) - time.Hour; len(a.calls) != 11 || took != 151500*time.Millisecond {
			t.Errorf("%d attempts in %s, want 11 in 2m31.5s", len(a.calls), took)
		}
	})
}

func TestEndOfTheDaemonIsNotTold(t *testing.T) {
	for name, refuse := range map[string]int{"before it is ready": 0, "while it is refused": 1000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &node{log: slog.New(slog.DiscardHandler), up: make(chan struct{})}
				a := &announcer{refuse: refuse}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- n.tell(ctx, a) }()
				if refuse > 0 {
					n.announce()
				}
				synctest.Wait()
				cancel()
				if err := <-done; err != nil || (refuse == 0) != (len(a.calls) == 0) {
					t.Errorf("%v after %d attempts", err, len(a.calls))
				}
			})
		})
	}
}
