package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/vxlan-cni/vxlan-cni/deploy"
)

const (
	// confRewatch is the wait before a folder is watched again that could not be
	// watched, or that was replaced. Until then the audit looks.
	confRewatch = 10 * time.Second

	// confEvents are those of inotify(7) after which our file may be missing or
	// changed, or the folder another one.
	confEvents = unix.IN_CLOSE_WRITE | unix.IN_MOVE | unix.IN_DELETE | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// errFolderGone ends a watch whose folder was removed or replaced.
var errFolderGone = errors.New("the folder was removed or replaced")

// watchConflist has the conflist written again when somebody removes or changes
// it: until it is there kubelet calls the node not ready.
func (n *node) watchConflist(ctx context.Context) error {
	for {
		err := n.heedConflist(ctx)
		if ctx.Err() != nil {
			return nil
		}
		n.log.Warn("the folder of CNI configuration is not watched, trying again", "folder", n.cfg.CNIConfDir, "in", confRewatch, "error", err)
		select {
		case <-time.After(confRewatch):
		case <-ctx.Done():
			return nil
		}
	}
}

// heedConflist watches the folder until ctx ends or the folder is gone.
func (n *node) heedConflist(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer context.AfterFunc(ctx, func() { _ = events.Close() })() // unblocks Read
	defer func() { _ = events.Close() }()
	if _, err := unix.InotifyAddWatch(fd, n.cfg.CNIConfDir, confEvents); err != nil {
		return fmt.Errorf("watch %s: %w", n.cfg.CNIConfDir, err)
	}
	// Somebody may work against us without end.
	limit := rate.NewLimiter(repairRate, repairBurst)
	buffer := make([]byte, 64<<10)
	for concerned := true; ; { // what happened before we watched is unknown
		if concerned {
			if err := limit.Wait(ctx); err != nil {
				return err
			}
			n.do(ctx, (*loop).republish)
		}
		size, err := events.Read(buffer)
		if err != nil {
			return fmt.Errorf("watch %s: %w", n.cfg.CNIConfDir, err)
		}
		if concerned, err = concernsConflist(buffer[:size]); err != nil {
			return err
		}
	}
}

// concernsConflist says whether one of the events is about the conflist.
func concernsConflist(events []byte) (concerned bool, err error) {
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		length := binary.NativeEndian.Uint32(events[12:])
		end := unix.SizeofInotifyEvent + int(length)
		if end > len(events) {
			return concerned, fmt.Errorf("watch: an event of %d bytes in %d", end, len(events))
		}
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:end]), "\x00")
		if mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
			return concerned, errFolderGone
		}
		concerned = concerned || name == deploy.ConflistName || mask&unix.IN_Q_OVERFLOW != 0
		events = events[end:]
	}
	return concerned, nil
}

// republish writes what publish wrote, if somebody changed it.
func (l *loop) republish() {
	if l.synced {
		l.publish()
	}
}
