package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	gocni "github.com/containerd/go-cni"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// goCNIArg makes the test binary a container runtime: go-cni starts plugins
// from goroutines of its own, so the whole process has to be inside the node's
// namespace.
const goCNIArg = "-go-cni"

// serveRuntime is what that second process does. Its arguments are the folder of
// the conflist, the plugin folders and the namespaces of three pods.
func serveRuntime() (exit int, asked bool) {
	if len(os.Args) < 4 || os.Args[1] != goCNIArg {
		return 0, false
	}
	if err := driveGoCNI(context.Background(), os.Args[2], strings.Split(os.Args[3], ":"), os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// driveGoCNI does what containerd does with a pod.
func driveGoCNI(ctx context.Context, confDir string, plugins, netns []string) error {
	// go-cni keeps its cache in /var/lib/cni and cannot be told otherwise; this
	// process has a mount namespace of its own.
	if err := unix.Mount("none", "/var/lib", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("hide /var/lib: %w", err)
	}
	open := func(networks int, load ...gocni.Opt) (gocni.CNI, error) {
		c, err := gocni.New(gocni.WithMinNetworkCount(networks), gocni.WithInterfacePrefix("eth"),
			gocni.WithPluginDir(plugins), gocni.WithPluginConfDir(confDir))
		if err != nil {
			return nil, err
		}
		return c, c.Load(load...)
	}
	c, err := open(2, gocni.WithLoNetwork, gocni.WithDefaultConf)
	if err != nil {
		return err
	}
	// go-cni's configuration of loopback is of a version without CHECK.
	checker, err := open(1, gocni.WithDefaultConf)
	if err != nil {
		return err
	}
	if err := c.Status(); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	// How the pod's namespace is when Remove is called.
	for i, remove := range []func(id string) error{
		func(id string) error { return twice(func() error { return c.Remove(ctx, id, netns[0]) }) },
		func(id string) error { return twice(func() error { return c.Remove(ctx, id, "") }) },
		func(id string) error { return c.Remove(ctx, id, netns[2]+"-gone") },
	} {
		id := fmt.Sprintf("pod%d", i)
		labels := gocni.WithLabels(map[string]string{"K8S_POD_NAMESPACE": "lab", "K8S_POD_NAME": id, "IgnoreUnknown": "1"})
		res, err := c.Setup(ctx, id, netns[i], labels)
		if err != nil {
			return fmt.Errorf("setup %s: %w", id, err)
		}
		if eth0 := res.Interfaces["eth0"]; eth0 == nil || len(eth0.IPConfigs) == 0 || !strings.HasPrefix(eth0.Mac, "0a:58:") {
			return fmt.Errorf("setup %s: eth0 of the result is %+v", id, eth0)
		}
		if _, err := c.Setup(ctx, id, netns[i], labels); err == nil {
			return fmt.Errorf("setup %s again: no error", id)
		}
		if err := checker.Check(ctx, id, netns[i], labels); err != nil {
			return fmt.Errorf("check %s: %w", id, err)
		}
		if err := remove(id); err != nil {
			return fmt.Errorf("remove %s: %w", id, err)
		}
		if err := checker.Check(ctx, id, netns[i], labels); err == nil {
			return fmt.Errorf("check %s after remove: no error", id)
		}
	}
	if err := c.Remove(ctx, "never-seen", ""); err != nil {
		return fmt.Errorf("remove of an unknown pod: %w", err)
	}
	return c.Status()
}

func twice(fn func() error) error { return errors.Join(fn(), fn()) }

func TestGoCNIDrivesThePlugin(t *testing.T) {
	c := startCluster(t, oneNode())
	r := c.Runtimes[0]
	var netns []string
	for _, name := range []string{"a", "b", "c"} {
		ns, err := c.NewPod(name)
		if err != nil {
			t.Fatal(err)
		}
		netns = append(netns, ns.Path())
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := slices.Concat([]string{goCNIArg, r.ConfDir, strings.Join(r.Path, ":")}, netns)
	cmd := r.Node.Command(self, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
	wantEmpty(t, r.Node)
}

// wantEmpty fails the test if pods have left links or slots on the node.
func wantEmpty(t *testing.T, n *netlab.Node) {
	t.Helper()
	if links := podLinks(t, n); len(links) > 0 {
		t.Errorf("%s: links left: %v", n.Name, links)
	}
	pods, err := n.API().Pods(t.Context())
	if err != nil || len(pods) > 0 {
		t.Errorf("%s: slots left: %+v %v", n.Name, pods, err)
	}
	s, err := n.API().Status(t.Context())
	if err != nil || s.Slots.Held != 0 {
		t.Errorf("%s: slots held: %+v %v", n.Name, s.Slots, err)
	}
}
