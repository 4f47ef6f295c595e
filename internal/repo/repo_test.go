package repo

import (
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the repository, seen from this folder.
const root = "../.."

const module = "github.com/vxlan-cni/vxlan-cni"

// programs are what `make build` makes, and how large each may be, in bytes:
// vxlan-cni is read and started for every call of the container runtime;
// overlayd and overlayctl once a node.
var programs = map[string]int64{
	"vxlan-cni":  6 << 20,
	"overlayd":   40 << 20,
	"overlayctl": 15 << 20,
}

// command prepares a program that runs in the repository without what a make or
// go test around us has set.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = root
	c.Env = slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "MAKE") || strings.HasPrefix(s, "MFLAGS=") || strings.HasPrefix(s, "CGO_ENABLED=")
	})
	return c
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := command(t, name, args...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}

// TestPrograms builds as the Makefile builds.
func TestPrograms(t *testing.T) {
	readSources(t)
	bin := t.TempDir()
	output(t, "make", "-s", "build", "BIN="+bin)
	entries, err := os.ReadDir(bin)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(programs) {
		t.Errorf("make build makes %v, want %d programs", entries, len(programs))
	}
	for name, limit := range programs {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(bin, name)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %.1f MB", name, float64(info.Size())/(1<<20))
			if info.Size() > limit {
				t.Errorf("%d bytes, want at most %d", info.Size(), limit)
			}
			checkStatic(t, path)
			checkStamp(t, path)
		})
	}
}

// checkStatic: the programs are copied to nodes with any libc, or none.
func checkStatic(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("linked dynamically, want static")
		}
	}
}

// checkStamp: a build in a checkout says which commit it is.
func checkStamp(t *testing.T, path string) {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if settings["-trimpath"] != "true" || settings["CGO_ENABLED"] != "0" {
		t.Errorf("built with %v, want -trimpath and CGO_ENABLED=0", settings)
	}
	if _, err := os.Stat(filepath.Join(root, ".git")); errors.Is(err, fs.ErrNotExist) {
		return // an unpacked archive: there is no commit to name
	}
	if len(settings["vcs.revision"]) != 40 {
		t.Errorf("vcs.revision is %q, want a git commit", settings["vcs.revision"])
	}
}

// readSources looks at all that the programs are built from, so that go test's
// cache, which does not see what make reads, runs this test again after a change.
func readSources(t *testing.T) {
	t.Helper()
	for _, top := range []string{"cmd", "pkg", "internal", "go.mod", "go.sum", "Makefile"} {
		look := func(_ string, _ fs.DirEntry, err error) error { return err }
		if err := filepath.WalkDir(filepath.Join(root, top), look); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLinks: what must not be in a program, through whatever imports it.
func TestLinks(t *testing.T) {
	for program, banned := range map[string][]string{
		"vxlan-cni":  {"net/http", "crypto/tls", "go.etcd.io/", "google.golang.org/", "k8s.io/", "sigs.k8s.io/", "os/exec"},
		"overlayctl": {"go.etcd.io/", "google.golang.org/", "k8s.io/", "sigs.k8s.io/"},
		"overlayd":   {"testing", module + "/internal/netlab"},
	} {
		t.Run(program, func(t *testing.T) {
			linked := strings.Fields(output(t, "go", "list", "-deps", "./cmd/"+program))
			if len(linked) < 10 {
				t.Fatalf("go list -deps names %d packages, want all that are linked", len(linked))
			}
			for _, p := range linked {
				for _, b := range banned {
					if p == strings.TrimSuffix(b, "/") || strings.HasPrefix(p, strings.TrimSuffix(b, "/")+"/") {
						t.Errorf("links %s; see go mod why, or: go list -deps -f '{{.ImportPath}}: {{.Imports}}' ./cmd/%s", p, program)
					}
				}
			}
		})
	}
}

// makeCall finds `make target` where documents show commands: in backquotes and
// at the start of a line of a code block.
var makeCall = regexp.MustCompile("(?m)(?:`|^\\s*(?:[$#] )?(?:sudo )?)make ([a-z][a-z0-9-]*)")

// TestMakeTargets: what README and docs tell people to call exists, and `make
// help` lists every target that issue and README promise.
func TestMakeTargets(t *testing.T) {
	help := output(t, "make", "-s", "help")
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s*make ([a-z0-9-]+)\s+\S`).FindAllStringSubmatch(help, -1) {
		targets[m[1]] = true
	}
	for _, want := range []string{"build", "test", "demo", "lab-down", "bench", "lint", "fmt", "fuzz", "clean", "help"} {
		if !targets[want] {
			t.Errorf("make help does not list %s", want)
		}
	}
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range makeCall.FindAllStringSubmatch(string(text), -1) {
			if !targets[m[1]] {
				t.Errorf("%s says `make %s`, which does not exist", document, m[1])
			}
		}
	}
}

func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// TestReadmeNamesEveryFolder: its table is the map of the repository.
func TestReadmeNamesEveryFolder(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"cmd/*", "pkg/*", "pkg/subnet/*", "internal/*", "test/*"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil || !info.IsDir() || filepath.Base(path) == "testdata" {
				continue
			}
			full := strings.TrimPrefix(path, root+"/")
			if !strings.Contains(string(readme), "`"+full+"`") && !strings.Contains(string(readme), "`"+filepath.Base(path)+"`") {
				t.Errorf("README.md does not name %s", full)
			}
		}
	}
}
