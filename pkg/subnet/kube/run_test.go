package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A fakeAPI answers as an API server does in moments that a real one has
// seldom. It has Nodes, and cannot stream the first list: a server before 1.32.
type fakeAPI struct {
	t *testing.T

	mu      sync.Mutex
	nodes   map[string]*node
	rev     int
	refuse  int                // status of the answers to all requests, if not 0
	expired bool               // watches end with 410 once
	lists   int                // requests for a list
	patches int                // requests for a change
	onPatch func(*node)        // what somebody else does in between
	watches []chan watchedNode // of those that watch
}

type watchedNode struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

func newFake(t *testing.T) (*fakeAPI, *Manager) {
	t.Helper()
	f := &fakeAPI{t: t, nodes: map[string]*node{}, rev: 100}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	t.Cleanup(f.endWatches) // before the server, which waits for them
	file := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(file, []byte(config4), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{APIURL: server.URL, ConfigPath: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return f, m
}

// set makes a Node, or another of it.
func (f *fakeAPI) set(name string, podCIDR string, annotated map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := aNode([]string{podCIDR}, annotated)
	n.Name, n.Kind, n.APIVersion = name, "Node", "v1"
	f.store(n)
}

// store wants mu held.
func (f *fakeAPI) store(n *node) {
	f.rev++
	n.ResourceVersion = fmt.Sprint(f.rev)
	f.nodes[n.Name] = n
	for _, w := range f.watches {
		w <- watchedNode{"MODIFIED", n.DeepCopyObject()}
	}
}

func (f *fakeAPI) endWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watches {
		close(w)
	}
	f.watches = nil
}

// awaitWatch waits until somebody watches: the first snapshot may come before.
func (f *fakeAPI) awaitWatch(t *testing.T) {
	t.Helper()
	watched := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.watches) > 0
	}
	for deadline := time.Now().Add(20 * time.Second); !watched(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody watches")
		}
	}
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	refuse := f.refuse
	f.mu.Unlock()
	name := filepath.Base(r.URL.Path)
	q := r.URL.Query()
	switch {
	case refuse != 0:
		f.fail(w, refuse, "Refused")
	case r.Method == http.MethodPatch:
		f.patch(w, r, filepath.Base(filepath.Dir(r.URL.Path)))
	case name != resource:
		f.get(w, name)
	case q.Get("sendInitialEvents") != "":
		f.fail(w, http.StatusUnprocessableEntity, "Invalid")
	case q.Get("watch") != "":
		f.watch(w, r)
	default:
		f.list(w, q.Get("limit") == "1")
	}
}

func (f *fakeAPI) fail(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	f.write(w, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

func (f *fakeAPI) write(w io.Writer, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Log(err)
	}
}

func (f *fakeAPI) get(w http.ResponseWriter, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, ok := f.nodes[name]; ok {
		w.Header().Set("Content-Type", "application/json")
		f.write(w, n)
		return
	}
	f.fail(w, http.StatusNotFound, "NotFound")
}

func (f *fakeAPI) list(w http.ResponseWriter, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !first {
		f.lists++
	}
	l := nodeList{}
	l.Kind, l.APIVersion, l.ResourceVersion = "NodeList", "v1", fmt.Sprint(f.rev)
	for _, n := range f.nodes {
		l.Items = append(l.Items, *n)
	}
	w.Header().Set("Content-Type", "application/json")
	f.write(w, l)
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	f.mu.Lock()
	if f.expired {
		f.expired = false
		f.mu.Unlock()
		f.write(w, watchedNode{"ERROR", map[string]any{"kind": "Status", "apiVersion": "v1", "code": http.StatusGone, "reason": "Expired"}})
		return
	}
	events := make(chan watchedNode, 100)
	f.watches = append(f.watches, events)
	for _, n := range f.nodes { // since the revision that the client has
		if revisionOf(n) > revision(r.URL.Query().Get("resourceVersion")) {
			events <- watchedNode{"MODIFIED", n.DeepCopyObject()}
		}
	}
	f.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			f.write(w, e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// patch understands merge patches of annotations with a revision.
func (f *fakeAPI) patch(w http.ResponseWriter, r *http.Request, name string) {
	var body struct {
		Metadata struct {
			ResourceVersion string
			Annotations     map[string]*string
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.patches++
	n := f.nodes[name].DeepCopyObject().(*node)
	if f.onPatch != nil {
		f.onPatch(n)
		f.onPatch = nil
		f.store(n)
	}
	if body.Metadata.ResourceVersion != n.ResourceVersion {
		f.fail(w, http.StatusConflict, "Conflict")
		return
	}
	for key, v := range body.Metadata.Annotations {
		if v == nil {
			delete(n.Annotations, key)
		} else {
			n.Annotations[key] = *v
		}
	}
	f.store(n)
	w.Header().Set("Content-Type", "application/json")
	f.write(w, n)
}

func want() subnet.Request {
	return subnet.Request{Node: "node-1", MTU: 1450, VTEPs: []subnet.VTEP{vtep4}}
}

func other(last int) map[string]string {
	return with(flannelNode(), publicIP, fmt.Sprintf("192.0.2.%d", last),
		backendData, fmt.Sprintf(`{"VNI":1,"VtepMAC":"0e:00:00:00:00:%02x"}`, last))
}

// follow runs m until the test ends.
func follow(t *testing.T, m *Manager) <-chan subnet.Snapshot {
	t.Helper()
	snaps := make(chan subnet.Snapshot, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, func(s subnet.Snapshot) { snaps <- s }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return snaps
}

func await(t *testing.T, snaps <-chan subnet.Snapshot, what string, ok func(subnet.Snapshot) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	var last subnet.Snapshot
	for {
		select {
		case last = <-snaps:
			if ok(last) {
				return
			}
		case <-deadline:
			t.Fatalf("no snapshot with %s; the last %+v", what, last)
		}
	}
}

// withPeer is a node that runs, and knows of another.
func withPeer(t *testing.T) (*fakeAPI, <-chan subnet.Snapshot) {
	t.Helper()
	f, m := newFake(t)
	f.set("node-1", "10.244.1.0/24", nil)
	f.set("node-2", "10.244.2.0/24", other(12))
	if _, err := m.Acquire(t.Context(), want()); err != nil {
		t.Fatal(err)
	}
	snaps := follow(t, m)
	await(t, snaps, "a peer", count(1))
	return f, snaps
}

func count(n int) func(subnet.Snapshot) bool {
	return func(s subnet.Snapshot) bool { return len(s.Peers) == n }
}

// TestWriteLosesToWhoWasFirst: the revision that was read is the one that is
// written to, and what somebody else wrote meanwhile is seen.
func TestWriteLosesToWhoWasFirst(t *testing.T) {
	f, m := newFake(t)
	f.set("node-1", "10.244.1.0/24", nil)
	f.onPatch = func(n *node) { n.Annotations[notes.prefix+overwriteIP] = "198.51.100.5" }
	l, err := m.Acquire(t.Context(), want())
	if err != nil || l.VTEPs[0].Underlay.String() != "198.51.100.5" || f.patches != 2 {
		t.Errorf("%+v, %v, %d writes", l, err, f.patches)
	}
}

// TestExpiredRevision: a watch that cannot go on ends in a new list, and what
// has gone meanwhile is gone.
func TestExpiredRevision(t *testing.T) {
	f, snaps := withPeer(t)
	f.set("node-3", "10.244.3.0/24", other(13))
	await(t, snaps, "two peers", count(2))
	f.mu.Lock()
	lists := f.lists
	f.expired = true
	delete(f.nodes, "node-2")
	delete(f.nodes, "node-3")
	f.mu.Unlock()
	f.endWatches()
	await(t, snaps, "no peers", count(0))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lists <= lists {
		t.Errorf("%d lists before and after", lists)
	}
}

// TestServerThatCountsAgain: a server that lost everything, and took up the
// watch of old without a word, as apiservers do, is seen through.
func TestServerThatCountsAgain(t *testing.T) {
	f, snaps := withPeer(t)
	f.awaitWatch(t) // one that opens later would not be looked at before its end
	f.mu.Lock()
	clear(f.nodes)
	f.rev = 5
	f.mu.Unlock()
	f.endWatches()
	await(t, snaps, "no peers, and the own lease as it was", func(s subnet.Snapshot) bool {
		return len(s.Peers) == 0 && len(s.Own.Subnets) == 1
	})
	f.set("node-3", "10.244.3.0/24", other(13))
	await(t, snaps, "who came then", count(1))
}

// TestRefusalsAreWaitedFor: whatever the server says of itself, nothing ends.
func TestRefusalsAreWaitedFor(t *testing.T) {
	for _, code := range []int{401, 403, 429, 500, 503, 504} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			f, m := newFake(t)
			f.set("node-1", "10.244.1.0/24", nil)
			f.refuse = code
			done := make(chan error, 1)
			go func() {
				_, err := m.Acquire(t.Context(), want())
				done <- err
			}()
			select {
			case err := <-done:
				t.Fatalf("while refused: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			f.mu.Lock()
			f.refuse = 0
			f.mu.Unlock()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
