package etcd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
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

// TestOutagesNameTheEndpoints: of several networks in one log, which etcd it is.
func TestOutagesNameTheEndpoints(t *testing.T) {
	m, log := logged(t)
	m.outage.Report(&outage.Wait{State: stateAway, Text: "refused"})
	m.outage.Over()
	want := `level=WARN msg="etcd not reachable" endpoints=http://a:1,http://b:1 for=0s error=refused
level=INFO msg="no longer: etcd not reachable" endpoints=http://a:1,http://b:1 after=0s
`
	if log.String() != want {
		t.Errorf("got\n%swant\n%s", log, want)
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
