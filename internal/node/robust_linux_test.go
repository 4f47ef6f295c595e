package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

func TestWrongNeighbourInOnMissModeIsPutRight(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	r := start(t, store, func(c *Config) { c.Resolve = OnMiss })
	r.ready()
	r.inSync(1)
	for _, state := range []string{"reachable", "stale", "permanent"} {
		ip(t, "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:99 dev overlay.1 nud "+state)
		eventually(t, state+" is put right", func() error {
			if got := ip(t, "ip neigh show dev overlay.1"); !strings.Contains(got, "10.244.77.0 lladdr 02:00:00:00:00:4d PERMANENT") {
				return fmt.Errorf("neighbours:\n%s", got)
			}
			return nil
		})
	}
}

func TestStrayPortComesBack(t *testing.T) {
	underlay(t)
	r := start(t, subnettest.NewStore(network(t)), nil)
	r.ready()
	ip(t, fmt.Sprintf("ip link add stray0 group %d type veth peer name stray1", pod.Group))
	t.Cleanup(func() { ip(t, "ip link del stray0") })
	ip(t, "ip link set stray0 master overlay-br0 up")
	ip(t, "ip link set stray0 nomaster")
	eventually(t, "it is a port again", func() error {
		if got := ip(t, "ip link show stray0"); !strings.Contains(got, "master overlay-br0") {
			return errors.New(got)
		}
		return nil
	})
}

func TestPublicAddressBehindNAT(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	r := start(t, store, func(c *Config) { c.Public = netip.MustParseAddr("198.51.100.7") })
	if s := r.ready(); s.Lease.VTEPs[0].Underlay.String() != "198.51.100.7" {
		t.Errorf("lease %+v, want the public address", s.Lease)
	}
	if got := ip(t, "ip -d link show overlay.1"); !strings.Contains(got, "local 192.0.2.10 ") {
		t.Errorf("packets must leave with the interface's address:\n%s", got)
	}
}

func TestRemovedRunFolderEndsTheDaemon(t *testing.T) {
	underlay(t)
	dir := filepath.Join(t.TempDir(), "run")
	store := subnettest.NewStore(network(t))
	r := start(t, store, func(c *Config) { c.RunDir = dir })
	r.ready()
	// The daemon may write the node file meanwhile.
	eventually(t, "remove the run folder", func() error { return os.RemoveAll(dir) })
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77)) // gives it something to do
	select {
	case err := <-r.done:
		if err == nil || !strings.Contains(err.Error(), "removed or replaced") {
			t.Errorf("it ended with %v", err)
		}
		r.done = nil
	case <-time.After(5 * time.Second):
		t.Error("it goes on without socket and lock")
	}
}

func TestNodeFileNotBelievedIsPutAside(t *testing.T) {
	underlay(t)
	for name, text := range map[string]string{"torn": `{"schema":1,"no`, "of another node": `{"schema":1,"node":"other","networks":["10.244.0.0/16"],"subnets":["10.244.7.0/24"],"mtu":1450,"bridge":"b"}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, subnet.NodeFileName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r := start(t, subnettest.NewStore(network(t)), func(c *Config) { c.RunDir = dir })
		r.ready()
		if got, err := os.ReadFile(filepath.Join(dir, refusedName)); err != nil || string(got) != text {
			t.Errorf("%s: put aside: %q, %v", name, got, err)
		}
		if f, err := subnet.ReadNodeFile(dir); err != nil || f.Node != "self" {
			t.Errorf("%s: the new one: %+v, %v", name, f, err)
		}
		r.end()
	}
}

func TestDamagedSlotFileHidesNothingElse(t *testing.T) {
	underlay(t)
	r := start(t, subnettest.NewStore(network(t)), nil)
	s := r.ready()
	path := filepath.Join(r.cfg.RunDir, "slots-"+strings.NewReplacer("/", "-").Replace(s.Lease.Subnets[0].String()))
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	s = r.status()
	if !s.Ready || len(s.Devices) == 0 || !strings.Contains(s.Slots.Error, path) {
		t.Errorf("status %+v", s)
	}
}

func TestFlushInOnMissModeIsTold(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	r := start(t, store, func(c *Config) { c.Resolve = OnMiss })
	r.ready()
	r.inSync(1)
	ip(t, "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:4d dev overlay.1 nud permanent")
	ip(t, "ip neigh flush dev overlay.1 nud permanent")
	eventually(t, "the flush is told", func() error {
		events, err := r.client.Events(t.Context())
		if err == nil && !strings.Contains(fmt.Sprint(events), "foreign deleted neigh 10.244.77.0") {
			err = fmt.Errorf("events %v", events)
		}
		return err
	})
}

func TestForeignLinkOfTheNameIsNotTouched(t *testing.T) {
	underlay(t)
	ip(t, "ip link add overlay.1 type bridge")
	store := subnettest.NewStore(network(t))
	r := start(t, store, nil)
	eventually(t, "the error is told", func() error {
		s, err := r.client.Status(t.Context())
		if err == nil && (s.Ready || !strings.Contains(s.Kernel.LastError, "not a vxlan device")) {
			err = fmt.Errorf("status %+v", s)
		}
		return err
	})
	if got := ip(t, "ip -d link show overlay.1"); !strings.Contains(got, "bridge") {
		t.Errorf("the link became\n%s", got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	r := start(t, store, nil)
	r.ready()
	err := Run(t.Context(), r.cfg, store.Manager(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "another overlayd") {
		t.Errorf("a second daemon on the same run folder: %v", err)
	}
	if s := r.status(); !s.Ready {
		t.Error("the first daemon is not ready any more")
	}
}
