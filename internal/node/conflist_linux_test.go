package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/deploy"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// conflist waits until the file is there and says what it should.
func (r *running) conflist(what string, want []byte) {
	r.t.Helper()
	eventually(r.t, what, func() error {
		got, err := os.ReadFile(filepath.Join(r.cfg.CNIConfDir, deploy.ConflistName))
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("it says %q, want %q", got, want)
		}
		return err
	})
}

// TestConflistComesWithReadiness: not before pods can start, again whenever
// somebody takes it away, and for good.
func TestConflistComesWithReadiness(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	store.Outage(true)
	dir := t.TempDir()
	path := filepath.Join(dir, deploy.ConflistName)
	if err := os.WriteFile(filepath.Join(dir, "."+deploy.ConflistName+".tmp"), []byte("of a daemon that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, store, func(c *Config) { c.CNIConfDir = dir })
	eventually(t, "it waits for the store", func() error { _, err := r.client.Status(t.Context()); return err })
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the lease: %v, want no conflist", err)
	}
	store.Outage(false)
	r.ready()
	want, err := r.cfg.conflist()
	if err != nil {
		t.Fatal(err)
	}
	r.conflist("written", want)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	for what, change := range map[string]func() error{
		"removed":         func() error { return os.Remove(path) },
		"changed":         func() error { return os.WriteFile(path, []byte("{}"), 0o600) },
		"moved away":      func() error { return os.Rename(path, filepath.Join(dir, "99-disabled")) },
		"moved over":      func() error { return errors.Join(os.WriteFile(dir+"/x", nil, 0o600), os.Rename(dir+"/x", path)) },
		"made unreadable": func() error { return os.Chmod(path, 0) },
		"made a pipe":     func() error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		eventually(t, what, func() error {
			info, err := os.Lstat(path)
			if err == nil && info.Mode() != 0o644 {
				err = fmt.Errorf("mode %s", info.Mode())
			}
			return err
		})
		r.conflist(what, want)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	r.end()
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("after the daemon's end: %v, want it as it was", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); left != nil {
		t.Errorf("%v is left", left)
	}
}

// TestConflistThatCannotBeWritten: the node is not ready, says why, and is once
// it can be.
func TestConflistThatCannotBeWritten(t *testing.T) {
	underlay(t)
	dir := filepath.Join(t.TempDir(), "net.d")
	store := subnettest.NewStore(network(t))
	m := &reporter{Manager: store.Manager()}
	r := startWith(t, m, func(c *Config) { c.CNIConfDir = dir })
	eventually(t, "the reason", func() error {
		s, err := r.client.Status(t.Context())
		if err == nil && (s.Ready || !strings.Contains(s.Kernel.LastError, deploy.ConflistName)) {
			err = fmt.Errorf("ready %t, last error %q", s.Ready, s.Kernel.LastError)
		}
		return err
	})
	// Each try says it in the log, and the first to the admins.
	for i := range 3 {
		put(t, store, lease(fmt.Sprint("peer", i), fmt.Sprintf("10.244.%d.0/24", 77+i), fmt.Sprintf("192.0.2.%d", 77+i), byte(77+i)))
		eventually(t, "another try", func() error {
			if n := strings.Count(r.log.String(), "conflist not written"); n < i+2 {
				return fmt.Errorf("%d tries", n)
			}
			return nil
		})
	}
	m.mu.Lock()
	told := strings.Join(m.all, "\n")
	m.mu.Unlock()
	if strings.Count(told, reportUnwritable) != 1 || strings.Contains(told, reportHolds) {
		t.Errorf("told %s", told)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if !r.readyWithin(2 * retryMax) {
		t.Error("the node is not ready although the folder is there")
	}
}

// TestConflistTemplate: the operator's file is what is written.
func TestConflistTemplate(t *testing.T) {
	underlay(t)
	template := filepath.Join(t.TempDir(), "mine")
	mine := []byte(`{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"vxlan-cni"},{"type":"tuning"}]}`)
	if err := os.WriteFile(template, mine, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := start(t, subnettest.NewStore(network(t)), func(c *Config) { c.CNIConfDir, c.CNIConfTemplate = dir, template })
	r.ready()
	r.conflist("the template", mine)
}

func TestConflistOfConfig(t *testing.T) {
	c := Default()
	if got, err := c.conflist(); err != nil || !bytes.Equal(got, deploy.Conflist) || checkConflist(got) != nil {
		t.Errorf("%s, %v, want deploy's", got, err)
	}
	c.RunDir = `/a "b"`
	got, err := c.conflist()
	var list struct{ Plugins []map[string]any }
	if err := errors.Join(err, json.Unmarshal(got, &list)); err != nil || list.Plugins[0]["type"] != pluginType || list.Plugins[0]["runDir"] != c.RunDir {
		t.Errorf("%s, %v, want runDir %q", got, err, c.RunDir)
	}
	template := filepath.Join(t.TempDir(), "template")
	c.CNIConfTemplate = template
	for text, want := range map[string]string{
		"":                     "configuration list",
		"[]":                   "configuration list",
		`{"cniVersion":"1.0"}`: `"name"`,
		`{"name":"x","plugins":[{"type":"vxlan-cni"}]}`:                    `"cniVersion"`,
		`{"cniVersion":"1.0.0","name":"x"}`:                                "vxlan-cni among",
		`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"flannel"}]}`: "vxlan-cni among",
	} {
		if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.conflist(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), template) {
			t.Errorf("%q: %v, want an error that says %q", text, err, want)
		}
	}
}

// readyWithin waits longer than ready does.
func (r *running) readyWithin(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if s, err := r.client.Status(r.t.Context()); err == nil && s.Ready {
			return true
		}
	}
	return false
}

func FuzzConcernsConflist(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'a', 0, 0, 0})
	f.Fuzz(func(_ *testing.T, events []byte) { _, _ = concernsConflist(events) })
}
