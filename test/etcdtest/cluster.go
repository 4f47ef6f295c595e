package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Cluster is an etcd of several members. Any two of them can be cut off from
// each other while both go on.
type Cluster struct {
	Members []*Server
	members []*member
}

// A member is what others reach a Server by: an HTTP proxy, which knows by
// etcd's header who asks.
type member struct {
	cluster  *Cluster
	name     string
	listener net.Listener
	server   *Server

	mu     sync.Mutex
	target string                   // where the server listens for members; empty before its start
	cut    map[string]bool          // members' ids, in hex, that do not get through
	open   map[*http.Request]func() // ends a request that is being served
}

// NewCluster runs an etcd of n members on free loopback ports until the test ends.
func NewCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{}
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m := &member{cluster: c, name: fmt.Sprintf("member-%d", i), listener: l, cut: map[string]bool{}, open: map[*http.Request]func(){}}
		m.server = &Server{cfg: Config{Dir: filepath.Join(t.TempDir(), m.name), Listen: netip.MustParseAddrPort("127.0.0.1:0")}, member: m}
		c.members, c.Members = append(c.members, m), append(c.Members, m.server)
		proxy := &http.Server{Handler: m.proxy(), ReadHeaderTimeout: time.Minute}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = proxy.Serve(l) // it ends with Close, below
		}()
		t.Cleanup(func() {
			_ = proxy.Close()
			<-done
		})
	}
	t.Cleanup(c.Stop)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// Start runs all members again, after Stop.
func (c *Cluster) Start() error {
	for _, s := range c.Members {
		if err := s.launch(); err != nil {
			return err
		}
	}
	for _, s := range c.Members {
		if err := s.await(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all members. Their data and addresses stay.
func (c *Cluster) Stop() {
	var wg sync.WaitGroup
	for _, s := range c.Members {
		wg.Go(s.Stop)
	}
	wg.Wait()
}

// initial is the cluster as etcd's flag --initial-cluster has it.
func (c *Cluster) initial() string {
	parts := make([]string, len(c.members))
	for i, m := range c.members {
		u := m.url()
		parts[i] = m.name + "=" + u.String()
	}
	return strings.Join(parts, ",")
}

// Endpoints are the URLs of all members.
func (c *Cluster) Endpoints() []string {
	urls := make([]string, len(c.Members))
	for i, s := range c.Members {
		urls[i] = s.Endpoint()
	}
	return urls
}

// NewClient returns a client of all members, closed when the test ends.
func (c *Cluster) NewClient(t testing.TB) *clientv3.Client {
	t.Helper()
	client, err := c.Members[0].clientOf(c.Endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Leader returns the index of the member that leads, and -1 if those that run do
// not agree on one.
func (c *Cluster) Leader() int {
	leader := -1
	for i, s := range c.Members {
		if s.etcd == nil {
			continue
		}
		if e := s.etcd.Server; e.Leader() == e.MemberID() {
			if leader >= 0 {
				return -1
			}
			leader = i
		}
	}
	return leader
}

// Leaderless says whether a member knows of no leader.
func (c *Cluster) Leaderless(i int) bool { return c.Members[i].etcd.Server.Leader() == types.ID(0) }

// Cut keeps two members from talking to each other, in both directions.
func (c *Cluster) Cut(i, j int) {
	c.members[i].refuse(c.members[j])
	c.members[j].refuse(c.members[i])
}

// Isolate cuts a member off from all others.
func (c *Cluster) Isolate(i int) {
	for j := range c.members {
		if j != i {
			c.Cut(i, j)
		}
	}
}

// Heal lets all members talk to each other again.
func (c *Cluster) Heal() {
	for _, m := range c.members {
		m.mu.Lock()
		clear(m.cut)
		m.mu.Unlock()
	}
}

func (m *member) url() url.URL { return url.URL{Scheme: "http", Host: m.listener.Addr().String()} }

func (m *member) serves(target string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.target = target
}

// refuse ends what the other member asks, and refuses what it will ask.
func (m *member) refuse(other *member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := other.server.etcd.Server.MemberID().String()
	m.cut[id] = true
	for r, end := range m.open {
		if sender(r) == id {
			end()
		}
	}
}

// sender is the id of the member that asks, in hex; empty if it does not say.
func sender(r *http.Request) string { return r.Header.Get("X-Server-From") }

// proxy passes requests on to the server. Members' streams are answers that do
// not end, so each piece is passed on at once.
func (m *member) proxy() http.Handler {
	pass := &httputil.ReverseProxy{
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // a cut is no news
		Rewrite: func(r *httputil.ProxyRequest) {
			m.mu.Lock()
			defer m.mu.Unlock()
			r.Out.URL.Scheme, r.Out.URL.Host = "http", m.target
		},
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, end := context.WithCancel(r.Context())
		defer end()
		if err := m.admit(r, end); err != nil {
			panic(http.ErrAbortHandler) // closes the connection, without a word
		}
		defer m.dismiss(r)
		pass.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (m *member) admit(r *http.Request, end func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut[sender(r)] || m.target == "" {
		return errors.New("cut off")
	}
	m.open[r] = end
	return nil
}

func (m *member) dismiss(r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, r)
}
