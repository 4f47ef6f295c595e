package etcdtest

import (
	"context"
	"testing"
	"time"
)

// until polls.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s: " + what)
		}
	}
}

func TestClusterElectsAnewWhenItsLeaderIsCutOff(t *testing.T) {
	c := NewCluster(t, 3)
	client := c.NewClient(t)
	put(t, client, "a", "1")
	until(t, "a leader", func() bool { return c.Leader() >= 0 })
	leader := c.Leader()
	others := []int{(leader + 1) % 3, (leader + 2) % 3}

	// Cut from one follower alone, it still leads, and that one follows nobody.
	c.Cut(leader, others[0])
	until(t, "a member without leader", func() bool { return c.Leaderless(others[0]) })
	put(t, c.Members[leader].NewClient(t), "a", "2")
	if c.Leader() != leader {
		t.Errorf("member %d leads, want %d still", c.Leader(), leader)
	}

	c.Isolate(leader)
	until(t, "another leader", func() bool { return c.Leader() >= 0 && c.Leader() != leader })
	put(t, c.Members[others[0]].NewClient(t), "a", "3")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if resp, err := c.Members[leader].NewClient(t).Get(ctx, "a"); err == nil {
		t.Errorf("the member that is cut off answers %v", resp.Kvs)
	}

	c.Heal()
	until(t, "the old leader follows", func() bool { return !c.Leaderless(leader) })
	if got := get(t, c.Members[leader].NewClient(t), "a"); got != "3" {
		t.Errorf("a = %q at the member that was cut off, want 3", got)
	}
}

func TestClusterLosesAMember(t *testing.T) {
	c := NewCluster(t, 3)
	client := c.NewClient(t)
	c.Members[0].Stop()
	until(t, "two members serve", func() bool { // the one that stopped may have led
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Put(ctx, "a", "1")
		return err == nil
	})
	if err := c.Members[0].Start(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, c.Members[0].NewClient(t), "a"); got != "1" {
		t.Errorf("a = %q at the member that is back, want 1", got)
	}
}

func TestObserveSeesUnaryRequestsAndStreams(t *testing.T) {
	seen := make(chan string, 100)
	cfg := Config{Dir: t.TempDir(), Observe: func(method string, _ any) { seen <- method }}
	client := Run(t, cfg).NewClient(t)
	put(t, client, "a", "1")
	client.Watch(t.Context(), "a")
	for _, want := range []string{"/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch"} {
		if got := <-seen; got != want {
			t.Errorf("seen %s, want %s", got, want)
		}
	}
}
