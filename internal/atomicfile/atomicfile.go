// Package atomicfile replaces files at once and whole: a reader sees the old one
// or the new one, whenever the writer or the machine stops.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Temp is the name that a file has until it is complete: in the same folder, for
// who watches that does not hear of what comes from another, with a dot at the
// front, and always the same, so that a writer that was killed leaves one at most.
func Temp(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// Write puts a file of that mode in the place of whatever is at path, once the
// disk has all of it.
func Write(path string, mode fs.FileMode, from io.Reader) (err error) {
	temp := Temp(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	success := false
	defer func() {
		if !success {
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	_, err = io.Copy(file, from)
	// Chmod, for the umask may have taken what others need.
	if err := errors.Join(err, file.Chmod(mode), file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	success = true
	return nil
}
