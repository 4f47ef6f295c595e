package netlab

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// orphan makes the lab look as if its owner had ended.
func orphan(t *testing.T, l *Lab) {
	t.Helper()
	path := filepath.Join(l.Dir, stateName)
	_, s, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Owner.Start-- // the number is in use again, by another process
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func find(t *testing.T, id string, kept bool) *Lab {
	t.Helper()
	labs, err := Abandoned(kept)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range labs {
		if l.ID == id {
			return l
		}
	}
	return nil
}

func TestAbandonedLabIsRemovedByAnother(t *testing.T) {
	for _, keep := range []bool{false, true} {
		l := testLab(t, Options{Nodes: 2, Keep: keep})
		if _, err := l.NewPod("a"); err != nil {
			t.Fatal(err)
		}
		p, err := start("sleep", exec.Command("sleep", "1000"), filepath.Join(l.Dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.add(p); err != nil {
			t.Fatal(err)
		}
		if find(t, l.ID, true) != nil {
			t.Fatal("a lab with a living owner counts as abandoned")
		}
		orphan(t, l)
		if got := find(t, l.ID, false); (got == nil) != keep {
			t.Errorf("keep %t, kept labs not asked for: found %v", keep, got)
		}
		got := find(t, l.ID, true)
		if got == nil {
			t.Fatalf("keep %t: not found", keep)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
		if p.Alive() {
			t.Errorf("%s is left", p)
		}
		if left := l.Leftovers(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		l.spaces, l.procs = nil, nil // they are gone already
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ovl-1-x")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, stateName)
	for _, c := range []struct{ text, want string }{
		{`{`, "unexpected end"},
		// Closing it would remove another lab's namespaces.
		{`{"id":"ovl-1-y"}`, `id "ovl-1-y"`},
		{`{"id":""}`, `id ""`},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := load(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want the path and %q", c.text, err, c.want)
		}
	}
	if _, _, err := load(filepath.Join(dir, "none")); err == nil {
		t.Error("no file is no error")
	}
}
