package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"maps"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// billOf writes a CycloneDX software bill: each program, and each module that is
// linked into one, as the Go linker noted it in the programs. It has no serial
// number, which would differ each time.
func billOf(builds map[string]*buildinfo.BuildInfo, a about) ([]byte, error) {
	b := cdx.NewBOM()
	b.Metadata = &cdx.Metadata{
		Timestamp: a.time.Format(time.RFC3339),
		Component: &cdx.Component{BOMRef: "image", Type: cdx.ComponentTypeContainer, Name: "vxlan-cni", Version: a.version},
	}
	modules := map[string]cdx.Component{}
	root := cdx.Dependency{Ref: "image", Dependencies: &[]string{}}
	var components []cdx.Component
	var dependencies []cdx.Dependency
	for _, program := range slices.Sorted(maps.Keys(builds)) {
		info := builds[program]
		ref := "program:" + program
		components = append(components, cdx.Component{
			BOMRef: ref, Type: cdx.ComponentTypeApplication, Name: program, Version: versionOf(info), Description: info.Path,
		})
		*root.Dependencies = append(*root.Dependencies, ref)
		var links []string
		for _, m := range linked(info) {
			c := component(m)
			modules[c.BOMRef] = c
			links = append(links, c.BOMRef)
		}
		slices.Sort(links)
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &links})
	}
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		components = append(components, modules[ref])
	}
	dependencies = append(dependencies, root)
	b.Components, b.Dependencies = &components, &dependencies
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(b); err != nil {
		return nil, fmt.Errorf("write software bill: %w", err)
	}
	return out.Bytes(), nil
}

// linked are the modules in a program: its own, its dependencies, and Go's
// standard library, which has defects of its own.
func linked(info *buildinfo.BuildInfo) []debug.Module {
	all := []debug.Module{info.Main, {Path: "stdlib", Version: info.GoVersion}}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		all = append(all, *d)
	}
	return all
}

// component names a module by its package URL, by which scanners look defects up:
// https://github.com/package-url/purl-spec
func component(m debug.Module) cdx.Component {
	segments := strings.Split(m.Path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	version := m.Version
	if m.Path == "stdlib" {
		version = strings.TrimPrefix(version, "go")
	}
	purl := "pkg:golang/" + strings.Join(segments, "/") + "@" + url.QueryEscape(version)
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
}
