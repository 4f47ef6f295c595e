package outage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// logged makes a Reporter whose log, without times, goes to the buffer.
func logged() (*Reporter, *bytes.Buffer) {
	var log bytes.Buffer
	return NewReporter(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))), &log
}

func away() *Wait {
	return &Wait{State: "store not reachable", Text: "refused", Err: errors.New("dial: refused")}
}

func TestRetryWarnsAtOnceAndEvery30s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := logged()
		began := time.Now()
		tries := 0
		err := r.Retry(t.Context(), func(context.Context) error {
			tries++
			if time.Since(began) < 95*time.Second {
				return fmt.Errorf("read: %w", away())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if tries < 20 || tries > 60 {
			t.Errorf("%d tries in 95 s, want some with pauses of up to %s", tries, PauseMax)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 5 { // after 0, 30, 60, 90 s, and the end
			t.Fatalf("log:\n%s\nwant four warnings and the end", log)
		}
		for i, line := range lines[:4] {
			if !strings.HasPrefix(line, `level=WARN msg="store not reachable" for=`) || !strings.HasSuffix(line, "error=refused") {
				t.Errorf("line %d: %s", i, line)
			}
		}
		if !strings.Contains(lines[0], "for=0s") || !strings.Contains(lines[4], `level=INFO msg="no longer: store not reachable"`) {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestRetryEndsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := logged()
		final := errors.New("no use")
		tries := 0
		err := r.Retry(t.Context(), func(context.Context) error {
			if tries++; tries == 3 {
				return fmt.Errorf("third: %w", final)
			}
			return away()
		})
		if !errors.Is(err, final) || tries != 3 {
			t.Errorf("%v after %d tries, want %v after 3", err, tries, final)
		}
		if !strings.Contains(log.String(), "no longer") {
			t.Errorf("log:\n%s\nwant the end of the outage", log)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = r.Retry(ctx, func(context.Context) error { return away() })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the end of ctx: %v, want %v", err, context.DeadlineExceeded)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = r.RetryAndTell(ctx, func(context.Context) error { return away() })
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "store not reachable: refused") {
			t.Errorf("at the end of ctx: %v, want %v and for what", err, context.DeadlineExceeded)
		}
		if err := r.RetryAndTell(t.Context(), func(context.Context) error { return final }); !errors.Is(err, final) {
			t.Errorf("%v, want %v", err, final)
		}
	})
}

// A new kind of trouble is news, but the time counts on.
func TestTroubleChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := logged()
		r.Report(away())
		time.Sleep(3 * time.Second)
		r.Report(away())
		r.Report(&Wait{State: "store refuses", Err: errors.New("permission denied")})
		r.Over()
		r.Over()
		want := `level=WARN msg="store not reachable" for=0s error=refused
level=WARN msg="store refuses" for=3s error="permission denied"
level=INFO msg="no longer: store refuses" after=3s
`
		if log.String() != want {
			t.Errorf("got\n%swant\n%s", log, want)
		}
	})
}

func TestPauseGrowsAndIsCapped(t *testing.T) {
	for n := range 1000 {
		d, most := Pause(n), min(PauseMin<<min(n, 16), PauseMax)
		if d < most/2 || d > most {
			t.Fatalf("pause %d is %s, want %s to %s", n, d, most/2, most)
		}
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if !Sleep(t.Context(), time.Hour) {
			t.Error("a whole sleep counts as broken off")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if Sleep(ctx, time.Hour) || time.Since(began) != time.Second {
			t.Errorf("slept for %s, want it to end after 1s, and to say so", time.Since(began))
		}
	})
}

func TestWaitSaysWhatItIs(t *testing.T) {
	cause := errors.New("dial: refused")
	for w, want := range map[*Wait]string{
		{State: "away", Err: cause}:                "away: dial: refused",
		{State: "away", Text: "short", Err: cause}: "away: short",
	} {
		if w.Error() != want || !errors.Is(w, cause) {
			t.Errorf("%q, want %q and the cause in it", w, want)
		}
	}
}
