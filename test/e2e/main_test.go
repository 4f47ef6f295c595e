package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// The folders of the binaries under test; TestMain sets them before any test
// runs.
var binDir, pluginDir string

// modes are overlayd's ways to resolve. What holds in one holds in the other.
var modes = []string{"eager", "on-miss"}

func TestMain(m *testing.M) {
	if exit, asked := cluster.Serve(); asked {
		os.Exit(exit)
	}
	if exit, asked := serveRuntime(); asked {
		os.Exit(exit)
	}
	overlap()
	os.Exit(run(m))
}

// overlap lets more tests run at once than there are processors, unless somebody
// said how many: most of their time they wait.
func overlap() {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", netlab.Prefix()+"bin-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		binDir, pluginDir = dir, filepath.Join(dir, "plugins")
		err = errors.Join(build(), sweep())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// build builds what the tests drive: our binaries, and the CNI plugins that are
// tools of this module.
func build() error {
	daemon := []string{"build", "-o", binDir + "/"}
	if raced {
		daemon = append(daemon, "-race")
	}
	for _, c := range []struct {
		dir  string
		cgo  string
		args []string
	}{
		{"../..", "1", append(daemon, "./cmd/overlayd")},
		{"../..", "0", []string{"build", "-o", binDir + "/", "./cmd/vxlan-cni", "./cmd/overlayctl"}},
		{".", "0", []string{"build", "-o", pluginDir + "/", "tool"}},
	} {
		cmd := exec.Command("go", c.args...)
		cmd.Dir = c.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+c.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(c.args, " "), err, out)
		}
	}
	return nil
}

// sweep removes what an earlier run left that was killed.
func sweep() error {
	labs, err := netlab.Abandoned(false)
	for _, l := range labs {
		err = errors.Join(err, l.Close())
	}
	return err
}

// newCluster makes a Cluster that goes with the test, with nothing started.
func newCluster(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	return newClusterBy(t, o, func(_ context.Context, o cluster.Options) (*cluster.Cluster, error) { return cluster.New(o) })
}

// startCluster makes a Cluster that goes with the test, with everything
// running; flags are for every overlayd.
func startCluster(t *testing.T, o cluster.Options, flags ...string) *cluster.Cluster {
	t.Helper()
	o.Flags = append(o.Flags, flags...)
	return newClusterBy(t, o, cluster.Start)
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

func newClusterBy(t *testing.T, o cluster.Options, fn func(context.Context, cluster.Options) (*cluster.Cluster, error)) *cluster.Cluster {
	t.Helper()
	netlab.NeedRoot(t)
	o.Name = notInName.ReplaceAllString(strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), "-")
	o.Name = o.Name[:min(len(o.Name), 40)] // a socket's path has 107 bytes
	o.Bin, o.Plugins = binDir, []string{pluginDir}
	c, err := fn(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { finish(t, c) })
	return c
}

// finish removes the cluster. What a daemon must never write fails the test.
func finish(t *testing.T, c *cluster.Cluster) {
	for _, n := range c.Nodes {
		log, err := os.ReadFile(n.Log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if strings.Contains(string(log), bad) {
				t.Errorf("%s: overlayd's log has %q", n.Name, bad)
			}
		}
	}
	if t.Failed() {
		t.Log(c.Logs(40))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// addPods attaches pods of the given names to every node.
func addPods(t *testing.T, c *cluster.Cluster, names ...string) (pods []*cluster.Pod) {
	t.Helper()
	for _, r := range c.Runtimes {
		for _, name := range names {
			p, err := r.Add(t.Context(), name, nil)
			if err != nil {
				t.Fatal(err)
			}
			pods = append(pods, p)
		}
	}
	return pods
}

// startPings pings from one pod to another, and returns once there was an
// answer.
func startPings(t *testing.T, from, to *cluster.Pod, interval time.Duration) *netlab.Pinger {
	t.Helper()
	g, err := netlab.StartPings(from.NS, netlab.Pings{To: to.Addr, Interval: interval})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Stop() })
	answer(t, g, time.Now())
	return g
}

// answer waits until a ping sent after since is answered.
func answer(t *testing.T, g *netlab.Pinger, since time.Time) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := g.Answer(ctx, since)
	if err != nil {
		t.Fatal(err, "\n", g.Report())
	}
	return d
}

// tables is what the node's kernel holds for the overlay, as ip and bridge
// write it, one sorted line each.
func tables(t *testing.T, n *netlab.Node) string {
	t.Helper()
	var lines []string
	for _, c := range []string{
		"ip route show table all dev " + cluster.Device + " proto 77",
		"ip -6 route show table all dev " + cluster.Device + " proto 77",
		"ip neigh show dev " + cluster.Device + " nud permanent",
		"bridge fdb show dev " + cluster.Device,
	} {
		words := strings.Fields(c)
		out, err := n.Output(words[0], words[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); words[0] != "bridge" || strings.Contains(line, " dst ") {
				lines = append(lines, words[0]+" "+line)
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// podLinks lists the node's links that are neither its own nor overlayd's.
func podLinks(t *testing.T, n *netlab.Node) (names []string) {
	t.Helper()
	all, err := n.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if !slices.Contains([]string{"lo", "eth0", cluster.Device, cluster.Device6, cluster.Bridge}, l) {
			names = append(names, l)
		}
	}
	return names
}
