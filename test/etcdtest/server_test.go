package etcdtest

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestRestartKeepsDataAndAddressWipeLosesData(t *testing.T) {
	s := New(t)
	endpoint := s.Endpoint()
	client := s.NewClient(t)
	put(t, client, "a", "1")

	s.Stop()
	s.Stop() // twice is fine
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if s.Endpoint() != endpoint {
		t.Errorf("endpoint after restart = %s, want %s", s.Endpoint(), endpoint)
	}
	if got := get(t, client, "a"); got != "1" {
		t.Errorf("a after restart = %q, want 1", got)
	}
	if err := s.Start(); err == nil {
		t.Error("starting a running server: no error")
	}

	if err := s.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, client, "a"); got != "" {
		t.Errorf("a after wipe = %q, want nothing", got)
	}
}

func TestTLS(t *testing.T) {
	ca := NewCA(t)
	cert, key := ca.Issue(t, "server")
	s := Run(t, Config{Dir: t.TempDir(), CAFile: ca.File, CertFile: cert, KeyFile: key})
	client := s.NewClient(t)
	put(t, client, "a", "1")
	if got := get(t, client, "a"); got != "1" {
		t.Errorf("a = %q, want 1", got)
	}
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}
