package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A watcher hears of changes of nftables, and of runs of the legacy iptables,
// which tells nobody but takes a lock file.
type watcher struct {
	nft     *rtnl.Watcher
	inotify *os.File
	raw     syscall.RawConn // of inotify
	lock    string          // path of the lock file
	once    sync.Once
}

// watch starts to listen. What happens from now on is not missed.
func watch() (*watcher, error) {
	nft, err := rtnl.WatchNetfilter(unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("listen to nftables: %w", err)
	}
	w := &watcher{nft: nft, lock: "/run/xtables.lock"}
	if path := os.Getenv("XTABLES_LOCKFILE"); path != "" {
		w.lock = path
	}
	if err := w.watchLock(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to %s: %w", w.lock, err), w.close())
	}
	return w, nil
}

// watchLock listens to the lock file, and to its folder for one that is made
// anew. In a container the file alone may be the host's, so that its folder
// tells nothing of it.
func (w *watcher) watchLock() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	if w.raw, err = w.inotify.SyscallConn(); err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(w.lock), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return w.watchFile()
}

// watchFile listens to the lock file that there is now.
func (w *watcher) watchFile() error {
	var werr error
	err := w.raw.Control(func(fd uintptr) {
		_, werr = unix.InotifyAddWatch(int(fd), w.lock, unix.IN_CLOSE)
	})
	if errors.Is(werr, unix.ENOENT) {
		return err
	}
	return errors.Join(err, werr)
}

// close ends the reading, too. It may be called twice.
func (w *watcher) close() (err error) {
	w.once.Do(func() {
		err = w.nft.Close()
		if w.inotify != nil {
			err = errors.Join(err, w.inotify.Close())
		}
	})
	return err
}

// Run reads notifications until ctx ends or the Firewall is closed.
func (f *Firewall) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx) // an error of one ends the other
	stop := context.AfterFunc(ctx, func() {
		_ = f.watch.close()
	})
	defer stop()
	g.Go(func() error { return f.readNFT(ctx) })
	g.Go(func() error { return f.readLock(ctx) })
	return g.Wait()
}

// look compares, and says so if something is wrong.
func (f *Firewall) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asked {
		return
	}
	// An error is Ensure's to return.
	if _, err := f.steps(); err == nil && f.good {
		return
	}
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// readNFT looks when a transaction is complete that touched a table which concerns
// us, and when notifications were lost.
func (f *Firewall) readNFT(ctx context.Context) error {
	touched := false // since the last generation
	err := f.watch.nft.Run(ctx, func(n rtnl.Notification) {
		if n.Kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
			touched = touched || concerns(n.Body)
		} else if touched {
			touched = false
			f.look()
		}
	}, func() {
		touched = false
		f.look()
	})
	if err != nil {
		return fmt.Errorf("read nftables notifications: %w", err)
	}
	return nil
}

// concerns reports whether a notification is about our table or one of
// iptables' that matter. The name of the table is attribute 1 of all of them.
func concerns(data []byte) (yes bool) {
	if len(data) < sizeofGenmsg {
		return false
	}
	rtnl.EachAttr(data[sizeofGenmsg:], func(kind uint16, v []byte) {
		if kind != unix.NFTA_TABLE_NAME {
			return
		}
		switch name := text(v); data[0] {
		case unix.NFPROTO_INET:
			yes = yes || name == Table
		case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
			yes = yes || slices.Contains(xtableNames, name)
		}
	})
	return yes
}

// readLock waits for the end of each run of the legacy iptables.
func (f *Firewall) readLock(ctx context.Context) error {
	buf := make([]byte, 64<<10)
	name := filepath.Base(f.watch.lock)
	for {
		n, err := f.watch.inotify.Read(buf)
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read notifications of %s: %w", f.watch.lock, err)
		}
		if mentions(buf[:n], name) {
			if err := f.watch.watchFile(); err != nil {
				f.log.Warn("runs of the legacy iptables may go unnoticed", "error", err)
			}
			f.look()
		}
	}
}

// mentions reports whether inotify events are about the lock file: they bear its
// name if its folder tells, and none if it does itself.
func mentions(b []byte, name string) bool {
	const size = int(unsafe.Sizeof(unix.InotifyEvent{}))
	for len(b) >= size {
		n := int(binary.NativeEndian.Uint32(b[12:]))
		if n > len(b)-size {
			return false
		}
		if n == 0 || text(b[size:size+n]) == name {
			return true
		}
		b = b[size+n:]
	}
	return false
}
