package ipam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes is how much is read at once: all of a /24 or /23, and of a
	// larger file what a process can spare.
	chunkBytes = 256 << 10

	// firstPoll and lastPoll bound the pause between two tries to get a lock.
	// An operation on a /24 holds it for some 50 µs.
	firstPoll = 50 * time.Microsecond
	lastPoll  = 5 * time.Millisecond
)

// errReplaced says that the path no longer leads to the file that was locked.
var errReplaced = errors.New("slot file was replaced")

// bootTime is the time since boot, suspended time included.
func bootTime() time.Duration {
	var t unix.Timespec
	// It cannot fail: the clock exists since Linux 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

// A slotFile is an open slot file. It is not safe for concurrent use.
type slotFile struct {
	f      *os.File
	path   string
	layout layout // as the header has it; valid after scan
	buf    []byte
}

// openFile opens a slot file that exists. What it holds is looked at by scan.
func openFile(path string) (*slotFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EISDIR):
		return nil, &CorruptError{path, 0, "is a directory, want a regular file"}
	case errors.Is(err, unix.ELOOP):
		return nil, &CorruptError{path, 0, "is a symbolic link, want a regular file"}
	case err != nil:
		return nil, err
	}
	return &slotFile{f: f, path: path}, nil
}

// openOrCreate opens the slot file of l in dir; if there is none, it makes one.
func openOrCreate(ctx context.Context, dir string, l layout) (*slotFile, error) {
	path := filepath.Join(dir, fileName(l.subnets[0]))
	for {
		s, err := openFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return s, err
		}
		if err := create(ctx, path, l); err != nil {
			return nil, fmt.Errorf("create slot file %s: %w", path, err)
		}
	}
}

// create makes an empty slot file unless there is one. Creators take turns by
// the folder's lock, and so have the temporary name for themselves: what lies
// there was left by one that was killed.
func create(ctx context.Context, path string, l layout) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // unlocks
	if err := lock(ctx, dir, unix.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := path + ".new" // not a name that isFileName takes
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err = writeEmpty(tmp, l); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

// writeEmpty makes a slot file of which no slot was ever used. All its blocks
// are allocated, so that later writes cannot run out of space.
func writeEmpty(path string, l layout) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	size := offset(l.count)
	for {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("allocate %d bytes: %w", size, err)
	} else {
		_, err = f.WriteAt(l.header(), 0)
	}
	return errors.Join(err, f.Close())
}

// offset returns where the record of slot i begins.
func offset(i int) int64 { return recordSize * int64(i+1) }

func (s *slotFile) close() error { return s.f.Close() }

// locked calls fn while no other process has the file. It returns errReplaced,
// and fn was not called, if the path leads elsewhere by now.
func (s *slotFile) locked(ctx context.Context, fn func(*slotFile) error) error {
	if err := lock(ctx, s.f, unix.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = unix.Flock(int(s.f.Fd()), unix.LOCK_UN) }()
	mine, err := s.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
		return errReplaced
	}
	if err != nil {
		return err
	}
	return fn(s)
}

// lock takes the flock of f, or gives up when ctx ends. It polls: a blocked
// flock could be left only by a signal.
func lock(ctx context.Context, f *os.File, how int) error {
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		if ctx.Err() != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), context.Cause(ctx))
		}
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// scan checks every byte of the file and calls visit for each slot, in order.
// A record is valid during the call only. Of what visit saw, nothing may be
// acted on unless scan returns nil.
func (s *slotFile) scan(visit func(i int, r record)) error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return s.corrupt(0, "is a %s, want a regular file", info.Mode().Type())
	}
	size := info.Size()
	if size < recordSize {
		return s.corrupt(size, "ends inside the header of %d bytes", recordSize)
	}
	if s.buf == nil {
		s.buf = make([]byte, min(size/recordSize*recordSize, chunkBytes))
	}
	for at := int64(0); at < size; {
		if at > 0 {
			if at = s.skipHole(at, size, visit); at == size {
				break
			}
		}
		b := s.buf[:min(int64(len(s.buf)), size-at)]
		if n, err := s.f.ReadAt(b, at); errors.Is(err, io.EOF) {
			return s.corrupt(at+int64(n), "shrank while it was read")
		} else if err != nil {
			return err
		}
		if at == 0 {
			if err := s.readHeader(b[:recordSize], size); err != nil {
				return err
			}
		}
		if err := s.visitChunk(b, at, visit); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// skipHole visits the slots from offset at on of which the file system says
// that nothing was ever written to them, and returns where it ends. Of the
// largest file that is nearly all.
func (s *slotFile) skipHole(at, size int64, visit func(i int, r record)) int64 {
	data, err := unix.Seek(int(s.f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		data = size
	case err != nil:
		return at // it cannot tell
	}
	data = min(data/recordSize*recordSize, size)
	for ; at < data; at += recordSize {
		visit(int(at/recordSize)-1, zero[:])
	}
	return at
}

// readHeader checks the header, the file's name and its size.
func (s *slotFile) readHeader(b []byte, size int64) error {
	l, at, reason := parseHeader(b)
	if reason != "" {
		return s.corrupt(at, "%s", reason)
	}
	if fileName(l.subnets[0]) != filepath.Base(s.path) {
		return s.corrupt(offSubnets, "is the file of subnet %s", l.subnets[0])
	}
	switch want := offset(l.count); {
	case size < want:
		return s.corrupt(size, "ends after %d bytes, want %d", size, want)
	case size > want:
		return s.corrupt(want, "%d bytes follow the last slot", size-want)
	}
	s.layout = l
	return nil
}

// visitChunk checks and visits the slots in b, which was read from offset at.
func (s *slotFile) visitChunk(b []byte, at int64, visit func(i int, r record)) error {
	for n := 0; n < len(b); n += recordSize {
		pos := at + int64(n)
		if pos == 0 {
			continue // the header
		}
		i, r := int(pos/recordSize)-1, record(b[n:n+recordSize])
		if reason := r.check(i, s.layout.subnets[0]); reason != "" {
			return s.corrupt(pos, "%s", reason)
		}
		visit(i, r)
	}
	return nil
}

func (s *slotFile) corrupt(at int64, format string, args ...any) error {
	return &CorruptError{s.path, at, fmt.Sprintf(format, args...)}
}

// write replaces the record of e's slot, in one system call.
func (s *slotFile) write(e entry) error {
	if _, err := s.f.WriteAt(e.encode(), offset(e.index)); err != nil {
		return fmt.Errorf("write slot %d: %w", e.index, err)
	}
	return nil
}

// writeHeader replaces the header if it is not that of l.
func (s *slotFile) writeHeader(l layout) error {
	if s.layout == l {
		return nil
	}
	if _, err := s.f.WriteAt(l.header(), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	s.layout = l
	return nil
}
