package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// What runtimes send when something is gone, each with an attachment to remove.
func TestDelSucceedsWhateverIsGone(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		netns string // "": not set
		conf  []string
		args  string
		prior func(*netlab.Namespace)
	}{
		"netns empty":            {},
		"netns missing":          {netns: "/run/netns/nosuch"},
		"netns a plain file":     {netns: file},
		"netns the node's own":   {netns: n.ns.Path()},
		"node file gone":         {prior: func(*netlab.Namespace) { _ = os.Remove(filepath.Join(n.dir, "node.json")) }},
		"node file torn":         {prior: func(*netlab.Namespace) { _ = os.WriteFile(filepath.Join(n.dir, "node.json"), []byte("{"), 0o600) }},
		"link gone":              {prior: func(p *netlab.Namespace) { output(t, p, "ip link del eth0") }},
		"bridge gone":            {prior: func(*netlab.Namespace) { n.sh("ip link del cni0") }},
		"configuration from old": {conf: []string{`"keyOfAnotherVersion": 1`, `"ipMasq": true`, `"prevResult": {"ips": 7}`}},
		"arguments unknown":      {args: "Foo=bar;;=;IP=x"},
	} {
		t.Run(name, func(t *testing.T) {
			n.writeNodeFile("10.244.1.0/24")
			p := netlab.TestNamespace(t)
			e := podEnv(strings.ReplaceAll(name, " ", "-")+"x", p)
			e.container = strings.ReplaceAll(e.container, "'", "")
			n.ok(e, n.conf("1.0.0"))
			if test.prior != nil {
				test.prior(p)
			}
			e.verb, e.netns, e.args = "DEL", test.netns, test.args
			for range 3 {
				n.ok(e, n.conf("1.0.0", test.conf...))
			}
			if left := n.holds(); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
	if err := os.RemoveAll(n.dir); err != nil { // as after a reboot
		t.Fatal(err)
	}
	n.ok(env{verb: "DEL", container: "unknown", ifname: "eth0"}, n.conf("1.0.0"))
	if _, err := os.Stat(n.dir); err == nil {
		t.Error("DEL made a run folder")
	}
}

func TestDelRefusesBadNames(t *testing.T) {
	n := newNode(t)
	n.fails(env{verb: "DEL", container: "a/b", ifname: "eth0"}, n.conf("1.0.0"), 4, "containerID")
	n.fails(env{verb: "DEL", container: "a", ifname: "eth0:1"}, n.conf("1.0.0"), 4, "interface name")
	n.fails(env{verb: "DEL", ifname: "eth0"}, n.conf("1.0.0"), 4, "CNI_CONTAINERID")
	n.fails(env{verb: "DEL", container: "a", ifname: "eth0"}, n.conf("1.0.0", `"name": "a b"`), 7, "network name")
	n.fails(env{verb: "DEL", container: "a", ifname: "eth0"}, "{", 6, "config")
}

// A DEL that fails forgets nothing, and says so in words that go-cni does not
// take for success.
func TestFailedDelForgetsNothing(t *testing.T) {
	n := newNode(t)
	e := podEnv("abc", netlab.TestNamespace(t))
	n.ok(e, n.conf("1.0.0"))
	link := pod.HostName("abc", "eth0")
	n.sh("ip link set " + link + " group 0") // no longer ours
	before := n.holds()
	n.fails(e.with("DEL"), n.conf("1.0.0"), 5, "not ours to remove")
	if after := n.holds(); after != before {
		t.Errorf("held\n%sand now\n%s", before, after)
	}
	n.sh("ip link set " + link + " group 30275")

	slots, err := filepath.Glob(filepath.Join(n.dir, "slots-*"))
	if err != nil || len(slots) != 1 {
		t.Fatal(slots, err)
	}
	good, err := os.ReadFile(slots[0])
	if err == nil {
		err = os.WriteFile(slots[0], good[:len(good)-1], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.fails(e.with("DEL"), n.conf("1.0.0"), codeSlotFile, slots[0])
	if err := os.WriteFile(slots[0], good, 0o600); err != nil {
		t.Fatal(err)
	}
	n.ok(e.with("DEL"), n.conf("1.0.0"))
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	for _, err := range []error{
		fail(5, "thing not found"), fail(5, "open x: no such file or directory"), fail(5, "Not found: not found"),
	} {
		if text := retryable(err).Error(); strings.Contains(text, "not found") || strings.Contains(text, "no such file or directory") {
			t.Errorf("go-cni swallows %q", text)
		}
	}
}

// Whenever a plugin is killed, one GC finds all that it left.
func TestKilledAnywhereThenCollected(t *testing.T) {
	const rounds = 40
	n := newNode(t)
	n.ok(podEnv("first", netlab.TestNamespace(t)), n.conf("1.1.0")) // makes the bridge
	took := time.Now()
	n.ok(podEnv("second", netlab.TestNamespace(t)), n.conf("1.1.0"))
	whole := time.Since(took)
	random := rand.New(rand.NewPCG(1, 2))
	kept := `{"containerID": "first", "ifname": "eth0"}, {"containerID": "second", "ifname": "eth0"}`
	killed := 0
	for i := range rounds {
		e := podEnv(fmt.Sprintf("c%d", i), netlab.TestNamespace(t))
		cmd, _ := command(e, n.conf("1.1.0"))
		if err := n.ns.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.Int64N(int64(whole)))) // when it is killed is the test's input
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
	}
	if killed == 0 {
		t.Error("no plugin was killed in time")
	}
	n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": [`+kept+`]`))
	left := n.holds()
	if strings.Count(left, "slot ") != 2 || strings.Count(left, "link ") != 2 {
		t.Errorf("left behind beside first and second:\n%s", left)
	}
	t.Logf("%d of %d killed", killed, rounds)
}

// A damaged file of an earlier lease costs only itself.
func TestDamagedFileOfAnEarlierLease(t *testing.T) {
	n := newNode(t)
	before := podEnv("before", netlab.TestNamespace(t))
	n.ok(before, n.conf("1.0.0"))
	torn := filepath.Join(n.dir, "slots-10.244.77.0-24")
	if err := os.WriteFile(torn, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := podEnv("abc", netlab.TestNamespace(t))
	cmd, out := command(e, n.conf("1.0.0"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := n.ns.Do(cmd.Run); err != nil {
		t.Fatalf("ADD: %v: %s", err, out)
	}
	if !strings.Contains(stderr.String(), torn) {
		t.Errorf("ADD does not tell of %s: %q", torn, &stderr)
	}
	n.ok(e.with("DEL"), n.conf("1.0.0"))
	n.ok(before.with("DEL"), n.conf("1.0.0"))
	n.fails(e.with("DEL"), n.conf("1.0.0"), codeSlotFile, torn+": offset 4: ") // it may stand there
	n.fails(e.with("DEL"), n.conf("1.0.0"), codeSlotFile, "drain the node and delete the file")
	if err := os.Remove(torn); err != nil {
		t.Fatal(err)
	}
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
