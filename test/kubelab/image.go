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

// writeImage writes an OCI image archive at path: one layer with one program,
// which is the entry point.
func writeImage(path, name, program string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	base := filepath.Base(program)
	layer, err := archive([]file{
		{"tmp/", nil, 0o1777}, {"etc/", nil, 0o755}, {"bin/", nil, 0o755}, {"bin/" + base, b, 0o755},
	})
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/bin/" + base}, "Env": []string{"PATH=/bin"}},
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
	of := descriptor(kind+"manifest.v1+json", manifest)
	of["annotations"] = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{of}})
	if err != nil {
		return err
	}
	files := []file{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644}, {"index.json", index, 0o644}}
	for _, blob := range [][]byte{layer, config, manifest} {
		files = append(files, file{"blobs/sha256/" + digest(blob)[len("sha256:"):], blob, 0o644})
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
	mode int64
}

func archive(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var errs []error
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data))}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		err := w.WriteHeader(h)
		errs = append(errs, err)
		_, err = w.Write(f.data)
		errs = append(errs, err)
	}
	errs = append(errs, w.Close())
	return b.Bytes(), errors.Join(errs...)
}
