package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vxlan-cni/vxlan-cni/internal/atomicfile"
)

// Plugin is the program whose name is ours alone: it is replaced whoever put it
// there.
const Plugin = "vxlan-cni"

// A Node is where things are on a node. An empty folder is left alone.
type Node struct {
	BinDir  string // the runtime's plugins
	ConfDir string // the runtime's network configuration
	RunDir  string // overlayd's run folder
	DryRun  bool   // say what would be done, and do nothing
}

// A Step is what was done about one file or folder, or in a dry run would be.
type Step struct {
	Path   string `json:"path"`
	Action string `json:"action"`
	Why    string `json:"why,omitempty"`
}

// Actions of a Step.
const (
	Installed = "installed"
	Replaced  = "replaced"
	Unchanged = "unchanged"
	Removed   = "removed"
	Left      = "left" // as it is, for it is somebody else's
)

// Install copies each program in the folder from to the node. Files that are the
// same already are left alone. It attempts all, and joins the errors.
func (n Node) Install(from string) ([]Step, error) {
	if filepath.Clean(from) == filepath.Clean(n.BinDir) {
		return nil, fmt.Errorf("install: the plugins of %s would go to the same folder", from)
	}
	programs, err := os.ReadDir(from)
	if err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	noted, err := readNotes(n.BinDir)
	if err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	var steps []Step
	var errs []error
	for _, p := range programs {
		if !p.Type().IsRegular() {
			continue
		}
		step, err := n.install(filepath.Join(from, p.Name()), noted)
		if err != nil {
			errs = append(errs, fmt.Errorf("install %s: %w", p.Name(), err))
			continue
		}
		steps = append(steps, step)
	}
	if len(steps) == 0 && len(errs) == 0 {
		return nil, fmt.Errorf("install: no programs in %s", from)
	}
	if !n.DryRun {
		errs = append(errs, noted.write(), syncFolder(n.BinDir))
	}
	return steps, errors.Join(errs...)
}

// install copies one program. The note of it is written first: if we are killed
// in between, the file is known as ours whether it is the old one or the new.
func (n Node) install(source string, noted *notes) (Step, error) {
	name := filepath.Base(source)
	step := Step{Path: filepath.Join(n.BinDir, name)}
	want, err := hashOf(source)
	if err != nil {
		return step, err
	}
	have, err := hashOf(step.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		step.Action = Installed
	case err == nil && have == want && executable(step.Path):
		step.Action = Unchanged
		if name == Plugin || noted.has(name, have) {
			noted.keep(name, have)
		} else {
			step.Why = "somebody else put it there"
		}
		return step, nil
	case name == Plugin || err == nil && noted.has(name, have):
		step.Action = Replaced
	default:
		step.Action, step.Why = Left, "somebody else put another one there"
		noted.forget(name)
		return step, nil
	}
	if n.DryRun {
		return step, nil
	}
	noted.add(name, want)
	if err := noted.write(); err != nil {
		return step, err
	}
	if err := copyFile(source, step.Path); err != nil {
		return step, err
	}
	noted.keep(name, want)
	return step, nil
}

// copyFile puts a copy of a program in the place of whatever is at path.
func copyFile(source, path string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	return atomicfile.Write(path, 0o755, in)
}

// syncFolder makes renames in a folder outlive a power cut.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// errNotRegular is the error for what has no contents to compare.
var errNotRegular = errors.New("not a regular file")

// hashOf returns the SHA-256 of a regular file, in hex.
func hashOf(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s: %w", path, errNotRegular)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// executable says whether everybody may run a file.
func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm()&0o555 == 0o555
}
