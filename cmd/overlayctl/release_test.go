package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// A daemon answers for leases, and remembers what was to be released.
type daemon struct {
	dir    string
	answer func(http.ResponseWriter)

	mu       sync.Mutex
	released []api.Release
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{dir: t.TempDir(), answer: func(w http.ResponseWriter) { _, _ = w.Write([]byte("{}")) }}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(d.dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathLeases, func(w http.ResponseWriter, r *http.Request) {
		expiry := ""
		if r.URL.Query().Get("expiry") == "1" {
			expiry = `,"expiry":"2126-01-01T00:00:00Z"`
		}
		_, _ = io.WriteString(w, `[{"node":"node-a","subnets":["10.244.1.0/24"],"own":true},
			{"node":"node-b","subnets":["10.244.2.0/24","fd00:2::/64"],"revision":8`+expiry+`},
			{"subnets":["10.244.2.0/23"],"key":"10.244.2.0-23","ignored":"overlaps","conflict":true}]`)
	})
	mux.HandleFunc("POST "+api.PathRelease, func(w http.ResponseWriter, r *http.Request) {
		var want api.Release
		if err := json.NewDecoder(r.Body).Decode(&want); err != nil {
			t.Error(err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.released = append(d.released, want)
		d.answer(w)
	})
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	server.Start()
	t.Cleanup(server.Close)
	return d
}

// took returns what was asked for since the last call.
func (d *daemon) took() []api.Release {
	d.mu.Lock()
	defer d.mu.Unlock()
	took := d.released
	d.released = nil
	return took
}

func TestLeaseRelease(t *testing.T) {
	d := newDaemon(t)
	want := api.Release{Node: "node-b", Revision: 8}
	for _, args := range [][]string{
		{"lease", "release", "--yes", "node-b", "--run-dir", d.dir},
		{"--run-dir", d.dir, "lease", "release", "node-b", "--yes"},
		{"lease", "--run-dir", d.dir, "release", "-yes", "node-b"},
	} {
		status, out, errs := call(t, args...)
		if status != exitOK || out != "released 10.244.2.0/24, fd00:2::/64 of node-b\n" || errs != "" {
			t.Errorf("%q: exit %d, output %q, errors %q", args, status, out, errs)
		}
		if took := d.took(); len(took) != 1 || took[0] != want {
			t.Errorf("%q: overlayd was asked %+v, want %+v", args, took, want)
		}
	}
	if status, out, _ := call(t, "lease", "release", "node-b", "--yes", "-o", "json", "--run-dir", d.dir); status != exitOK || out != "{}\n" {
		t.Errorf("-o json: exit %d, output %q", status, out)
	}
}

func TestLeaseReleaseFailures(t *testing.T) {
	d := newDaemon(t)
	for _, c := range []struct {
		name   string
		args   []string
		answer func(http.ResponseWriter)
		status int
		want   string
		asked  bool
	}{
		{"nobody to ask", []string{"node-b"}, nil, exitUsage, "overlayctl: nobody can be asked, for standard input is no terminal: want --yes; see overlayctl lease release --help\n", false},
		{"no node", nil, nil, exitUsage, "overlayctl: lease release takes one node, got []; see overlayctl lease release --help\n", false},
		{"two nodes", []string{"node-b", "node-c"}, nil, exitUsage, "overlayctl: lease release takes one node, got [\"node-b\" \"node-c\"]; see overlayctl lease release --help\n", false},
		{"flag behind the node", []string{"node-b", "--force"}, nil, exitUsage, "overlayctl: unknown flag --force; see overlayctl lease release --help\n", false},
		{"this node", []string{"node-a", "--yes"}, nil, exitError, "overlayctl: \"node-a\" is this node, and its overlayd runs: it would take its lease again; stop it, and release the lease from another node\n", false},
		{"unknown node", []string{"node-c", "--yes"}, nil, exitError, "overlayctl: \"node-c\" holds no lease; overlayctl leases shows who does\n", false},
		{"changed", []string{"node-b", "--yes"}, func(w http.ResponseWriter) { http.Error(w, "it has changed", http.StatusConflict) }, exitError, "overlayctl: it has changed\n", true},
		{"store away", []string{"node-b", "--yes"}, func(w http.ResponseWriter) { http.Error(w, "no answer", http.StatusServiceUnavailable) }, exitError, "overlayctl: ask overlayd for /v1/release: 503 Service Unavailable: no answer\n", true},
		{"taken back", []string{"node-b", "--yes"}, func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"takenBack":true}`) }, exitError, "overlayctl: \"node-b\" took its lease again: its overlayd runs; stop it first\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.answer != nil {
				d.answer = c.answer
			}
			status, out, errs := call(t, append([]string{"lease", "--run-dir", d.dir, "release"}, c.args...)...)
			if status != c.status || errs != c.want || out != "" {
				t.Errorf("exit %d, want %d; output %q, want none; errors\n%swant\n%s", status, c.status, out, errs, c.want)
			}
			if took := d.took(); (len(took) > 0) != c.asked {
				t.Errorf("overlayd was asked %+v", took)
			}
		})
	}
	for args, want := range map[string]string{
		"lease":        "overlayctl: no command: want release; see overlayctl lease --help\n",
		"lease revoke": "overlayctl: unknown command \"revoke\": want release; see overlayctl lease --help\n",
	} {
		if status, _, errs := call(t, strings.Fields(args)...); status != exitUsage || errs != want {
			t.Errorf("%s: exit %d, errors %q, want %q", args, status, errs, want)
		}
	}
}

func TestLeaseReleaseAsks(t *testing.T) {
	d := newDaemon(t)
	for answer, released := range map[bool]int{true: 1, false: 0} {
		p := newProgram(look{})
		var asked string
		p.ask = func(question string) (bool, error) {
			asked = question
			return answer, nil
		}
		_, err := p.execute(t.Context(), []string{"lease", "release", "node-b", "--run-dir", d.dir})
		if (err == nil) != answer || len(d.took()) != released {
			t.Errorf("answered %t: %v", answer, err)
		}
		if !strings.Contains(asked, "10.244.2.0/24, fd00:2::/64 of node-b?") {
			t.Errorf("asked %q", asked)
		}
	}
}

// TestAskerOnATerminal types into a pseudo-terminal.
func TestAskerOnATerminal(t *testing.T) {
	for typed, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "yeah\n": false, "\x04": false} {
		master, slave := pseudoTerminal(t)
		if _, err := master.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if got, err := asker(slave, &out)("Really?"); got != want || err != nil || out.String() != "Really? [y/N] " {
			t.Errorf("typed %q: %t, %v after %q, want %t", typed, got, err, out.String(), want)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, in := range []io.Reader{null, strings.NewReader("y\n")} {
		if ok, err := asker(in, io.Discard)("Really?"); ok || !errors.Is(err, errNoTerminal) {
			t.Errorf("without a terminal: %t, %v", ok, err)
		}
	}
}

func pseudoTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(fd, "slave")
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

func TestLeasesWithExpiry(t *testing.T) {
	d := newDaemon(t)
	years := short(time.Until(time.Date(2126, 1, 1, 0, 0, 0, 0, time.UTC)))
	years = years[:strings.IndexByte(years, 'd')]
	for _, c := range []struct {
		args []string
		want bool
	}{{[]string{"leases"}, false}, {[]string{"leases", "--expiry"}, true}} {
		status, out, errs := call(t, append(c.args, "--run-dir", d.dir)...)
		if status != exitOK || strings.Contains(out, years+"d") != c.want || !strings.Contains(out, "conflict: overlaps") {
			t.Errorf("%q: exit %d, errors %q, output\n%s", c.args, status, errs, out)
		}
	}
}
