package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

func TestStoreUnreachableAtStart(t *testing.T) {
	c := newCluster(t, oneNode())
	n := c.Nodes[0]
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	daemon := n.Daemon()
	err := netlab.Eventually(cluster.ReadyWithin, func() error {
		log, err := os.ReadFile(n.Log)
		if err == nil && !strings.Contains(string(log), c.StoreAddr().String()) {
			err = fmt.Errorf("the log does not name %s", c.StoreAddr())
		}
		if err == nil {
			_, err = n.Get(api.PathHealth) // alive, though not ready
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Get(api.PathReady); err == nil || !strings.Contains(err.Error(), fmt.Sprint(http.StatusServiceUnavailable)) {
		t.Errorf("readiness without a store: %v, want 503", err)
	}
	s, err := n.API().Status(t.Context())
	if err != nil || s.Ready || len(s.NotReady) == 0 {
		t.Errorf("status without a store: %+v %v", s, err)
	}
	// An etcd without configuration is no better than none.
	if err := c.StartEtcd(); err != nil {
		t.Fatal(err)
	}
	wait(t, 500*time.Millisecond)
	if _, err := n.Get(api.PathReady); err == nil {
		t.Error("ready without a configuration")
	}
	if err := c.Put(t.Context(), "config", cluster.Network); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(cluster.ReadyWithin); err != nil {
		t.Error(err)
	}
	if n.Daemon() != daemon || !daemon.Alive() {
		t.Error("overlayd is not the process that was started")
	}
}

// hostile are stored records that must never reach a kernel, by key.
var hostile = map[string]string{
	"subnets/10.244.20.0-24":  `{"PublicIP":`,
	"subnets/10.244.21.0-24":  `"a lease"`,
	"subnets/10.99.0.0-24":    record("192.0.2.99", "0e:00:00:00:00:01"),
	"subnets/0.0.0.0-0":       record("192.0.2.99", "0e:00:00:00:00:02"),
	"subnets/10.244.0.0-16":   record("192.0.2.99", "0e:00:00:00:00:03"),
	"subnets/10.244.22.0-24":  record("192.0.2.99", "01:00:5e:00:00:01"),
	"subnets/10.244.23.0-24":  record("192.0.2.99", "ff:ff:ff:ff:ff:ff"),
	"subnets/10.244.24.0-24":  record("10.244.30.1", "0e:00:00:00:00:04"),
	"subnets/10.244.25.0-24":  record("224.0.0.1", "0e:00:00:00:00:05"),
	"subnets/10.244.26.0-24":  record("127.0.0.1", "0e:00:00:00:00:06"),
	"subnets/not-a-subnet":    record("192.0.2.99", "0e:00:00:00:00:08"),
	"subnets/10.244.28.17-24": record("192.0.2.99", "0e:00:00:00:00:09"),
}

func record(underlay, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, underlay, mac)
}

func TestHostileLeasesNeverReachTheKernel(t *testing.T) {
	for _, when := range []string{"before the start", "while running"} {
		t.Run(when, func(t *testing.T) {
			o := cluster.Options{Options: netlab.Options{Nodes: 2}}
			c := newCluster(t, o)
			if err := c.StartEtcd(); err != nil {
				t.Fatal(err)
			}
			start := func() {
				if err := c.Put(t.Context(), "config", cluster.Network); err != nil {
					t.Fatal(err)
				}
				if err := c.StartDaemons(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if when == "while running" {
				start()
			}
			for key, value := range hostile {
				if err := c.Put(t.Context(), key, value); err != nil {
					t.Fatal(err)
				}
			}
			if when == "before the start" {
				start()
			}
			for _, n := range c.Nodes {
				wantIgnored(t, n)
			}
			pods := addPods(t, c, "a")
			r, err := netlab.Ping(t.Context(), pods[0].NS, netlab.Pings{To: pods[1].Addr, Count: 3})
			if err != nil || r.Lost() > 0 {
				t.Errorf("good peers beside hostile records: %v %v", r, err)
			}
		})
	}
}

// wantIgnored fails the test unless the node names every hostile record, once
// in its log, and holds entries of its one good peer only.
func wantIgnored(t *testing.T, n *netlab.Node) {
	t.Helper()
	missing := func() error {
		s, err := n.API().Status(t.Context())
		if err != nil {
			return err
		}
		ignored := map[string]bool{}
		for _, i := range s.Store.Ignored {
			ignored[filepath.Base(i.Key)] = i.Reason != ""
		}
		for key := range hostile {
			if !ignored[filepath.Base(key)] {
				return fmt.Errorf("%s: %s is not among the ignored: %+v", n.Name, key, s.Store.Ignored)
			}
		}
		return nil
	}
	if err := netlab.Eventually(cluster.ReadyWithin, missing); err != nil {
		t.Error(err)
	}
	have := tables(t, n)
	for _, bad := range []string{"192.0.2.99", "10.99.", "default", "0.0.0.0", "10.244.0.0/16", "224.0.0.1", "127.0.0.1", "10.244.30.1", "01:00:5e", "ff:ff:ff"} {
		if strings.Contains(have, bad) {
			t.Errorf("%s: %s has reached the kernel:\n%s", n.Name, bad, have)
		}
	}
	log, err := os.ReadFile(n.Log)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(log), "10.244.22.0-24"); got != 1 {
		t.Errorf("%s: %d warnings of 10.244.22.0-24, want one", n.Name, got)
	}
	metrics, err := n.Get(api.PathMetrics)
	if err != nil || !strings.Contains(metrics, "ignored") {
		t.Errorf("%s: no metric of ignored records: %v", n.Name, err)
	}
}
