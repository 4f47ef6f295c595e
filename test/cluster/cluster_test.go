package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func TestMain(m *testing.M) {
	if exit, asked := Serve(); asked {
		os.Exit(exit)
	}
	os.Exit(m.Run())
}

func TestEtcdKeepsItsDataOverAKill(t *testing.T) {
	netlab.NeedRoot(t)
	bin := t.TempDir() // etcd is all that this test runs
	if _, err := New(Options{Bin: bin}); err == nil || !strings.Contains(err.Error(), "overlayd") {
		t.Errorf("without binaries: %v", err)
	}
	for _, name := range []string{"overlayd", "overlayctl", "vxlan-cni"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, err := New(Options{Bin: bin, Options: netlab.Options{Name: "etcd", Nodes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := c.StartEtcd(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartEtcd(); err == nil {
		t.Error("a second etcd was started")
	}
	if err := c.Put(t.Context(), "config", Network); err != nil {
		t.Fatal(err)
	}
	if err := c.KillEtcd(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartEtcd(); err != nil {
		t.Fatal(err)
	}
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := client.Get(ctx, Prefix+"/config")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != Network {
		t.Errorf("after kill and start: %v %v", got, err)
	}
}
