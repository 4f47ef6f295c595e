package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vxlan-cni/vxlan-cni/internal/atomicfile"
)

// notesName is the file in the folder of plugins that says which of them are
// ours. Runtimes look for plugins by name and never see it.
const notesName = ".vxlan-cni.installed"

// notes are the programs that were put into a folder, each with the SHA-256 of
// what it may be: two while it is being replaced.
type notes struct {
	path string
	ours map[string][]string
}

// readNotes reads what is noted in a folder, nothing if it has no notes.
func readNotes(dir string) (*notes, error) {
	n := &notes{path: filepath.Join(dir, notesName), ours: map[string][]string{}}
	data, err := os.ReadFile(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	var read map[string][]string
	if err := json.Unmarshal(data, &read); err != nil {
		return nil, fmt.Errorf("read %s, which says what is ours: %w; remove it if everything here is somebody else's", n.path, err)
	}
	for name, hashes := range read {
		if name != filepath.Base(name) { // nothing outside of this folder is ours
			return nil, fmt.Errorf("read %s: %q is no name of a file", n.path, name)
		}
		n.ours[name] = hashes
	}
	return n, nil
}

func (n *notes) has(name, hash string) bool { return slices.Contains(n.ours[name], hash) }
func (n *notes) keep(name, hash string)     { n.ours[name] = []string{hash} }
func (n *notes) forget(name string)         { delete(n.ours, name) }

func (n *notes) add(name, hash string) {
	if !n.has(name, hash) {
		n.ours[name] = append(n.ours[name], hash)
	}
}

// write replaces the notes on disk, unless they say the same already.
func (n *notes) write() error {
	data, err := json.MarshalIndent(n.ours, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if have, err := os.ReadFile(n.path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return atomicfile.Write(n.path, 0o644, bytes.NewReader(data))
}
