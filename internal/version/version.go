// Package version says which build a program is. It reads what the Go linker
// wrote into the binary, so there is no number to forget. It links little:
// vxlan-cni uses it too.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// shortRevision is how much of a commit hash is shown, as in Go's
// pseudo-versions.
const shortRevision = 12

// A Build is where a binary comes from. Fields that the binary does not hold
// are empty: there is no revision in a build outside of a git checkout, or with
// -buildvcs=false.
type Build struct {
	Version  string `json:"version"`            // of the main module, e.g. v0.2.0; "(devel)" if unknown
	Revision string `json:"revision,omitempty"` // git commit, 40 hex digits
	Modified bool   `json:"modified,omitempty"` // the checkout had changes that are not in Revision
	Time     string `json:"time,omitempty"`     // of the commit, RFC 3339
	Go       string `json:"go"`                 // toolchain, e.g. go1.26.0
	Platform string `json:"platform"`           // e.g. linux/amd64
}

// Read returns the build of the running program.
func Read() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{GoVersion: runtime.Version()}
	}
	return from(info)
}

func from(info *debug.BuildInfo) Build {
	b := Build{
		Version:  info.Main.Version,
		Go:       info.GoVersion,
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "vcs.time":
			b.Time = s.Value
		}
	}
	return b
}

// String is the build on one line, e.g.
//
//	v0.2.0 (commit 513625ef1782, 2026-11-22T15:55:31Z, go1.26.0 linux/amd64)
func (b Build) String() string {
	text := b.Version + " ("
	if b.Revision != "" {
		text += "commit " + b.Revision[:min(shortRevision, len(b.Revision))]
		if b.Modified {
			text += " with changes"
		}
		text += ", "
	}
	if b.Time != "" {
		text += b.Time + ", "
	}
	return text + fmt.Sprintf("%s %s)", b.Go, b.Platform)
}
