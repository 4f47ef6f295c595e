package cluster

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestEtcdKeepsItsDataOverAKill(t *testing.T) {
	netlab.NeedRoot(t)
	c, err := New(Options{Options: netlab.Options{Name: "etcd", Nodes: 1}})
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
