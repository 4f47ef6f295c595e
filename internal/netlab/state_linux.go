package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// stateName is the file, inside a lab's folder, from which another process can
// remove the lab.
const stateName = "lab.json"

// state is what that file holds.
type state struct {
	ID        string    `json:"id"`
	Owner     Process   `json:"owner"`
	Place     string    `json:"place"` // the owner's working folder: whose lab it is
	Kept      bool      `json:"kept"`
	Processes []Process `json:"processes"`
}

// save writes the lab's state, so that the lab can be removed even if its owner
// is killed. l.mu is held, or nobody else knows l yet.
func (l *Lab) save() error {
	place, err := os.Getwd()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(state{l.ID, self(), place, l.opts.Keep, l.procs}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, stateName)
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// Abandoned finds the labs whose owner has ended and worked in the folder that
// this process works in: another checkout's labs are another's. Those that were
// to be kept are among them only if kept is set. What is returned can only be
// closed.
func Abandoned(kept bool) ([]*Lab, error) {
	place, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(os.TempDir(), "ovl-*", stateName))
	if err != nil {
		return nil, err
	}
	var labs []*Lab
	var errs []error
	for _, f := range files {
		l, s, err := load(f)
		switch {
		case err != nil:
			errs = append(errs, err)
		case s.Place == place && !s.Owner.Alive() && (kept || !s.Kept):
			labs = append(labs, l)
		}
	}
	return labs, errors.Join(errs...)
}

func load(path string) (*Lab, state, error) {
	var s state
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return nil, s, fmt.Errorf("read lab %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	if s.ID != filepath.Base(dir) {
		return nil, s, fmt.Errorf("read lab %s: id %q, want the folder's name", path, s.ID)
	}
	l := &Lab{ID: s.ID, Dir: dir, procs: s.Processes}
	names, err := os.ReadDir(namespaceDir)
	if err != nil && !os.IsNotExist(err) {
		return nil, s, err
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), l.ID+"-") {
			l.spaces = append(l.spaces, &Namespace{Name: n.Name()})
		}
	}
	return l, s, nil
}
