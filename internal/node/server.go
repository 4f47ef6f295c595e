package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

const (
	// answerWithin bounds what a request may take of the loop's time.
	answerWithin = 2 * time.Second

	shutdownWithin = time.Second
)

// serve answers the socket API, and on TCP too if configured, until ctx ends.
func (n *node) serve(ctx context.Context) error {
	listeners, err := n.listen()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		// The Unix socket is for root alone; on TCP there is no authentication, so
		// nothing can be changed from there.
		server := &http.Server{Handler: n.handler(l.Addr().Network() == "unix"), ReadHeaderTimeout: 5 * time.Second, ErrorLog: nil}
		g.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			late, cancel := context.WithTimeout(context.Background(), shutdownWithin)
			defer cancel()
			if server.Shutdown(late) != nil {
				return server.Close()
			}
			return nil
		})
	}
	return g.Wait()
}

// listen opens the Unix socket, for root alone, and the TCP address. The lock
// on the run folder is held, so a socket that lies there is a dead daemon's.
func (n *node) listen() ([]net.Listener, error) {
	path := filepath.Join(n.cfg.RunDir, api.SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	unix, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), unix.Close())
	}
	if n.cfg.Metrics == "" {
		return []net.Listener{unix}, nil
	}
	tcp, err := net.Listen("tcp", n.cfg.Metrics)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--metrics-address: %w", err), unix.Close())
	}
	return []net.Listener{unix, tcp}, nil
}

func (n *node) handler(mayChange bool) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{n})
	mux := http.NewServeMux()
	mux.Handle("GET "+api.PathMetrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET "+api.PathHealth, n.health)
	mux.HandleFunc("GET "+api.PathReady, n.readiness)
	mux.HandleFunc("GET "+api.PathStatus, answer(n.status))
	mux.HandleFunc("GET "+api.PathPeers, answer(n.peers))
	mux.HandleFunc("GET "+api.PathLeases, n.answerLeases)
	mux.HandleFunc("GET "+api.PathPods, answer(n.pods))
	mux.HandleFunc("GET "+api.PathMisses, answer(func(context.Context) ([]api.Miss, error) { return n.journal.misses.newest(), nil }))
	mux.HandleFunc("GET "+api.PathEvents, answer(func(context.Context) ([]api.Event, error) { return n.journal.events.newest(), nil }))
	if mayChange {
		mux.HandleFunc("POST "+api.PathRelease, n.answerRelease)
	}
	return mux
}

// answer makes a handler that writes what get returns as JSON.
func answer[T any](get func(context.Context) (T, error)) http.HandlerFunc {
	return answerIn(answerWithin, get)
}

// answerIn is answer for what may take another time. A *refused is a conflict
// with how things are; other errors are of the moment.
func answerIn[T any](limit time.Duration, get func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		v, err := get(ctx)
		var no *refused
		switch {
		case errors.As(err, &no):
			http.Error(w, err.Error(), http.StatusConflict)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // an error here is the reader's end of the line
	}
}

// health is 200 while the loop turns, and while the start waits for something.
func (n *node) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	if n.waiting.Load() == nil && !n.do(ctx, func(*loop) {}) {
		http.Error(w, fmt.Sprintf("the loop did not answer within %s", answerWithin), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (n *node) readiness(w http.ResponseWriter, _ *http.Request) {
	if why := n.notReady(); why != nil {
		http.Error(w, strings.Join(why, "; "), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ready")
}

// notReady says what is missing, nil if nothing.
func (n *node) notReady() []string {
	if what := n.waiting.Load(); what != nil {
		return []string{"waiting for " + *what}
	}
	if !n.ready.Load() {
		return []string{"the first reconcile is not complete"}
	}
	return nil
}
