package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// lockName is the file in the run folder that a running daemon locks.
const lockName = "overlayd.lock"

// refusedName is where a node file goes that is not believed: nothing is lost,
// and pods can start.
const refusedName = subnet.NodeFileName + ".refused"

// A runFolder is the run folder, locked.
type runFolder struct {
	dir  string
	file *os.File
}

// lock keeps a second daemon from working on the same run folder. The kernel
// lets go of it when the process ends, however that happens.
func lock(dir string) (runFolder, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return runFolder{}, fmt.Errorf("lock run folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return runFolder{}, fmt.Errorf("another overlayd works on %s: stop it first", dir)
		}
		return runFolder{}, fmt.Errorf("lock run folder: %w", err)
	}
	return runFolder{dir, f}, nil
}

// presence is an abstract socket, of which there is one in a network namespace,
// whatever run folder and container a daemon has.
const presence = "@vxlan-cni/overlayd"

// present holds the namespace's presence until the returned one is closed. Everybody
// on the node can take the name, so it must not keep a daemon from starting.
func present() (io.Closer, error) {
	conn, err := net.ListenPacket("unixgram", presence)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("another overlayd works in this network namespace, with another --run-dir (ss -xlp shows who holds the socket %s): stop it first", presence)
	}
	if err != nil {
		return nil, fmt.Errorf("look for another overlayd: %w", err)
	}
	return conn, nil
}

func (r runFolder) unlock() { _ = r.file.Close() }

// check returns an error if the path no longer leads to what was locked: then
// socket and lock are gone with the folder, and only a new start brings them
// back.
func (r runFolder) check() error {
	there, err := os.Stat(filepath.Join(r.dir, lockName))
	if err == nil {
		ours, oerr := r.file.Stat()
		if oerr == nil && os.SameFile(there, ours) {
			return nil
		}
	}
	return fmt.Errorf("the run folder %s was removed or replaced under the running daemon: it must be started anew", r.dir)
}

// held returns the subnets of the node file, which the running pods have: to
// be asked for again should the store have lost them. A file that is torn or of
// another node is put aside, not overwritten.
func (r runFolder) held(node string, log *slog.Logger) []netip.Prefix {
	f, err := subnet.ReadNodeFile(r.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && f.Node == node:
		return f.Subnets
	case err == nil:
		err = fmt.Errorf("node %q: want %q", f.Node, node)
	}
	path := filepath.Join(r.dir, subnet.NodeFileName)
	aside := filepath.Join(r.dir, refusedName)
	if rerr := os.Rename(path, aside); rerr != nil {
		err = errors.Join(err, rerr)
	}
	log.Warn("node file refused and put aside", "path", path, "to", aside, "error", err)
	return nil
}

// publish writes the node file, and then the conflist that makes the runtime use
// it, and says once that the node is ready. One peer that the kernel refuses does
// not keep pods from starting.
func (l *loop) publish() {
	for _, o := range l.overlays {
		if o.device.Config().Name != "" && o.device.Link().Index == 0 {
			return
		}
	}
	f := subnet.NodeFile{
		Schema: subnet.NodeFileSchema, Node: l.cfg.Node, Subnets: l.snapshot.Own.Subnets,
		MTU: l.mtu, Bridge: l.cfg.Bridge, Networks: l.networks(),
	}
	if l.bridgeMAC != nil {
		f.BridgeMAC = subnet.MAC(l.bridgeMAC)
	}
	err := f.Write(l.cfg.RunDir)
	if err == nil {
		err = l.cfg.writeConflist()
	}
	if err != nil {
		l.fatal = l.guard()
		l.log.Error("node file or conflist not written: pods cannot start", "error", err)
		if l.fatal == nil && l.unwritable != err.Error() {
			l.report(true, reportUnwritable, err.Error())
		}
		l.unwritable = err.Error()
		l.clock.setEarlier(retry, time.Now().Add(retryMax))
		return
	}
	l.unwritable = ""
	if !l.synced {
		l.synced = true
		l.ready()
		l.report(false, reportReady, fmt.Sprintf("pods get addresses of %v and MTU %d, their packets travel by %v on %s",
			l.snapshot.Own.Subnets, l.mtu, addrsOf(l.underlay), l.underlay.Interface))
	}
}
