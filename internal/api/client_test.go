package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve answers requests at a Unix socket until the test ends, and returns the
// socket's path.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	return path
}

// answering is a handler that encodes value at path and knows nothing else.
func answering(t *testing.T, path string, value any) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(value); err != nil {
			t.Error(err)
		}
	})
	return mux
}

// check asks for want at path by ask.
func check[T any](t *testing.T, path string, want T, ask func(*Client, context.Context) (T, error)) {
	t.Run(path, func(t *testing.T) {
		got, err := ask(New(serve(t, answering(t, path, want))), t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	})
}

func TestClientDecodesEveryAnswer(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.7")
	subnets := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	at := time.Date(2026, 11, 22, 16, 0, 0, 5000, time.UTC)

	check(t, PathStatus, Status{
		Node: "a", Started: at, NotReady: []string{"no lease"}, Resolve: "eager",
		Store: Store{Kind: "etcd", Revision: 7, Ignored: []Ignored{{Key: "k", Reason: "why", Conflict: true}}},
		Lease: Lease{Subnets: subnets, VTEPs: []VTEP{{Underlay: addr, MAC: "0e:00:00:00:00:01", VNI: 1}}},
		Slots: Slots{Total: 253, Held: 2, Resting: 1},
	}, (*Client).Status)
	check(t, PathStatus, Status{}, (*Client).Status) // before the first lease: zero addresses
	check(t, PathPeers, []Peer{{Node: "b", Subnets: subnets, Underlay: addr, Missing: []string{"x"}}}, (*Client).Peers)
	check(t, PathLeases, []Lease{{Node: "b", Subnets: subnets, Expiry: at}, {Reserved: true}}, (*Client).Leases)
	check(t, PathPods, []Pod{{Pod: "ns/p", Addresses: []netip.Addr{addr}, Slot: 3}, {}}, (*Client).Pods)
	check(t, PathMisses, []Miss{{Time: at, Kind: "L3MISS", Addr: addr, Micros: 312}, {Kind: "L2MISS"}}, (*Client).Misses)
	check(t, PathEvents, []Event{{Time: at, Kind: "foreign", Text: "t"}}, (*Client).Events)
	check(t, PathEvents, []Event{}, (*Client).Events)
}

func TestGetPassesJSONOn(t *testing.T) {
	// A newer daemon's field that this client's types do not have.
	const body = `{"node":"a","news":[1,2]}`
	path := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write([]byte(body)); err != nil {
			t.Error(err)
		}
	}))
	var raw json.RawMessage
	if err := New(path).Get(t.Context(), PathStatus, &raw); err != nil || string(raw) != body {
		t.Errorf("Get() = %s, %v, want %s", raw, err, body)
	}
}

func TestClientErrorsSayWhatToDo(t *testing.T) {
	status := func(code int, text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, code) })
	}
	for _, c := range []struct {
		name   string
		socket func(t *testing.T) string
		want   string
		is     error
	}{
		{"no socket", func(t *testing.T) string {
			return filepath.Join(t.TempDir(), SocketName)
		}, "overlayd is not running on this node, or --run-dir is wrong (no socket at ", os.ErrNotExist},
		{"daemon died", deadSocket, "it left its socket ", syscall.ECONNREFUSED},
		{"older daemon", func(t *testing.T) string {
			return serve(t, http.NotFoundHandler())
		}, "overlayd does not know /v1/peers; is it older", nil},
		{"refused", func(t *testing.T) string {
			return serve(t, status(http.StatusInternalServerError, "no table"))
		}, "ask overlayd for /v1/peers: 500 Internal Server Error: no table", nil},
		{"long refusal", func(t *testing.T) string {
			return serve(t, status(http.StatusInternalServerError, strings.Repeat("x", 4096)))
		}, strings.Repeat("x", maxRefusal), nil},
		{"other types", func(t *testing.T) string {
			return serve(t, answering(t, PathPeers, Status{}))
		}, "read overlayd's answer to /v1/peers, is it of another version?", nil},
		{"cut off", func(t *testing.T) string {
			return serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = w.Write([]byte("[")) // the client sees what comes of it
			}))
		}, "unexpected EOF", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(c.socket(t)).Peers(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want …%s…", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v is not %v", err, c.is)
			}
			if strings.Contains(err.Error(), strings.Repeat("x", maxRefusal+1)) {
				t.Errorf("error of %d bytes passes a whole refusal on", len(err.Error()))
			}
		})
	}
}

// deadSocket is what a killed daemon leaves.
func deadSocket(t *testing.T) string {
	path := filepath.Join(t.TempDir(), SocketName)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPermission(t *testing.T) {
	// Tests run as root, to whom no socket is closed.
	err := New("/run/x.sock").explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}, timeout)
	if want := "no permission to use /run/x.sock: run as root"; err.Error() != want || !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestHangingDaemon(t *testing.T) {
	release := make(chan struct{})
	client := New(serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })))
	client.http.Timeout = 10 * time.Millisecond // of 3 s
	t.Cleanup(func() { close(release) })        // before the server's Close, which waits

	_, err := client.Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "overlayd did not answer at ") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want one that says that overlayd did not answer", err)
	}
}

func TestCancelledRequest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := serve(t, answering(t, PathStatus, Status{}))
	if _, err := New(path).Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestRelease(t *testing.T) {
	want := Release{Node: "node-b", Revision: 7}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathRelease, func(w http.ResponseWriter, r *http.Request) {
		var got Release
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || got != want {
			http.Error(w, "it is at revision 8, not 7\n", http.StatusConflict)
			return
		}
		_ = json.NewEncoder(w).Encode(Released{TakenBack: true}) // the client sees what comes of it
	})
	client := New(serve(t, mux))
	if got, err := client.Release(t.Context(), want); err != nil || !got.TakenBack {
		t.Errorf("Release() = %+v, %v, want that it was taken back", got, err)
	}
	// A refusal is overlayd's word alone.
	if _, err := client.Release(t.Context(), Release{Node: "other"}); err == nil || err.Error() != "it is at revision 8, not 7" {
		t.Errorf("Release() = %v, want it at revision 8, not 7", err)
	}
}

func TestExpiryIsWaitedForLonger(t *testing.T) {
	client := New(serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("expiry") != "1" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write([]byte("[]")) // the client sees what comes of it
	})))
	client.http.Timeout = 1
	var leases []Lease
	if err := client.Get(t.Context(), PathLeasesExpiry, &leases); err != nil {
		t.Error(err)
	}
}
