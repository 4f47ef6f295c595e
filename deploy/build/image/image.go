package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Where things are in the image. Plugins are not in the PATH: overlayctl install
// copies them to the node.
const (
	programDir = "usr/local/bin"
	pluginDir  = "opt/cni/bin"
	billFile   = "usr/share/doc/vxlan-cni/sbom.cdx.json"
)

// contents are the programs of an image: ours, which change together, and those
// of containernetworking/plugins, which rarely do and have a layer of their own.
var (
	ours       = map[string]string{"overlayd": programDir, "overlayctl": programDir, "vxlan-cni": pluginDir}
	references = map[string]string{"loopback": pluginDir, "portmap": pluginDir, "bandwidth": pluginDir}
)

// A bill is the software bill of one platform's image: CycloneDX, as JSON.
type bill struct {
	platform v1.Platform
	json     []byte
}

// buildIndex makes an image of each folder linux-<architecture> in from.
func buildIndex(from string) (v1.ImageIndex, []bill, error) {
	folders, err := filepath.Glob(filepath.Join(from, "linux-*"))
	if err != nil {
		return nil, nil, err
	}
	if len(folders) == 0 {
		return nil, nil, fmt.Errorf("%s has no folder such as linux-amd64: run `make image`", from)
	}
	slices.Sort(folders)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var bills []bill
	for _, folder := range folders {
		image, b, err := buildImage(folder)
		if err != nil {
			return nil, nil, err
		}
		bills = append(bills, b)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &b.platform},
		})
	}
	return index, bills, nil
}

// buildImage makes the image of one platform from a folder of programs.
func buildImage(folder string) (v1.Image, bill, error) {
	_, arch, _ := strings.Cut(filepath.Base(folder), "-")
	b := bill{platform: v1.Platform{OS: "linux", Architecture: arch}}
	builds, err := readBuilds(folder, arch)
	if err != nil {
		return nil, b, err
	}
	about := aboutBuild(builds["overlayd"])
	if b.json, err = billOf(builds, about); err != nil {
		return nil, b, err
	}
	base, err := layerOf(about.time, append(skeleton(), programs(folder, references)...))
	if err != nil {
		return nil, b, err
	}
	top, err := layerOf(about.time, append(programs(folder, ours), entry{path: billFile, text: b.json}))
	if err != nil {
		return nil, b, err
	}
	image, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		addendum(base, about.time, "containernetworking/plugins "+versionOf(builds["portmap"])),
		addendum(top, about.time, "vxlan-cni "+about.version))
	if err != nil {
		return nil, b, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, b, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: about.time}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + programDir + "/overlayd"},
		Env:        []string{"PATH=/" + programDir + ":/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
		Labels:     about.labels(),
	}
	image, err = mutate.ConfigFile(image, config)
	return image, b, err
}

// addendum is a layer with its line in the image's history.
func addendum(l v1.Layer, at time.Time, what string) mutate.Addendum {
	return mutate.Addendum{Layer: l, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: what}}
}

// readBuilds reads what each program says of its build. A program that is
// missing, dynamically linked or of another platform is an error.
func readBuilds(folder, arch string) (map[string]*buildinfo.BuildInfo, error) {
	builds := map[string]*buildinfo.BuildInfo{}
	for _, set := range []map[string]string{ours, references} {
		for program := range set {
			path := filepath.Join(folder, program)
			info, err := buildinfo.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("read the build of %s: %w", path, err)
			}
			if got := setting(info, "GOARCH"); got != arch {
				return nil, fmt.Errorf("%s is built for %s: want %s", path, got, arch)
			}
			if setting(info, "CGO_ENABLED") != "0" {
				return nil, fmt.Errorf("%s is built with cgo: want CGO_ENABLED=0, for there is no C library in the image", path)
			}
			builds[program] = info
		}
	}
	return builds, nil
}

func setting(info *buildinfo.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// versionOf is the version of the module that a program comes from.
func versionOf(info *buildinfo.BuildInfo) string { return info.Main.Version }

// An about is what an image says of itself.
type about struct {
	version  string
	revision string    // git commit, 40 hex digits; empty outside of a checkout
	time     time.Time // of the commit: an image has no other time, so that it can be built again
}

// aboutBuild reads it from overlayd's build.
func aboutBuild(info *buildinfo.BuildInfo) about {
	a := about{version: versionOf(info), revision: setting(info, "vcs.revision"), time: time.Unix(0, 0).UTC()}
	if a.version == "" {
		a.version = "(devel)"
	}
	if t, err := time.Parse(time.RFC3339, setting(info, "vcs.time")); err == nil {
		a.time = t.UTC()
	}
	return a
}

// labels are the annotations that the OCI image specification defines.
func (a about) labels() map[string]string {
	const prefix = "org.opencontainers.image."
	labels := map[string]string{
		prefix + "title":       "vxlan-cni",
		prefix + "description": "A pod network for Kubernetes nodes: a CNI plugin and a VXLAN overlay that keeps itself right",
		prefix + "source":      "https://github.com/vxlan-cni/vxlan-cni",
		prefix + "licenses":    "Apache-2.0",
		prefix + "version":     a.version,
		prefix + "created":     a.time.Format(time.RFC3339),
	}
	if a.revision != "" {
		labels[prefix+"revision"] = a.revision
	}
	return labels
}

// layerOf makes a layer of entries. All its times are at.
func layerOf(at time.Time, entries []entry) (v1.Layer, error) {
	data, err := tarOf(at, entries)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(opener(data), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// programs are the files of a set of programs.
func programs(folder string, set map[string]string) []entry {
	var all []entry
	for program, dir := range set {
		all = append(all, entry{path: dir + "/" + program, file: filepath.Join(folder, program), executable: true})
	}
	return all
}

// writeBills writes vxlan-cni.linux-amd64.cdx.json and so on beside the archive.
func writeBills(archive string, bills []bill) error {
	stem := strings.TrimSuffix(archive, filepath.Ext(archive))
	for _, b := range bills {
		path := fmt.Sprintf("%s.%s-%s.cdx.json", stem, b.platform.OS, b.platform.Architecture)
		if err := os.WriteFile(path, b.json, 0o644); err != nil {
			return err
		}
	}
	return nil
}
