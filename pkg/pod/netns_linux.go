package pod

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openNetns opens a network namespace's file and makes sure that it is one, and
// not the node's own: a default route there would cut the node off. It does not wait,
// as opening a pipe would.
func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("network namespace %q: %w: %w", path, err, ErrNetns)
	}
	success := false
	defer func() {
		if !success {
			_ = unix.Close(fd)
		}
	}()
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return -1, fmt.Errorf("%q is not a network namespace: %w", path, ErrNetns)
	}
	var theirs, own unix.Stat_t
	if err := unix.Fstat(fd, &theirs); err != nil {
		return -1, fmt.Errorf("network namespace %q: %w", path, err)
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Stat(self, &own); err != nil {
		return -1, fmt.Errorf("own network namespace: %w", err)
	}
	if theirs.Dev == own.Dev && theirs.Ino == own.Ino {
		return -1, fmt.Errorf("network namespace %q is the node's own: %w", path, ErrNetns)
	}
	success = true
	return fd, nil
}
