package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// namespaceDir is where `ip netns` looks for names.
const namespaceDir = "/run/netns"

// A Namespace is a network namespace with a name that `ip netns exec` knows.
type Namespace struct {
	Name string
	file *os.File
}

// Prefix is what the names of everything that this process makes begin with.
func Prefix() string { return fmt.Sprintf("ovl-%d-", os.Getpid()) }

// NewNamespace makes a network namespace called Prefix()+name, with loopback up.
func NewNamespace(name string) (*Namespace, error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, err
	}
	n := &Namespace{Name: Prefix() + name}
	// O_EXCL: a name that exists belongs to somebody else.
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", n.Name, err)
	}
	_ = f.Close()
	if err := unshareTo(n.Path()); err != nil {
		_ = os.Remove(n.Path())
		return nil, fmt.Errorf("make network namespace %s: %w", n.Name, err)
	}
	if n.file, err = os.Open(n.Path()); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if out, err := n.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("set lo up in %s: %w: %s", n.Name, err, out), n.Close())
	}
	return n, nil
}

// unshareTo makes a network namespace and pins it at path. The thread that it
// is made on ends with its goroutine.
func unshareTo(path string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			src := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			err = unix.Mount(src, path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
}

// Path is the file that CNI_NETNS and setns take.
func (n *Namespace) Path() string { return filepath.Join(namespaceDir, n.Name) }

// FD is an open descriptor of the namespace, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Do calls fn on a thread inside the namespace. Processes that fn starts and
// sockets that it opens are inside too; goroutines are not.
func (n *Namespace) Do(fn func() error) error { return rtnl.Within(n.FD(), fn) }

// Command prepares a command that runs inside the namespace.
func (n *Namespace) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...)
}

// Output runs a command inside the namespace and returns what it wrote to
// standard output; an error holds what it wrote to standard error.
func (n *Namespace) Output(name string, args ...string) (string, error) {
	out, err := n.Command(name, args...).Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return string(out), fmt.Errorf("%s: %s %q: %w: %s", n.Name, name, args, err, exit.Stderr)
		}
		return string(out), fmt.Errorf("%s: %s %q: %w", n.Name, name, args, err)
	}
	return string(out), nil
}

// Close removes the name; the kernel removes the namespace, with the links in
// it, when the last process and descriptor have left.
func (n *Namespace) Close() error {
	if n.file != nil {
		_ = n.file.Close()
	}
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if err := os.Remove(n.Path()); err != nil {
		return fmt.Errorf("remove network namespace %s: %w", n.Name, err)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", n.Name, err)
	}
	return nil
}

var testNamespaces atomic.Int64

// TestNamespace makes a namespace that goes with the test. Without root the
// test is skipped, except in CI (environment CI set), where it fails.
func TestNamespace(t testing.TB) *Namespace {
	t.Helper()
	NeedRoot(t)
	n, err := NewNamespace(fmt.Sprintf("t%d", testNamespaces.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// NeedRoot skips the test where namespaces cannot be made, and fails it in CI.
func NeedRoot(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatal("this test needs root, and CI must have it")
	default:
		t.Skip("this test needs root: network namespaces")
	}
}
