package kubelab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
)

// Images that every node has. Their names lead to no registry.
const (
	PauseImage = "localhost/pause:1"
	ToolImage  = "localhost/etool:1" // see the program etool
	DNSImage   = "localhost/coredns:1"
)

// WriteImages writes the archive of ToolImage into folder dir, for a cluster that
// is not a lab.
func WriteImages(ctx context.Context, dir string) error {
	bin, err := os.MkdirTemp("", "ovl-bin-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	if err := buildTools(ctx, bin); err != nil {
		return err
	}
	return writeImage(filepath.Join(dir, "etool.tar"), ToolImage, filepath.Join(bin, "etool"))
}

// writeImage writes an OCI image archive at path: one program, which is the entry
// point.
func writeImage(path, name, program string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	base := filepath.Base(program)
	i := image{names: []string{name}, entry: "/bin/" + base}
	i.files = []file{
		{name: "tmp/", mode: 0o1777}, {name: "etc/", mode: 0o755}, {name: "bin/", mode: 0o755},
		{name: "bin/" + base, data: b, mode: 0o755},
	}
	return i.write(path)
}

// An image is one of a single layer.
type image struct {
	names []string // it may have several
	entry string   // point
	args  []string // of it, unless a pod has its own
	files []file
}

// write writes the image as an OCI archive.
func (i *image) write(path string) error {
	layer, err := archive(i.files)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{i.entry}, "Cmd": i.args, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return err
	}
	const kind = "application/vnd.oci.image."
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
		"config": descriptor(kind+"config.v1+json", config),
		"layers": []any{descriptor(kind+"layer.v1.tar", layer)},
	})
	if err != nil {
		return err
	}
	var manifests []any
	for _, name := range i.names {
		of := descriptor(kind+"manifest.v1+json", manifest)
		of["annotations"] = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
		manifests = append(manifests, of)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return err
	}
	files := []file{
		{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`), mode: 0o644},
		{name: "index.json", data: index, mode: 0o644},
	}
	for _, blob := range [][]byte{layer, config, manifest} {
		files = append(files, file{name: "blobs/sha256/" + digest(blob)[len("sha256:"):], data: blob, mode: 0o644})
	}
	all, err := archive(files)
	if err != nil {
		return err
	}
	return os.WriteFile(path, all, 0o644)
}

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func descriptor(kind string, b []byte) map[string]any {
	return map[string]any{"mediaType": kind, "digest": digest(b), "size": len(b)}
}

// A file is a folder if its name ends in a slash.
type file struct {
	name string
	data []byte
	link string // to what, if it is a symbolic link
	mode int64
}

func archive(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var errs []error
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data))}
		switch {
		case f.name[len(f.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		err := w.WriteHeader(h)
		errs = append(errs, err)
		_, err = w.Write(f.data)
		errs = append(errs, err)
	}
	errs = append(errs, w.Close())
	return b.Bytes(), errors.Join(errs...)
}
