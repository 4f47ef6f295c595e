package etcd

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

func TestUserAndPassword(t *testing.T) {
	s := newStore(t, network)
	s.enableAuth(t)
	m := s.manager(t, login)
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	// etcd forgets who is logged in when it restarts.
	s.server.Stop()
	s.start(t)
	acquire(t, s.manager(t, login), request("node-2"))
	r.wait(t, "node-2", peers(own, "node-2"))
	changes(t, m, r)

	for _, bad := range [][2]string{{"overlay", "wrong"}, {"", ""}} {
		s.isKeptOut(t, "etcd refuses", func(o *etcd.Options) { o.Username, o.Password = bad[0], bad[1] })
	}
}

// login is that of the user whom enableAuth makes.
func login(o *etcd.Options) { o.Username, o.Password = "overlay", "secret" }

// changes writes node-1's record anew, and waits until its Run has seen it.
func changes(t *testing.T, m *etcd.Manager, r *runner) {
	t.Helper()
	changed := request("node-1")
	changed.MTU = 1400
	acquire(t, m, changed)
	r.wait(t, "the own change", func(s subnet.Snapshot) bool { return s.Own.MTU == 1400 })
}

// isKeptOut wants a Manager with these options to wait, to say why, and to end
// with its context.
func (s *store) isKeptOut(t *testing.T, why string, change func(*etcd.Options)) {
	t.Helper()
	var log journal
	m := s.manager(t, func(o *etcd.Options) {
		change(o)
		o.Log = log.logger()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := m.Acquire(ctx, request("node-3"))
		done <- err
	}()
	log.has(t, "WARN", why)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("acquire: %v, want %v", err, context.Canceled)
	}
}

// TestRoleLimitedToThePrefix: a Manager gets by with a role that may read and
// write below the prefix and nothing else, and asks for nothing else.
func TestRoleLimitedToThePrefix(t *testing.T) {
	var count calls
	s := observed(t, network, &count)
	s.enableAuth(t)
	root := s.rootClient(t)
	count.reset()
	m1, m2 := s.manager(t, login), s.manager(t, login)
	one := acquire(t, m1, request("node-1"))
	acquire(t, m2, request("node-2"))
	acquire(t, s.manager(t, login), request("node-3"))
	r := run(t, m1)
	r.wait(t, "node-2 and node-3", peers(one, "node-2", "node-3"))
	changes(t, m1, r)
	if ends, err := m1.Expiries(within(t)); err != nil || len(ends) != 3 {
		t.Errorf("ends of leases %v, %v; want three", ends, err)
	}
	if err := m1.Release(within(t), "node-2", 0); err != nil {
		t.Error(err)
	}
	if err := s.manager(t, login).Withdraw(within(t), "node-3"); err != nil {
		t.Error(err)
	}
	asked := count.all()
	const first, end = etcd.DefaultPrefix + "/", etcd.DefaultPrefix + "0" // '0' comes after '/'
	keys := 0
	for _, c := range asked {
		for _, r := range ranges(c.message) {
			keys++
			if r[0] < first || r[0] >= end || (r[1] != "" && (r[1] > end || r[1] < first)) {
				t.Errorf("%s asks for keys from %q to %q, outside of %s", c.method, r[0], r[1], first)
			}
		}
	}
	if keys < 6 {
		t.Errorf("only %d keys or ranges in %d requests: the test proves nothing", keys, len(asked))
	}

	// And the loss of the record is made good with the same role.
	if _, err := root.Delete(within(t), subnets, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	r.wait(t, "the own lease anew", func(s subnet.Snapshot) bool {
		return s.Own.Created > one.Created && slices.Equal(s.Own.Subnets, one.Subnets)
	})
}

// TestLoginRunsOut: a login lasts one second here, and nothing is asked for
// three; the watch outlives it, and the next requests log in anew.
func TestLoginRunsOut(t *testing.T) {
	t.Parallel()
	var count calls
	s := observed(t, network, &count)
	s.enableAuth(t)
	m := s.manager(t, login)
	own := acquire(t, m, request("node-1"))
	r := run(t, m)
	eventually(t, func() error {
		if count.by()["Watch/Watch"] == 0 {
			return errors.New("no watch yet")
		}
		return nil
	})
	count.reset()
	time.Sleep(3 * time.Second) // for a time to pass
	if quiet := count.by(); len(quiet) > 0 {
		t.Fatalf("requests meanwhile: %v; the login did not run out", quiet)
	}
	acquire(t, s.manager(t, login), request("node-2"))
	r.wait(t, "node-2", peers(own, "node-2"))
	changes(t, m, r)
	if n := count.by()["Auth/Authenticate"]; n < 2 {
		t.Errorf("%d logins, want node-2's and node-1's second at least", n)
	}
}

// enableAuth makes a user overlay whose role is limited to the prefix, and root.
func (s *store) enableAuth(t *testing.T) {
	t.Helper()
	ctx := within(t)
	for _, do := range []func() error{
		func() error { _, err := s.client.UserAdd(ctx, "root", "r00t"); return err },
		func() error { _, err := s.client.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := s.client.UserAdd(ctx, "overlay", "secret"); return err },
		func() error { _, err := s.client.RoleAdd(ctx, "overlay"); return err },
		func() error { _, err := s.client.UserGrantRole(ctx, "overlay", "overlay"); return err },
		func() error {
			_, err := s.client.RoleGrantPermission(ctx, "overlay", etcd.DefaultPrefix+"/",
				clientv3.GetPrefixRangeEnd(etcd.DefaultPrefix+"/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := s.client.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
}

// rootClient may do everything.
func (s *store) rootClient(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.server.Endpoint()}, Username: "root", Password: "r00t", Context: context.Background(), DialTimeout: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
