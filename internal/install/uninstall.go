package install

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/deploy"
	"github.com/vxlan-cni/vxlan-cni/internal/atomicfile"
)

// lockName is the file that a running overlayd has locked. It also tells a run
// folder from any other.
const lockName = "overlayd.lock"

// pluginPath is what the Go linker notes in our plugin.
const pluginPath = "github.com/vxlan-cni/vxlan-cni/cmd/vxlan-cni"

// errRunning is the error where overlayd would put back what is removed.
var errRunning = errors.New("overlayd runs")

// Uninstall removes from the node the network configuration, the plugins that are
// ours, and the run folder. What is in the kernel is not its business. Under a running
// overlayd it does nothing. What is absent is no error, and no step.
func (n Node) Uninstall() ([]Step, error) {
	lock, err := n.lock()
	if err != nil {
		return nil, err
	}
	if lock != nil {
		defer func() { _ = lock.Close() }()
	}
	var steps []Step
	var errs []error
	// First what makes the runtime call the plugin, and last what it works with.
	for _, part := range []func() ([]Step, error){n.removeConf, n.removePrograms, n.removeRunDir} {
		did, err := part()
		steps, errs = append(steps, did...), append(errs, err)
	}
	return steps, errors.Join(errs...)
}

// lock keeps overlayd from starting meanwhile. It is nil where there is nothing
// to lock, or nothing will be done.
func (n Node) lock() (*os.File, error) {
	if n.RunDir == "" || n.DryRun {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(n.RunDir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w with %s: it would put back what is removed; stop it first", errRunning, n.RunDir)
		}
		return nil, fmt.Errorf("uninstall: lock %s: %w", n.RunDir, err)
	}
	return f, nil
}

func (n Node) removeConf() ([]Step, error) {
	if n.ConfDir == "" {
		return nil, nil
	}
	path := filepath.Join(n.ConfDir, deploy.ConflistName)
	return n.remove(nil, path, atomicfile.Temp(path))
}

func (n Node) removePrograms() ([]Step, error) {
	if n.BinDir == "" {
		return nil, nil
	}
	noted, err := readNotes(n.BinDir)
	if err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	if plugin := filepath.Join(n.BinDir, Plugin); noted.ours[Plugin] == nil && isPlugin(plugin) {
		if hash, err := hashOf(plugin); err == nil {
			noted.keep(Plugin, hash) // somebody copied it there by hand
		}
	}
	var steps []Step
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(noted.ours)) {
		path := filepath.Join(n.BinDir, name)
		hash, err := hashOf(path)
		if err == nil && noted.has(name, hash) {
			steps, err = n.remove(steps, path)
		} else if err == nil || errors.Is(err, errNotRegular) {
			steps, err = append(steps, Step{path, Left, "somebody else put another one there"}), nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		steps, err = n.remove(steps, atomicfile.Temp(path))
		errs = append(errs, err)
	}
	if errors.Join(errs...) == nil { // else the next attempt needs the notes
		var err error
		steps, err = n.remove(steps, noted.path, atomicfile.Temp(noted.path))
		errs = append(errs, err)
	}
	return steps, errors.Join(errs...)
}

// isPlugin says whether a file is a build of our plugin.
func isPlugin(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == pluginPath
}

// removeRunDir removes the run folder with all that is in it: nobody but us puts
// anything there. A folder that no overlayd ever locked is another one.
func (n Node) removeRunDir() ([]Step, error) {
	if n.RunDir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(n.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(n.RunDir, lockName)); err != nil && len(entries) > 0 {
		return []Step{{n.RunDir, Left, "no overlayd has run with it: it has no " + lockName}}, nil
	}
	var steps []Step
	var errs []error
	for _, e := range entries {
		path := filepath.Join(n.RunDir, e.Name())
		if e.Name() == lockName { // last: without it the rest is nobody's
			continue
		}
		if !n.DryRun {
			if err := os.RemoveAll(path); err != nil {
				errs = append(errs, fmt.Errorf("uninstall: %w", err))
				continue
			}
		}
		steps = append(steps, Step{Path: path, Action: Removed})
	}
	if err := errors.Join(errs...); err != nil {
		return steps, err
	}
	return n.removeFolder(steps)
}

// removeFolder removes the lock and then the folder. One that is mounted, as in a
// container, cannot be removed from there.
func (n Node) removeFolder(steps []Step) ([]Step, error) {
	steps, err := n.remove(steps, filepath.Join(n.RunDir, lockName))
	if err != nil {
		return steps, err
	}
	did, err := n.remove(nil, n.RunDir)
	if errors.Is(err, unix.EBUSY) {
		return append(steps, Step{n.RunDir, Left, "it is mounted here; it is empty"}), nil
	}
	return append(steps, did...), err
}

// remove adds to steps what it removes: of the paths those that are there.
func (n Node) remove(steps []Step, paths ...string) ([]Step, error) {
	var errs []error
	for _, path := range paths {
		_, err := os.Lstat(path)
		if err == nil && !n.DryRun {
			err = os.Remove(path)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, fmt.Errorf("uninstall: %w", err))
		default:
			steps = append(steps, Step{Path: path, Action: Removed})
		}
	}
	return steps, errors.Join(errs...)
}
