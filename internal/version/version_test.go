package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestBuild(t *testing.T) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	const commit = "513625ef178296c0ae7155ceed91259ee05355c2"
	release := debug.BuildInfo{
		GoVersion: "go1.26.0",
		Main:      debug.Module{Version: "v0.2.0"},
		Settings: []debug.BuildSetting{
			{Key: "CGO_ENABLED", Value: "0"},
			{Key: "vcs", Value: "git"},
			{Key: "vcs.revision", Value: commit},
			{Key: "vcs.time", Value: "2026-11-22T15:55:31Z"},
			{Key: "vcs.modified", Value: "false"},
		},
	}
	dirty := release
	dirty.Settings = []debug.BuildSetting{
		{Key: "vcs.revision", Value: "513625e"},
		{Key: "vcs.modified", Value: "true"},
	}
	for _, c := range []struct {
		name string
		info debug.BuildInfo
		want Build
		text string
	}{
		{
			"release", release,
			Build{Version: "v0.2.0", Revision: commit, Time: "2026-11-22T15:55:31Z", Go: "go1.26.0", Platform: platform},
			"v0.2.0 (commit 513625ef1782, 2026-11-22T15:55:31Z, go1.26.0 " + platform + ")",
		},
		{
			"short hash, changes, no time", dirty,
			Build{Version: "v0.2.0", Revision: "513625e", Modified: true, Go: "go1.26.0", Platform: platform},
			"v0.2.0 (commit 513625e with changes, go1.26.0 " + platform + ")",
		},
		{
			"nothing stamped", debug.BuildInfo{GoVersion: "go1.26.0"},
			Build{Version: "(devel)", Go: "go1.26.0", Platform: platform},
			"(devel) (go1.26.0 " + platform + ")",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := from(&c.info)
			if got != c.want {
				t.Errorf("from() = %+v, want %+v", got, c.want)
			}
			if got.String() != c.text {
				t.Errorf("String() = %q, want %q", got, c.text)
			}
		})
	}
}

func TestRead(t *testing.T) {
	if b := Read(); b.Version == "" || b.Go != runtime.Version() {
		t.Errorf("Read() = %+v, want a version and Go %s", b, runtime.Version())
	}
}
