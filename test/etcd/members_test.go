package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
	"github.com/vxlan-cni/vxlan-cni/test/etcdtest"
)

// newMembers runs an etcd of three members that holds a network configuration.
func newMembers(t *testing.T, configuration string) (*store, *etcdtest.Cluster) {
	t.Helper()
	c := etcdtest.NewCluster(t, 3)
	s := &store{client: c.NewClient(t)}
	s.put(t, config, configuration)
	return s, c
}

// knowing makes a Manager use these endpoints.
func knowing(endpoints ...string) func(*etcd.Options) {
	return func(o *etcd.Options) { o.Endpoints = endpoints }
}

func TestConformanceOnThreeMembers(t *testing.T) {
	subnettest.Conformance(t, func(t *testing.T, cfg subnet.Config) subnettest.Fixture {
		s, c := newMembers(t, configJSON(t, cfg))
		outage := func(t *testing.T, on bool) {
			if on {
				c.Stop()
			} else if err := c.Start(); err != nil {
				t.Fatal(err)
			}
		}
		return subnettest.Fixture{
			Manager: func(t *testing.T) subnet.Manager { return newManager(t, "", knowing(c.Endpoints()...)) },
			Expire: func(t *testing.T, node string) {
				s.revoke(t, s.etcdLease(t, s.recordOf(t, node)))
			},
			PutRaw: func(t *testing.T, key string, value []byte) { s.put(t, subnets+key, string(value)) },
			Delete: func(t *testing.T, key string) { s.delete(t, subnets+key) },
			Outage: outage,
			Restart: func(t *testing.T) {
				outage(t, true)
				outage(t, false)
			},
		}
	})
}

// leader waits until one member leads.
func leader(t *testing.T, c *etcdtest.Cluster) int {
	t.Helper()
	eventually(t, func() error {
		if c.Leader() < 0 {
			return fmt.Errorf("no leader")
		}
		return nil
	})
	return c.Leader()
}

// TestMemberFailover: each member in turn dies and comes back, the leader first.
func TestMemberFailover(t *testing.T) {
	s, c := newMembers(t, network)
	m := newManager(t, "", knowing(c.Endpoints()...))
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	for n, first := 0, leader(t, c); n < 3; n++ {
		dead := (first + n) % 3
		c.Members[dead].Stop()
		change(t, r, m, 1400+n)
		other := acquire(t, newManager(t, "", knowing(c.Endpoints()...)), request("node-2"))
		r.wait(t, "node-2", peers(own, "node-2"))
		if err := c.Members[dead].Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			_, err := s.client.Delete(t.Context(), subnets+subnet.Key(other.Subnets))
			return err
		})
		r.wait(t, "node-2 gone", peers(own))
	}
}

// change changes the node's record, and waits until Run has seen it.
func change(t *testing.T, r *runner, m *etcd.Manager, mtu int) {
	t.Helper()
	want := request("node-1")
	want.MTU = mtu
	began := time.Now()
	l := acquire(t, m, want)
	wrote := time.Since(began)
	r.wait(t, "the own change", func(s subnet.Snapshot) bool { return s.Own.Revision == l.Revision && s.Own.MTU == mtu })
	t.Logf("written after %s, seen after %s", wrote.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// TestPartitions: whichever member is cut off from all others, or a follower
// from the leader alone, while the node reaches all of them, the node goes on
// with those that have a leader. A member that is cut off accepts connections
// and answers nothing; its watches tell nothing.
func TestPartitions(t *testing.T) {
	_, c := newMembers(t, network)
	var log journal
	m := newManager(t, "", func(o *etcd.Options) { o.Endpoints, o.Log = c.Endpoints(), log.logger() })
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for n, part := range map[string]func(leader int) (cut int){
		"leader":   func(l int) int { c.Isolate(l); return l },
		"follower": func(l int) int { c.Isolate((l + 1) % 3); return (l + 1) % 3 },
		"other":    func(l int) int { c.Isolate((l + 2) % 3); return (l + 2) % 3 },
		"link":     func(l int) int { c.Cut(l, (l+1)%3); return (l + 1) % 3 },
	} {
		t.Run(n, func(t *testing.T) {
			before := leader(t, c)
			cut := part(before)
			eventually(t, func() error {
				if !c.Leaderless(cut) {
					return fmt.Errorf("member %d still has a leader", cut)
				}
				return nil
			})
			whole := []string{c.Members[(cut+1)%3].Endpoint(), c.Members[(cut+2)%3].Endpoint()}
			other := newManager(t, "", knowing(whole...))
			acquire(t, other, request("node-2"))
			r.wait(t, "node-2", peers(own, "node-2"))
			change(t, r, m, 1300+len(n))
			if err := other.Release(within(t), "node-2", 0); err != nil {
				t.Fatal(err)
			}
			r.wait(t, "node-2 gone", peers(own))
			c.Heal()
			eventually(t, func() error {
				if c.Leaderless(cut) {
					return fmt.Errorf("member %d has no leader", cut)
				}
				return nil
			})
		})
	}
}

// TestNodeOfACutOffMember: the node reaches that member alone. It waits, says
// so, and keeps what it holds; when the member is back, so is the node.
func TestNodeOfACutOffMember(t *testing.T) {
	s, c := newMembers(t, network)
	cut := leader(t, c)
	var log journal
	m := newManager(t, "", func(o *etcd.Options) {
		o.Endpoints, o.Log = []string{c.Members[cut].Endpoint()}, log.logger()
	})
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	c.Isolate(cut)
	log.has(t, "WARN", "etcd not reachable", "no leader")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	want := request("node-1")
	want.MTU = 1400
	if l, err := m.Acquire(ctx, want); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquire at a member without leader: %+v, %v; want it to wait", l, err)
	}
	whole := newManager(t, "", knowing(c.Members[(cut+1)%3].Endpoint(), c.Members[(cut+2)%3].Endpoint()))
	acquire(t, whole, request("node-2"))
	// What was leased meanwhile on the other side is safe from this one.
	s.client.SetEndpoints(c.Members[(cut+1)%3].Endpoint())
	if _, err := s.client.Put(within(t), config, network, clientv3.WithPrevKV()); err != nil {
		t.Fatal(err)
	}
	c.Heal()
	log.has(t, "INFO", "no longer: etcd not reachable")
	snap := r.wait(t, "node-2", peers(own, "node-2"))
	if !slices.Equal(snap.Own.Subnets, own.Subnets) {
		t.Errorf("own %s, before %s", snap.Own.Subnets, own.Subnets)
	}
	change(t, r, m, 1399)
}
