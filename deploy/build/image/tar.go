package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// An entry is a file, or a folder where it has neither file nor text.
type entry struct {
	path       string // in the image, without a slash at the front
	file       string // on this machine
	text       []byte // or what is in it
	executable bool
}

// skeleton is what an image has besides programs: the folders that volumes are
// mounted on, for the root file system is read-only, and names for the users
// root and nonroot.
func skeleton() []entry {
	return []entry{
		{path: "etc/passwd", text: []byte("root:x:0:0:root:/:/nonexistent\nnonroot:x:65532:65532:nonroot:/:/nonexistent\n")},
		{path: "etc/group", text: []byte("root:x:0:\nnonroot:x:65532:\n")},
		{path: "etc/vxlan-cni"}, {path: "host"}, {path: "run/vxlan-cni"}, {path: "tmp"},
	}
}

// tarOf writes entries, and the folders above them, in the order of their paths.
// Everybody may read all of it, and it is root's.
func tarOf(at time.Time, entries []entry) ([]byte, error) {
	all := map[string]entry{}
	for _, e := range entries {
		all[e.path] = e
		for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = entry{path: dir}
			}
		}
	}
	var paths []string
	for p := range all {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range paths {
		if err := all[p].write(w, at); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func (e entry) write(w *tar.Writer, at time.Time) error {
	if e.file != "" {
		text, err := os.ReadFile(e.file)
		if err != nil {
			return err
		}
		e.text = text
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: e.path, Mode: 0o644, Size: int64(len(e.text)), ModTime: at, Format: tar.FormatUSTAR}
	switch {
	case e.text == nil:
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, e.path+"/", 0o755
	case e.executable:
		h.Mode = 0o755
	}
	if e.path == "tmp" {
		h.Mode = 0o1777
	}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s: %w", e.path, err)
	}
	_, err := w.Write(e.text)
	return err
}

// opener reads the same bytes as often as it is asked.
func opener(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// writeArchive writes an OCI image layout as one tar file, under the name that
// `ctr images import`, `podman load` and `docker load` look for.
func writeArchive(file string, index v1.ImageIndex, ref string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".layout-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays of it harms nobody
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write image layout: %w", err)
	}
	_, tag, _ := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], ":")
	names := map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": tag}
	if err := p.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return fmt.Errorf("write image layout: %w", err)
	}
	var entries []entry
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		inside, err := filepath.Rel(dir, path)
		entries = append(entries, entry{path: filepath.ToSlash(inside), file: path})
		return err
	})
	if err != nil {
		return err
	}
	data, err := tarOf(time.Unix(0, 0), entries)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
