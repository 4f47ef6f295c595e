package kubelab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// ownerEnv makes the test binary a process that makes a lab and waits.
const ownerEnv = "OVL_KUBELAB_OWNER"

func TestMain(m *testing.M) {
	if exit, asked := Serve(); asked {
		os.Exit(exit)
	}
	if os.Getenv(ownerEnv) != "" {
		l, err := New(context.Background(), Options{Name: "owner", Nodes: 1})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Dir)
		select {}
	}
	os.Exit(m.Run())
}

// TestOwnerKilled: a lab whose owner is killed ends with it, and the next run
// finds and removes what is left of it; the machine is as it was.
func TestOwnerKilled(t *testing.T) {
	if os.Getenv("E2E") != "lab" {
		t.Skip("`make e2e` runs it, after it has built Kubernetes")
	}
	netlab.NeedRoot(t)
	before := machine(t)
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	if _, err := fmt.Fscanln(out, &dir); err != nil || !strings.HasPrefix(dir, os.TempDir()) {
		t.Fatalf("the owner said %q, %v", dir, err)
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	for _, g := range append(l.guests(), l.control) {
		err := netlab.Eventually(time.Minute, func() error {
			if g.process().Alive() {
				return fmt.Errorf("%s lives on without its owner", g.Name)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	labs, err := Abandoned(false)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, a := range labs {
		if a.ID == l.ID {
			found = true
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if !found {
		t.Errorf("%s is not among the abandoned", l.ID)
	}
	if left := l.Leftovers(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if after := machine(t); after != before {
		t.Errorf("the machine was\n%s\nand is\n%s", before, after)
	}
}

// TestCloseTwice: closing is for failures too, so a lab that is gone is no error.
func TestCloseTwice(t *testing.T) {
	netlab.NeedRoot(t)
	l := &Lab{ID: netlab.Prefix() + "twice", Dir: t.TempDir()}
	groups, err := makeGroups(l.ID, "node1")
	if err != nil {
		t.Skip(err) // no cgroup v1 here
	}
	if err := unix.Access(groups[0].Guest, unix.R_OK); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left := l.Leftovers(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func machine(t *testing.T) string {
	t.Helper()
	s, err := Machine()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
