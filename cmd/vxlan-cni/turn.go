package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// turnFile is the file in the run folder by whose bytes attachments are
	// locked. It is empty: a lock may lie behind a file's end.
	turnFile = "attach.lock"

	// turnBytes is how many locks there are. Two attachments that share one wait
	// for each other, and that is all.
	turnBytes = 1 << 20

	// firstTurnPoll and lastTurnPoll bound the pause between two tries. An ADD
	// takes some 10 ms.
	firstTurnPoll = 500 * time.Microsecond
	lastTurnPoll  = 10 * time.Millisecond
)

// takeTurn waits until nobody else works on the attachment whose node's end has
// that name, and keeps others off until the turn is closed or the process ends. The
// slot file's lock is not enough: between the slot and the link of one ADD
// another ADD of the same container, or a DEL, would give the slot away.
//
// A folder that is not there is fs.ErrNotExist.
func takeTurn(ctx context.Context, dir, hostName string) (io.Closer, error) {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(hostName))
	at := int64(hash.Sum32() % turnBytes)
	path := filepath.Join(dir, turnFile)
	for pause := firstTurnPoll; ; pause = min(2*pause, lastTurnPoll) {
		f, err := tryTurn(path, at)
		if err == nil || !errors.Is(err, errTaken) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: another ADD or DEL works on link %s: %w", path, hostName, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// errTaken says that somebody else has the lock, or that the file is another by now.
var errTaken = errors.New("lock is taken")

// tryTurn locks one byte of the file. The lock belongs to the open file, so the
// kernel frees it whatever ends the process.
func tryTurn(path string, at int64) (_ *os.File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	success := false
	defer func() {
		if !success {
			_ = f.Close()
		}
	}()
	byteLock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &byteLock)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINTR):
		return nil, errTaken
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
		return nil, errTaken // somebody emptied the folder
	}
	if err != nil {
		return nil, err
	}
	success = true
	return f, nil
}
