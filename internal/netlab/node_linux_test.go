package netlab

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// standIn is what the test binary is when it is started with overlayd's flags:
// ready once the run folder has a file called ready, ended by SIGTERM unless
// its last flag says that it is deaf.
func standIn(args []string) int {
	dir := args[slices.Index(args, "--run-dir")+1]
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Fprintln(os.Stderr, "started with", args)
	if args[len(args)-1] == "broken" {
		return 1
	}
	socket := filepath.Join(dir, api.SocketName)
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := os.Stat(filepath.Join(dir, "ready")); err != nil {
				http.Error(w, "no lease yet", http.StatusServiceUnavailable)
				return
			}
			_, _ = fmt.Fprintln(w, "ok", r.URL.Path)
		}))
	}()
	<-term
	if args[len(args)-1] == "deaf" {
		select {}
	}
	return 0
}

func TestNodeRunsItsDaemon(t *testing.T) {
	l := testLab(t, Options{Nodes: 1, Daemon: os.Args[0], Flags: []string{"--resolve", "eager"}})
	n := l.Nodes[0]
	if err := n.Start("--log-level", "debug"); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err == nil {
		t.Error("started twice")
	}
	err := n.Ready(200 * time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "no lease yet") ||
		!strings.Contains(err.Error(), "started with [--run-dir") {
		t.Errorf("not ready: %v; want status, reason and log", err)
	}
	if err := os.WriteFile(filepath.Join(n.RunDir, "ready"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(10 * time.Second); err != nil {
		t.Error(err)
	}
	if text, err := n.Get(api.PathMetrics); err != nil || text != "ok /metrics\n" {
		t.Errorf("metrics: %q %v", text, err)
	}
	first := n.Daemon()
	inside, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", first.PID))
	if own, _ := os.Readlink("/proc/self/ns/net"); inside == "" || inside == own {
		t.Errorf("overlayd is in %q, this test in %q", inside, own)
	}
	if err := n.Restart(); err != nil {
		t.Fatal(err)
	}
	if n.Daemon() == first || first.Alive() || !n.Daemon().Alive() {
		t.Errorf("restart: was %v, is %v", first, n.Daemon())
	}
	if err := n.Ready(10 * time.Second); err != nil {
		t.Error(err)
	}
	if err := n.Kill(); err != nil || n.Daemon().Alive() {
		t.Errorf("kill: %v", err)
	}
	if err := n.Kill(); err != nil {
		t.Errorf("kill again: %v", err)
	}
	log, err := os.ReadFile(n.Log)
	want := fmt.Sprintf("started with [--run-dir %s --etcd-endpoints http://192.0.2.1:2379 --node-id n1 --iface eth0 --resolve eager --log-level debug]", n.RunDir)
	if got := strings.Count(string(log), want); err != nil || got != 2 {
		t.Errorf("%d of 2 starts logged as %q: %v\n%s", got, want, err, log)
	}
}

func TestNodeReportsADaemonThatEnds(t *testing.T) {
	l := testLab(t, Options{Nodes: 1, Daemon: os.Args[0]})
	n := l.Nodes[0]
	if err := n.Start("broken"); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	err := n.Ready(time.Minute)
	if err == nil || !strings.Contains(err.Error(), "has ended") || !strings.Contains(err.Error(), "started with") || time.Since(at) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(at), err)
	}
	if err := n.Stop(); err != nil {
		t.Errorf("stop of what has ended: %v", err)
	}
}

func TestStopKillsTheDeafAndSaysSo(t *testing.T) {
	l := testLab(t, Options{Nodes: 1, Daemon: os.Args[0]})
	n := l.Nodes[0]
	if err := os.WriteFile(filepath.Join(n.RunDir, "ready"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Start("deaf"); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err == nil || !strings.Contains(err.Error(), "after SIGTERM") || n.Daemon().Alive() {
		t.Errorf("stop: %v, alive %t", err, n.Daemon().Alive())
	}
}

func TestProcessOfAnotherTimeIsLeftAlone(t *testing.T) {
	p := self()
	p.Start-- // as if the number had been given to this test since
	if p.Alive() {
		t.Error("taken for alive")
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if !self().Alive() {
		t.Error("this test is not alive")
	}
}

// A lab is not to be blamed for what is left of one whose name begins like its own.
func TestLongerNamesAreOthers(t *testing.T) {
	for text, want := range map[string]bool{
		"/tmp/ovl-1-a/run": true, "--net=/run/netns/ovl-1-a-n1": true, "ovl-1-a": true, "x\x00ovl-1-ab/ ovl-1-a/run": true,
		"/tmp/ovl-1-ab/run": false, "/tmp/ovl-1-a1": false, "": false, "ovl-1-": false,
	} {
		if got := names(text, "ovl-1-a"); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}
