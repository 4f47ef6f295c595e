package etcd

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

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// logged makes a Manager whose log, without times, goes to the buffer.
func logged(t *testing.T) (*Manager, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	m, err := New(Options{
		Endpoints: []string{"http://a:1", "http://b:1"},
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, &log
}

func TestRetryWarnsAtOnceAndEvery30s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, log := logged(t)
		began := time.Now()
		tries := 0
		err := m.retry(t.Context(), func(context.Context) error {
			tries++
			if time.Since(began) < 95*time.Second {
				return &waitError{state: stateAway, text: "refused"}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if tries < 20 || tries > 60 {
			t.Errorf("%d tries in 95 s, want some with pauses of up to %s", tries, retryMax)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 5 { // after 0, 30, 60, 90 s, and the end
			t.Fatalf("log:\n%s\nwant four warnings and the end", log)
		}
		for i, line := range lines[:4] {
			if !strings.HasPrefix(line, `level=WARN msg="etcd not reachable" endpoints=http://a:1,http://b:1 for=`) || !strings.HasSuffix(line, "error=refused") {
				t.Errorf("line %d: %s", i, line)
			}
		}
		if !strings.Contains(lines[0], "for=0s") || !strings.Contains(lines[4], `level=INFO msg="etcd serves again"`) {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestRetryEndsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, log := logged(t)
		final := errors.New("no use")
		tries := 0
		err := m.retry(t.Context(), func(context.Context) error {
			if tries++; tries == 3 {
				return fmt.Errorf("third: %w", final)
			}
			return &waitError{state: stateAway, text: "refused"}
		})
		if !errors.Is(err, final) || tries != 3 {
			t.Errorf("%v after %d tries, want %v after 3", err, tries, final)
		}
		if !strings.Contains(log.String(), "serves again") {
			t.Errorf("log:\n%s\nwant the end of the outage", log)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = m.retry(ctx, func(context.Context) error { return &waitError{state: stateAway, text: "refused"} })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the end of ctx: %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// A new kind of trouble is news, but the time counts on.
func TestOutageChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, log := logged(t)
		m.outage.report(&waitError{state: stateAway, text: "refused"})
		time.Sleep(3 * time.Second)
		m.outage.report(&waitError{state: stateAway, text: "refused"})
		m.outage.report(&waitError{state: stateRefused, err: errors.New("permission denied")})
		m.outage.over()
		m.outage.over()
		want := `level=WARN msg="etcd not reachable" endpoints=http://a:1,http://b:1 for=0s error=refused
level=WARN msg="etcd refuses" endpoints=http://a:1,http://b:1 for=3s error="permission denied"
level=INFO msg="etcd serves again" endpoints=http://a:1,http://b:1 after=3s
`
		if log.String() != want {
			t.Errorf("got\n%swant\n%s", log, want)
		}
	})
}

func TestPauseGrowsAndIsCapped(t *testing.T) {
	for n := range 1000 {
		d, most := pause(n), min(retryMin<<min(n, 16), retryMax)
		if d < most/2 || d > most {
			t.Fatalf("pause %d is %s, want %s to %s", n, d, most/2, most)
		}
	}
}

func TestAsWaitError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{context.DeadlineExceeded, "etcd not reachable: no answer within 5s"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "etcd not reachable: no answer within 5s"},
		{status.Error(codes.Unavailable, "connection refused"), "etcd not reachable: connection refused"},
		{rpctypes.ErrNoLeader, "etcd not reachable: etcdserver: no leader"},
		{rpctypes.ErrPermissionDenied, "etcd refuses: etcdserver: permission denied"},
		{rpctypes.ErrNoSpace, "etcd refuses: etcdserver: mvcc: database space exceeded"},
		{errors.New("odd"), "etcd refuses: odd"},
	} {
		w := asWaitError(c.err, callTimeout)
		if w.Error() != c.want {
			t.Errorf("%v: %s, want %s", c.err, w, c.want)
		}
		if !errors.Is(w, c.err) {
			t.Errorf("%v is lost in %v", c.err, w)
		}
	}
}

func TestClosed(t *testing.T) {
	m, _ := logged(t)
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Errorf("close, twice: %v", err)
	}
	if _, err := m.Config(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("config after close: %v, want %v", err, errClosed)
	}
}
