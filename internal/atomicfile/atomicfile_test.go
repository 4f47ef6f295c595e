package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWrite(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(Temp(path), []byte("of a writer that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second"} {
		if err := Write(path, 0o644, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		info, serr := os.Stat(path)
		if err := errors.Join(err, serr); err != nil {
			t.Fatal(err)
		}
		if string(got) != text || info.Mode().Perm() != 0o644 {
			t.Errorf("%q, %s, want %q, -rw-r--r--", got, info.Mode(), text)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "folder"), 0o644, strings.NewReader("x")); err == nil {
		t.Error("a folder was replaced")
	}
	torn := io.MultiReader(strings.NewReader("half"), broken{})
	if err := Write(path, 0o644, torn); !errors.Is(err, errBroken) {
		t.Errorf("%v, want the reader's error", err)
	}
	if got, err := os.ReadFile(path); string(got) != "second" || err != nil {
		t.Errorf("after a torn write: %q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); left != nil {
		t.Errorf("%v is left", left)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errBroken }
