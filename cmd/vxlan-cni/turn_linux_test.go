package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// rounds is how often a race is tried; before there were turns, one in thirteen
// or less went wrong.
const rounds = 40

// together runs calls at the same time and returns what each wrote, "" if it failed.
func (n testNode) together(calls ...env) []string {
	n.Helper()
	outs := make([]string, len(calls))
	var all sync.WaitGroup
	for i, e := range calls {
		cmd, out := command(e, n.conf("1.0.0"))
		all.Go(func() {
			var exit *exec.ExitError
			switch err := n.ns.Do(cmd.Run); {
			case err == nil:
				outs[i] = e.verb + " succeeded " + out.String()
			case !errors.As(err, &exit):
				n.Errorf("%s: %v", e.verb, err)
			}
		})
	}
	all.Wait()
	return outs
}

// agrees says whether slot, link and the pod's address tell the same.
func (n testNode) agrees(p *netlab.Namespace) {
	n.Helper()
	slots, err := ipam.List(n.Context(), n.dir)
	if err != nil {
		n.Fatal(err)
	}
	inside := output(n, p, "ip -br addr show scope global")
	if len(slots) != len(n.links()) || (inside == "") != (len(slots) == 0) {
		n.Fatalf("slots %v, links %v, in the pod %q", slots, n.links(), inside)
	}
	for _, s := range slots {
		if !strings.Contains(inside, " "+s.Addrs[0].String()+"/") {
			n.Fatalf("slot %v, but in the pod %q", s.Addrs, inside)
		}
	}
}

// ADDs of one container that fail must not give away the slot of the one that succeeds.
func TestParallelADDsOfOneContainer(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	good := podEnv("abc", p)
	bad := good
	bad.netns = "/nonexistent"
	for range rounds {
		if out := n.together(bad, bad, bad, good, bad, bad, bad); out[3] == "" {
			t.Fatal("the good ADD failed")
		}
		if len(n.links()) != 1 {
			t.Fatalf("links %v, want one", n.links())
		}
		n.agrees(p)
		n.ok(good.with("DEL"), n.conf("1.0.0"))
	}
}

// A DEL comes before or after an ADD of the same container, never between.
func TestADDAndDELsOfOneContainer(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	e := podEnv("abc", p)
	for range rounds {
		del := e.with("DEL")
		if out := n.together(del, del, e, del, del); out[2] == "" {
			t.Fatal("ADD failed")
		}
		n.agrees(p)
		n.ok(del, n.conf("1.0.0"))
	}
}

func TestTurn(t *testing.T) {
	dir := t.TempDir()
	take := func(ctx context.Context, name string) (func(), error) {
		turn, err := takeTurn(ctx, dir, name)
		if err != nil {
			return nil, err
		}
		return func() { _ = turn.Close() }, nil
	}
	first, err := take(t.Context(), "vetha")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := take(t.Context(), "vethb"); err != nil {
		t.Errorf("another attachment: %v", err)
	} else {
		other()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := take(ctx, "vetha"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "vetha") {
		t.Errorf("a turn that is taken: %v, want the deadline's error", err)
	}
	// The folder was emptied: whoever comes next must not wait for the old file.
	if err := os.Remove(filepath.Join(dir, turnFile)); err != nil {
		t.Fatal(err)
	}
	second, err := take(t.Context(), "vetha")
	if err != nil {
		t.Fatal(err)
	}
	first()
	second()
	if again, err := take(t.Context(), "vetha"); err != nil {
		t.Errorf("a turn given back: %v", err)
	} else {
		again()
	}
	if _, err := takeTurn(t.Context(), filepath.Join(dir, "nosuch"), "vetha"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a folder: %v", err)
	}
}

// A lock file that cannot be locked stops DEL, and forgets nothing.
func TestTurnFileThatIsNone(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	path := filepath.Join(n.dir, turnFile)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	n.ok(podEnv("abc", p), n.conf("1.0.0")) // a lock is a lock
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	n.fails(podEnv("abc", p).with("DEL"), n.conf("1.0.0"), 5, turnFile)
	if held := n.holds(); !strings.Contains(held, "slot abc/eth0") || !strings.Contains(held, "link ") {
		t.Errorf("after a DEL that failed: %q", held)
	}
}

// What was half done when GC listed it, and is complete by its turn, stays.
func TestGCLeavesWhatWasCompleted(t *testing.T) {
	n := newNode(t)
	n.ok(podEnv("abc", netlab.TestNamespace(t)), n.conf("1.0.0"))
	name := pod.HostName("abc", "eth0")
	for _, s := range []stale{{key: ipam.Key{Container: "abc", IfName: "eth0"}}, {link: name}} {
		if err := n.ns.Do(func() error { return s.remove(t.Context(), n.dir) }); err != nil {
			t.Fatal(err)
		}
		if held := n.holds(); strings.Count(held, "\n") != 2 {
			t.Errorf("after %+v: %q", s, held)
		}
	}
}
