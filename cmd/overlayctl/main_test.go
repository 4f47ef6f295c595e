package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
)

// runFolder starts a daemon's API that answers with the JSON texts of answers,
// by path, and returns the run folder that its socket is in.
func runFolder(t *testing.T, answers map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, body := range answers {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, body) // the test sees what comes of it
		})
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	server.Start()
	t.Cleanup(server.Close)
	return dir
}

// call runs a command line and returns the exit status and what was printed.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	status = run(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCommands: every command asks the right path, as a table and as JSON.
func TestCommands(t *testing.T) {
	dir := runFolder(t, map[string]string{
		api.PathStatus: encode(t, healthy()),
		api.PathPeers:  `[{"node":"peer-node","inSync":true}]`,
		api.PathPods:   `[{"pod":"ns/pod-name","link":"veth0"}]`,
		api.PathLeases: `[{"node":"lease-node"}]`,
		api.PathMisses: `[{"kind":"L3MISS","node":"miss-node"}]`,
		api.PathEvents: `[{"kind":"sweep","text":"event-text"}]`,
	})
	for command, want := range map[string]string{
		"status": "node-a", "peers": "peer-node", "pods": "ns/pod-name", "leases": "lease-node",
		"misses": "miss-node", "events": "event-text", "version": "v0.2.0",
	} {
		t.Run(command, func(t *testing.T) {
			status, out, errs := call(t, "--run-dir", dir, command)
			if status != exitOK || !strings.Contains(out, want) || errs != "" {
				t.Errorf("exit %d, output %q, errors %q, want 0, …%s… and none", status, out, errs, want)
			}
			status, out, errs = call(t, command, "-o", "json", "--run-dir="+dir)
			if status != exitOK || !json.Valid([]byte(out)) || !strings.Contains(out, want) || errs != "" {
				t.Errorf("-o json: exit %d, output %q, errors %q, want 0, JSON with %s and none", status, out, errs, want)
			}
		})
	}
}

// TestJSONIsTheDaemons: not re-encoded, so nothing is lost or added; flags work
// on either side of the command.
func TestJSONIsTheDaemons(t *testing.T) {
	dir := runFolder(t, map[string]string{api.PathPeers: `[{"zeta":1.50,"node":"b","subnets":null}]`})
	const want = "[\n  {\n    \"zeta\": 1.50,\n    \"node\": \"b\",\n    \"subnets\": null\n  }\n]\n"
	for _, args := range [][]string{
		{"--run-dir", dir, "-o", "json", "peers"},
		{"-run-dir", dir, "peers", "-o=json"},
		{"-o", "json", "peers", "--run-dir", dir},
		{"-o", "table", "--run-dir", "/wrong", "peers", "--run-dir", dir, "-o", "json"}, // the last one counts
	} {
		if status, out, errs := call(t, args...); status != exitOK || out != want {
			t.Errorf("%q: exit %d, errors %q, output\n%swant\n%s", args, status, errs, out, want)
		}
	}
}

func TestStatusOfANodeThatIsNotReady(t *testing.T) {
	dir := runFolder(t, map[string]string{api.PathStatus: `{"node":"a","notReady":["the lease is not held"]}`})
	for _, format := range []string{"table", "json"} {
		status, out, errs := call(t, "status", "--run-dir", dir, "-o", format)
		if status != exitNotReady || !strings.Contains(out, "the lease is not held") || errs != "" {
			t.Errorf("-o %s: exit %d, output %q, errors %q, want %d, the reason and none", format, status, out, errs, exitNotReady)
		}
	}
}

func TestVersionNeedsNoDaemon(t *testing.T) {
	status, out, errs := call(t, "version", "--run-dir", t.TempDir())
	if status != exitOK || !strings.Contains(out, "overlayctl") || !strings.Contains(out, "unknown: overlayd is not running") || errs != "" {
		t.Errorf("exit %d, output %q, errors %q, want 0, our build and why the daemon's is unknown", status, out, errs)
	}
	status, out, _ = call(t, "version", "-o", "json", "--run-dir", t.TempDir())
	var v versions
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != exitOK {
		t.Fatalf("exit %d, output %q: %v", status, out, err)
	}
	if v.Client.Go == "" || v.Daemon != "" || v.Unreachable == "" {
		t.Errorf("version -o json = %+v, want our build and why the daemon's is unknown", v)
	}
}

func TestFailures(t *testing.T) {
	dir := runFolder(t, map[string]string{api.PathPeers: `{"not":"a list"}`})
	missing := t.TempDir()
	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string // the whole line, but for the part of a path
	}{
		{"no daemon", []string{"peers", "--run-dir", missing}, exitError, "overlayctl: overlayd is not running on this node, or --run-dir is wrong (no socket at " + missing + "/overlayd.sock)\n"},
		{"status without daemon", []string{"status", "--run-dir", missing}, exitError, "overlayctl: overlayd is not running on this node, or --run-dir is wrong (no socket at " + missing + "/overlayd.sock)\n"},
		{"older daemon", []string{"pods", "--run-dir", dir}, exitError, "overlayctl: overlayd does not know /v1/pods; is it older than this program? (overlayctl version tells)\n"},
		{"other types", []string{"peers", "--run-dir", dir}, exitError, "overlayctl: read overlayd's answer to /v1/peers, is it of another version? (overlayctl version tells): json: cannot unmarshal object into Go value of type []api.Peer\n"},
		{"no command", nil, exitUsage, "overlayctl: no command: want one of status, peers, pods, leases, lease, misses, events, migrate, install, uninstall, version; see overlayctl --help\n"},
		{"unknown command", []string{"peer"}, exitUsage, "overlayctl: unknown command \"peer\": want one of status, peers, pods, leases, lease, misses, events, migrate, install, uninstall, version; see overlayctl --help\n"},
		{"help for an unknown command", []string{"help", "peer"}, exitUsage, "overlayctl: unknown command \"peer\": want one of status, peers, pods, leases, lease, misses, events, migrate, install, uninstall, version; see overlayctl --help\n"},
		{"unknown flag", []string{"--rundir", "x", "peers"}, exitUsage, "overlayctl: unknown flag --rundir; see overlayctl --help\n"},
		{"unknown flag of a command", []string{"peers", "--wide"}, exitUsage, "overlayctl: unknown flag --wide; see overlayctl peers --help\n"},
		{"flag without value", []string{"peers", "--run-dir"}, exitUsage, "overlayctl: flag needs an argument: -run-dir; see overlayctl peers --help\n"},
		{"format", []string{"peers", "-o", "xml"}, exitUsage, "overlayctl: invalid value \"xml\" for flag -o: want table or json; see overlayctl peers --help\n"},
		{"argument", []string{"peers", "node-b"}, exitUsage, "overlayctl: peers takes no arguments, got [\"node-b\"]; see overlayctl peers --help\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out, errs := call(t, c.args...)
			if status != c.status || errs != c.want || out != "" {
				t.Errorf("exit %d, want %d; output %q, want none; errors\n%swant\n%s", status, c.status, out, errs, c.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	_, root, _ := call(t, "--help")
	for _, want := range []string{"Exit status:", "Usage: overlayctl [flags] <command>", "--run-dir folder", "-o format", "(default /run/vxlan-cni)"} {
		if !strings.Contains(root, want) {
			t.Errorf("help lacks %q:\n%s", want, root)
		}
	}
	for _, command := range newProgram(look{}).tree().Subcommands {
		if !strings.Contains(root, command.Name+" ") || !strings.Contains(root, command.ShortHelp) {
			t.Errorf("help lacks %s:\n%s", command.Name, root)
		}
		want := command.ShortHelp + "\n\nUsage: overlayctl " + command.Name + " [flags]\n\nFlags:\n"
		if len(command.Subcommands) > 0 {
			want = command.ShortHelp + "\n\nUsage: overlayctl " + command.Name + " [flags] <command>\n\nCommands:\n"
		}
		for _, args := range [][]string{{command.Name, "--help"}, {command.Name, "-h"}, {"help", command.Name}} {
			status, out, errs := call(t, args...)
			if status != exitOK || !strings.HasPrefix(out, want) || errs != "" {
				t.Errorf("%q: exit %d, errors %q, output\n%swant\n%s", args, status, errs, out, want)
			}
		}
	}
}

// TestHelpTellsDefaultsThatAreThere: nothing and false are none.
func TestHelpTellsDefaultsThatAreThere(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"migrate", "--help"}, {"leases", "--help"}, {"install", "--help"}} {
		_, out, _ := call(t, args...)
		if strings.Contains(out, "(default )") || strings.Contains(out, "(default false)") || !strings.Contains(out, "(default table)") {
			t.Errorf("%q:\n%s", args, out)
		}
	}
}

func TestOwnVersion(t *testing.T) {
	status, out, errs := call(t, "--version")
	if want := "overlayctl " + version.Read().String() + "\n"; status != exitOK || out != want || errs != "" {
		t.Errorf("exit %d, output %q, errors %q, want %q", status, out, errs, want)
	}
}

// full is a writer on a full disk.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestOutputThatCannotBeWritten(t *testing.T) {
	var errs strings.Builder
	status := run(context.Background(), []string{"--help"}, full{}, &errs)
	if want := "overlayctl: write the answer: no space left on device\n"; status != exitError || errs.String() != want {
		t.Errorf("exit %d, errors %q, want %d, %q", status, errs.String(), exitError, want)
	}
}
