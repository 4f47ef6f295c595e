package ipam

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A node whose lease moved to another subnet has pods in the old one's file.
// What follows looks into every slot file of the folder; one that cannot be
// read costs only itself. A folder that is not there holds nothing.

// An Entry is a slot and the path of the file that it stands in.
type Entry struct {
	Slot
	File string
}

// List returns the held slots, by file and index. With an error it returns
// those of the files that could be read.
func List(ctx context.Context, dir string) ([]Entry, error) {
	return folder{dir, bootTime}.list(ctx)
}

// ReleaseAll frees what key holds, in whichever file; it rests from now on.
// found is false if it holds nothing, and that is no error unless a file could not
// be read: what the key holds may stand there.
func ReleaseAll(ctx context.Context, dir string, key Key) (found bool, err error) {
	return folder{dir, bootTime}.releaseAll(ctx, key)
}

// Retain frees all held slots but those that keep wants kept, and returns them
// as they were. keep is called with the file locked: it must decide from what
// it knows, and not wait. A young slot without a link may be an ADD at work:
// see Slot.Age.
//
// current are the node's subnets. Files of others are removed once nothing in
// them is held or rests; without current, no file is.
func Retain(ctx context.Context, dir string, keep func(Slot) bool, current ...netip.Prefix) ([]Slot, error) {
	return folder{dir, bootTime}.retain(ctx, keep, current)
}

// A folder is a run folder.
type folder struct {
	dir string
	now func() time.Duration // since boot
}

// each calls fn with every slot file, locked, but for those named except.
func (d folder) each(ctx context.Context, fn func(*slotFile) error, except ...string) error {
	names, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list slot files: %w", err)
	}
	var errs []error
	for _, n := range names {
		if isFileName(n.Name()) && !slices.Contains(except, n.Name()) {
			errs = append(errs, visitFile(ctx, filepath.Join(d.dir, n.Name()), fn))
		}
	}
	return errors.Join(errs...)
}

// visitFile calls fn with the file at path, locked, unless it was removed.
func visitFile(ctx context.Context, path string, fn func(*slotFile) error) error {
	for {
		s, err := openFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		err = s.locked(ctx, fn)
		_ = s.close()
		if !errors.Is(err, errReplaced) {
			return err
		}
	}
}

func (d folder) list(ctx context.Context) (slots []Entry, err error) {
	err = d.each(ctx, func(f *slotFile) error {
		entries, err := f.heldEntries()
		now := d.now()
		for _, e := range entries {
			slots = append(slots, Entry{e.slot(now), f.path})
		}
		return err
	})
	return slots, err
}

func (d folder) releaseAll(ctx context.Context, key Key) (found bool, err error) {
	err = d.each(ctx, func(f *slotFile) error {
		ok, err := f.release(d.now(), key)
		found = found || ok
		return err
	})
	if found {
		_, err = splitCorrupt(err)
	}
	return found, err
}

// splitCorrupt takes the *CorruptErrors out of an error of each.
func splitCorrupt(err error) (corrupt []error, rest error) {
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	var others []error
	for _, err := range list {
		if _, ok := errors.AsType[*CorruptError](err); ok {
			corrupt = append(corrupt, err)
		} else {
			others = append(others, err)
		}
	}
	return corrupt, errors.Join(others...)
}

func (d folder) retain(ctx context.Context, keep func(Slot) bool, current []netip.Prefix) (freed []Slot, err error) {
	err = d.each(ctx, func(f *slotFile) error {
		gone, err := f.retain(d.now(), keep)
		freed = append(freed, gone...)
		if err != nil || len(current) == 0 || filepath.Base(f.path) == fileName(current[0]) {
			return err
		}
		return f.removeIfIdle(d.now())
	})
	return freed, err
}

// heldEntries returns what is held.
func (s *slotFile) heldEntries() (entries []entry, err error) {
	err = s.scan(func(_ int, r record) {
		if r.state() == held {
			entries = append(entries, r.entry())
		}
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// retain frees what keep does not want.
func (s *slotFile) retain(now time.Duration, keep func(Slot) bool) (freed []Slot, err error) {
	entries, err := s.heldEntries()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		slot := e.slot(now)
		if keep(slot) {
			continue
		}
		if err := s.write(e.freed(now)); err != nil {
			errs = append(errs, err)
			continue
		}
		freed = append(freed, slot)
	}
	return freed, errors.Join(errs...)
}

// removeIfIdle removes the file if no slot is held or rests. That its lock is
// held makes it safe: nobody else can have put another file in its place.
func (s *slotFile) removeIfIdle(now time.Duration) error {
	idle := true
	err := s.scan(func(_ int, r record) {
		idle = idle && r.state() != held && restLeft(r, now) == 0
	})
	if err != nil || !idle {
		return err
	}
	return os.Remove(s.path)
}
