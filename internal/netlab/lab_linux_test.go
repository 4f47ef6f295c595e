package netlab

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// storeArg makes the test binary a store, at the address that follows, that ends
// with its standard input.
const storeArg = "-store"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--run-dir" {
		os.Exit(standIn(os.Args[1:]))
	}
	if len(os.Args) > 2 && os.Args[1] == storeArg {
		os.Exit(store())
	}
	os.Exit(m.Run())
}

func store() int {
	l, err := net.Listen("tcp", os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = l.Close()
	return 0
}

func testLab(t *testing.T, o Options) *Lab {
	t.Helper()
	NeedRoot(t)
	o.Name = strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestLabNodesReachEachOther(t *testing.T) {
	l := testLab(t, Options{Nodes: 3, MTU: 1400})
	for _, from := range l.Nodes {
		for i, to := range l.Nodes {
			v6 := netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 11+i))
			for _, addr := range []netip.Addr{to.Address, v6} {
				r, err := Ping(t.Context(), from.Namespace, Pings{To: addr, Count: 3, Interval: time.Millisecond, Size: 1300})
				if err != nil || r.Sent() != 3 || r.Lost() != 0 || r.RTT() <= 0 {
					t.Errorf("%s to %s: %v %v", from.Name, to.Name, r, err)
				}
			}
		}
		for _, f := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if out, err := from.Output("cat", "/proc/sys/"+f); err != nil || out != "1\n" {
				t.Errorf("%s: %s is %q, %v", from.Name, f, out, err)
			}
		}
		out, err := from.Output("ip", "-br", "link", "show", "eth0")
		if err != nil || !strings.Contains(out, "UP") {
			t.Errorf("%s: %s %v", from.Name, out, err)
		}
		if out, _ := from.Output("ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1400 ") {
			t.Errorf("%s: want MTU 1400: %s", from.Name, out)
		}
	}
}

func TestLabLeavesNothing(t *testing.T) {
	NeedRoot(t)
	before, err := os.ReadDir(namespaceDir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	l, err := New(Options{Name: "gone", Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := l.NewPod("a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.NewPod("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.RemovePod(other); err != nil {
		t.Error(err)
	}
	p, err := start("sleep", pod.Command("sleep", "1000"), filepath.Join(l.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.add(p); err != nil {
		t.Error(err)
	}
	// The lab's folder, a namespace each for underlay, two nodes and one pod; and
	// nsenter, until it has become the program.
	err = Eventually(10*time.Second, func() error {
		if left := l.Leftovers(); len(left) != 5 {
			return fmt.Errorf("of a running lab: %q", left)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := New(Options{Name: "gone", Nodes: 1}); err == nil {
		t.Error("two labs of one name")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left := l.Leftovers(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if p.Alive() {
		t.Errorf("%s is left", p)
	}
	for _, n := range l.spaces {
		t.Errorf("%s is on the account", n.Name)
	}
	// Another test's namespaces may have gone meanwhile, but none of ours came.
	after, _ := os.ReadDir(namespaceDir)
	for _, e := range after {
		if strings.HasPrefix(e.Name(), l.ID) {
			t.Errorf("%s is left (%d before)", e.Name(), len(before))
		}
	}
}

func TestLabNamesWhatIsLeft(t *testing.T) {
	NeedRoot(t)
	l, err := New(Options{Name: "left", Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	// A process that the lab does not know of, as a plugin might leave one.
	cmd := exec.Command("sleep", "1000")
	cmd.Env = append(os.Environ(), "CNI_NETNS=/run/netns/"+l.ID+"-pod-x")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = l.Close()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d: sleep 1000", cmd.Process.Pid)) {
		t.Errorf("Close: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := l.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestLabAfterFailureLeavesNothing(t *testing.T) {
	NeedRoot(t)
	taken, err := NewNamespace("half-n2")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	l, err := New(Options{Name: "half", Nodes: 3})
	if err == nil {
		t.Fatal(l.Close(), "a node's namespace was taken over")
	}
	if !strings.Contains(err.Error(), "make node 2: ") || !strings.Contains(err.Error(), "half-n2") {
		t.Errorf("the error does not name the node: %v", err)
	}
	if _, err := os.Stat(filepath.Join(os.TempDir(), Prefix()+"half")); !os.IsNotExist(err) {
		t.Error("the folder is left")
	}
	names, _ := os.ReadDir(namespaceDir)
	for _, n := range names {
		if strings.HasPrefix(n.Name(), Prefix()+"half-") && n.Name() != taken.Name {
			t.Errorf("%s is left", n.Name())
		}
	}
	if _, err := os.Stat(taken.Path()); err != nil {
		t.Errorf("a namespace of somebody else was removed: %v", err)
	}
}

func TestLabRefusesSizes(t *testing.T) {
	for _, nodes := range []int{-1, 0, maxNodes + 1} {
		if _, err := New(Options{Name: "size", Nodes: nodes}); err == nil || !strings.Contains(err.Error(), "want 1 to 200") {
			t.Errorf("%d nodes: %v", nodes, err)
		}
	}
}

func TestStoreEndsWithItsOwner(t *testing.T) {
	for _, keep := range []bool{false, true} {
		l := testLab(t, Options{Nodes: 1, Keep: keep})
		p, err := l.StartStore(os.Args[0], storeArg, l.StoreAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Nodes[0].Dial("tcp", l.StoreAddr().String())
		if err != nil {
			t.Errorf("store from a node: %v", err)
		} else {
			_ = conn.Close()
		}
		_ = l.held.Close() // as the kernel does when the owner ends
		limit := 10 * time.Second
		if keep {
			limit = 300 * time.Millisecond
		}
		err = Eventually(limit, func() error {
			if p.Alive() {
				return fmt.Errorf("%s is there", p)
			}
			return nil
		})
		if (err != nil) != keep {
			t.Errorf("keep %t: store after its owner's end: %v", keep, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStoreThatFailsIsReported(t *testing.T) {
	l := testLab(t, Options{Nodes: 1})
	_, err := l.StartStore("sh", "-c", "echo no disk >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("want the store's own words, got %v", err)
	}
}

// Somebody else's labs, kept or left behind by a kill, are not ours to remove.
func TestAbandonedLeavesOthersLabsAlone(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for id, place := range map[string]string{"ovl-1-ours": here, "ovl-1-theirs": "/somewhere/else"} {
		b, err := json.Marshal(state{ID: id, Owner: Process{PID: 1 << 30}, Place: place, Kept: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, id), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, id, stateName), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	labs, err := Abandoned(true)
	if err != nil || len(labs) != 1 || labs[0].ID != "ovl-1-ours" {
		t.Errorf("abandoned: %v, %v", labs, err)
	}
	if labs, err := Abandoned(false); err != nil || len(labs) != 0 {
		t.Errorf("abandoned and not to be kept: %v, %v", labs, err)
	}
}
