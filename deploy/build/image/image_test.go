package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// root is the repository, seen from this folder.
const root = "../../.."

// made is what `make image` makes for this machine's architecture, twice.
var made [2]string

func TestMain(m *testing.M) { os.Exit(makeTwice(m)) }

func makeTwice(m *testing.M) int {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for i, sub := range []string{"once", "again/and/elsewhere"} {
		bin := filepath.Join(dir, sub)
		c := exec.Command("make", "-s", "image", "BIN="+bin, "ARCHES="+runtime.GOARCH, "IMAGE=localhost/vxlan-cni:test")
		c.Dir = root
		c.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { // what a make around us has set
			return strings.HasPrefix(s, "MAKE") || strings.HasPrefix(s, "MFLAGS=") || strings.HasPrefix(s, "CGO_ENABLED=")
		})
		if out, err := c.CombinedOutput(); err != nil {
			panic("make image: " + err.Error() + "\n" + string(out))
		}
		made[i] = filepath.Join(bin, "image")
	}
	return m.Run()
}

// TestSameBytes: two builds, in two folders, are one and the same.
func TestSameBytes(t *testing.T) {
	bill := "vxlan-cni.linux-" + runtime.GOARCH + ".cdx.json"
	for _, file := range []string{"vxlan-cni.tar", bill} {
		once, again := read(t, filepath.Join(made[0], file)), read(t, filepath.Join(made[1], file))
		if len(once) == 0 || !bytes.Equal(once, again) {
			t.Errorf("%s: two builds differ (%d and %d bytes)", file, len(once), len(again))
		}
	}
}

// TestArchive: the archive is an OCI layout that holds what its parts promise,
// under the name that runtimes look for.
func TestArchive(t *testing.T) {
	dir := unpack(t, read(t, filepath.Join(made[0], "vxlan-cni.tar")))
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Error(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 {
		t.Fatalf("%d entries in index.json, want one: the index of platforms", len(m.Manifests))
	}
	got := m.Manifests[0].Annotations
	if got["io.containerd.image.name"] != "localhost/vxlan-cni:test" || got["org.opencontainers.image.ref.name"] != "test" {
		t.Errorf("named %v", got)
	}
	config, err := imageOf(t, top).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if e := config.Config.Entrypoint; !slices.Equal(e, []string{"/usr/local/bin/overlayd"}) {
		t.Errorf("entry point %q", e)
	}
	for _, label := range []string{"title", "source", "licenses", "version", "created"} {
		if config.Config.Labels["org.opencontainers.image."+label] == "" {
			t.Errorf("no label %s", label)
		}
	}
}

// TestContents: the files of an image, who may read them, and that the programs
// run with nothing else around them.
func TestContents(t *testing.T) {
	top, err := layout.ImageIndexFromPath(unpack(t, read(t, filepath.Join(made[0], "vxlan-cni.tar"))))
	if err != nil {
		t.Fatal(err)
	}
	r := mutate.Extract(imageOf(t, top))
	data, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	dir := unpack(t, data)
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		inside, _ := filepath.Rel(dir, path)
		files = append(files, inside)
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o444 != 0o444 {
			t.Errorf("%s: %s: not everybody may read it", inside, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"etc/group", "etc/passwd",
		"opt/cni/bin/bandwidth", "opt/cni/bin/loopback", "opt/cni/bin/portmap", "opt/cni/bin/vxlan-cni",
		"usr/local/bin/overlayctl", "usr/local/bin/overlayd", "usr/share/doc/vxlan-cni/sbom.cdx.json",
	}
	if !slices.Equal(files, want) {
		t.Errorf("files\n%s\nwant\n%s", strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root, to change the root folder")
		}
		t.Skip("needs root, to change the root folder")
	}
	for _, line := range []string{"/usr/local/bin/overlayd --version", "/usr/local/bin/overlayctl --help", "/opt/cni/bin/vxlan-cni", "/opt/cni/bin/portmap", "/opt/cni/bin/loopback", "/opt/cni/bin/bandwidth"} {
		words := strings.Fields(line)
		c := exec.CommandContext(t.Context(), words[0], words[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		c.Dir, c.Env = "/", []string{"CNI_COMMAND=VERSION"}
		c.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
		if out, err := c.CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("%s in the image, as nonroot: %v: %s", line, err, out)
		}
	}
}

// TestBill: the software bill is CycloneDX, and names our programs and what is
// linked into them, by version.
func TestBill(t *testing.T) {
	var b cdx.BOM
	raw := read(t, filepath.Join(made[0], "vxlan-cni.linux-"+runtime.GOARCH+".cdx.json"))
	if err := cdx.NewBOMDecoder(bytes.NewReader(raw), cdx.BOMFileFormatJSON).Decode(&b); err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{"image": true}
	for _, c := range *b.Components {
		if refs[c.BOMRef] {
			t.Errorf("%s stands there twice", c.BOMRef)
		}
		refs[c.BOMRef] = true
	}
	for _, d := range *b.Dependencies {
		for _, ref := range append(*d.Dependencies, d.Ref) {
			if !refs[ref] {
				t.Errorf("%s depends on %s, which is no component", d.Ref, ref)
			}
		}
	}
	for _, want := range []string{
		"program:overlayd", "program:portmap", "pkg:golang/stdlib@" + strings.TrimPrefix(runtime.Version(), "go"),
		"pkg:golang/github.com/vishvananda/netlink@", "pkg:golang/github.com/containernetworking/plugins@v",
		"pkg:golang/k8s.io/client-go@v", "pkg:golang/go.etcd.io/etcd/client/v3@v",
	} {
		found := false
		for ref := range refs {
			found = found || strings.HasPrefix(ref, want)
		}
		if !found {
			t.Errorf("the bill lacks %s", want)
		}
	}
}

// TestWrongPrograms: what must not get into an image is an error that names it.
func TestWrongPrograms(t *testing.T) {
	arch := "linux-" + runtime.GOARCH
	for _, c := range []struct {
		name, folder string
		change       func(t *testing.T, dir string) error
		want         string
	}{
		{"none", arch, func(_ *testing.T, dir string) error { return os.RemoveAll(dir) }, "make image"},
		{"one is missing", arch, func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "portmap")) }, "portmap"},
		{"no program", arch, func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "loopback"), []byte("#!/bin/sh\n"), 0o755)
		}, "loopback"},
		{"another architecture", "linux-riscv64", func(*testing.T, string) error { return nil }, "want riscv64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := t.TempDir()
			dir := filepath.Join(from, c.folder)
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(made[0], arch))); err != nil {
				t.Fatal(err)
			}
			if err := c.change(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, _, err := buildIndex(from); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error that says %q", err, c.want)
			}
		})
	}
}

// TestPush sends the image to a registry on this machine and reads it back.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/net/vxlan-cni:test"
	if err := pack(t.Context(), []string{"-from", made[0], "-name", ref, "-push"}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	there, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(there); err != nil {
		t.Error(err)
	}
	here, _, err := buildIndex(made[0])
	if err != nil {
		t.Fatal(err)
	}
	got, gerr := there.Digest()
	want, werr := here.Digest()
	if got != want || gerr != nil || werr != nil {
		t.Errorf("the registry has %s, want %s (%v, %v)", got, want, gerr, werr)
	}
	if err := pack(t.Context(), []string{"-from", made[0], "-name", "UPPER/case:x y"}); err == nil || !strings.Contains(err.Error(), "-name") {
		t.Errorf("a name that cannot be: %v", err)
	}
}

// TestDockerfile: who builds with Docker gets the same programs in the same places.
func TestDockerfile(t *testing.T) {
	copied := map[string]string{} // program → folder
	for line := range strings.Lines(string(read(t, root+"/deploy/Dockerfile"))) {
		words := strings.Fields(line)
		if len(words) < 4 || words[0] != "COPY" || words[1] != "--from=build" {
			continue
		}
		for _, from := range words[2 : len(words)-1] {
			if program, ok := strings.CutPrefix(from, "/programs/"); ok {
				copied[program] = strings.Trim(words[len(words)-1], "/")
			}
		}
	}
	want := maps.Clone(ours)
	maps.Copy(want, references)
	if !maps.Equal(copied, want) {
		t.Errorf("the Dockerfile copies %v, want %v", copied, want)
	}
}

// imageOf returns the image of this machine's architecture.
func imageOf(t *testing.T, top v1.ImageIndex) v1.Image {
	t.Helper()
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Platform != nil && d.Platform.Architecture == runtime.GOARCH {
			image, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			return image
		}
	}
	t.Fatalf("no image for %s", runtime.GOARCH)
	return nil
}

// unpack writes what a tar archive holds to a folder.
func unpack(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, h.FileInfo().Mode().Perm())
		} else {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, text, h.FileInfo().Mode().Perm())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
