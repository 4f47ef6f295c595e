package kubelab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A hierarchy is one of the machine's cgroup v1 hierarchies.
type hierarchy struct {
	Name    string // such as memory
	Options string // to mount it
	Top     string // where the machine has it
	Guest   string // the guest's group in it
}

// hierarchies reads those that the machine has mounted.
func hierarchies() (list []hierarchy, err error) {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "cgroup" {
			continue
		}
		opts := slices.DeleteFunc(strings.Split(f[3], ","), func(o string) bool {
			general := []string{"rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr", "clone_children"}
			return slices.Contains(general, o) || strings.HasPrefix(o, "release_agent=")
		})
		if len(opts) > 0 && strings.HasPrefix(opts[0], "name=") {
			opts = append([]string{"none"}, opts...)
		}
		list = append(list, hierarchy{Name: filepath.Base(f[1]), Options: strings.Join(opts, ","), Top: f[1]})
	}
	if !slices.ContainsFunc(list, func(h hierarchy) bool { return h.Name == "memory" }) {
		return nil, errors.New("kubelab: needs the cgroup v1 hierarchies, such as /sys/fs/cgroup/memory")
	}
	return list, nil
}

// makeGroups makes the groups of a guest, below one group of the lab.
func makeGroups(lab, guest string) ([]hierarchy, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for i := range all {
		h := &all[i]
		h.Guest = filepath.Join(h.Top, lab, guest)
		if err := os.MkdirAll(h.Guest, 0o755); err != nil {
			return nil, err
		}
		// A group of the cpuset hierarchy takes no process before it has these.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.Top, f))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			for _, dir := range []string{filepath.Dir(h.Guest), h.Guest} {
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, f), value, 0)
				}
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// removeGroups ends the processes in the groups at path, such as "lab" or
// "lab/node1", and removes them.
func removeGroups(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	return netlab.Eventually(30*time.Second, func() error {
		var errs []error
		for _, h := range all {
			errs = append(errs, removeGroup(filepath.Join(h.Top, path)))
		}
		return errors.Join(errs...)
	})
}

func removeGroup(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		kill(d)
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove group %s: %w", d, err)
		}
	}
	return nil
}

// kill ends what is in a group: nobody but the lab puts processes there.
func kill(group string) {
	b, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	for word := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
