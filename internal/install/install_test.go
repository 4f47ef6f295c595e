package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/deploy"
	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// write makes files of a folder: name → text. Folders above them are made.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// tree is all that is below a folder, one line each: mode, name, and what is in it.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inside, _ := filepath.Rel(dir, path)
		text := ""
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(b)
		}
		lines = append(lines, fmt.Sprintf("%s %s %q", info.Mode(), inside, text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// actions are steps by the base names of their paths.
func actions(steps []Step) string {
	var all []string
	for _, s := range steps {
		all = append(all, filepath.Base(s.Path)+" "+s.Action)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func image(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{"vxlan-cni": "ours " + version, "portmap": "portmap " + version, "loopback": "loopback"})
	return dir
}

func TestInstall(t *testing.T) {
	n := Node{BinDir: t.TempDir()}
	for _, step := range []struct {
		name, version string
		before        map[string]string // what somebody else writes
		want          string
	}{
		{"first", "1", nil, "loopback installed, portmap installed, vxlan-cni installed"},
		{"again", "1", nil, "loopback unchanged, portmap unchanged, vxlan-cni unchanged"},
		{"upgrade", "2", nil, "loopback unchanged, portmap replaced, vxlan-cni replaced"},
		{"the distribution's portmap", "2", map[string]string{"portmap": "theirs"}, "loopback unchanged, portmap left, vxlan-cni unchanged"},
		{"which stays theirs", "3", nil, "loopback unchanged, portmap left, vxlan-cni replaced"},
		{"our name is ours", "3", map[string]string{"vxlan-cni": "damaged"}, "loopback unchanged, portmap left, vxlan-cni replaced"},
		{"after a copy that was killed", "4", map[string]string{".vxlan-cni.tmp": "half"}, "loopback unchanged, portmap left, vxlan-cni replaced"},
	} {
		write(t, n.BinDir, step.before)
		from := image(t, step.version)
		dry := n
		dry.DryRun = true
		before := tree(t, n.BinDir)
		would, err := dry.Install(from)
		if err != nil || tree(t, n.BinDir) != before {
			t.Errorf("%s: a dry run changed something, or failed: %v", step.name, err)
		}
		did, err := n.Install(from)
		if err != nil || actions(did) != step.want || actions(would) != step.want {
			t.Errorf("%s: %v, %s, want %s (dry run: %s)", step.name, err, actions(did), step.want, actions(would))
		}
		text, _ := os.ReadFile(filepath.Join(n.BinDir, Plugin))
		if info, err := os.Stat(filepath.Join(n.BinDir, Plugin)); err != nil || info.Mode().Perm() != 0o755 || string(text) != "ours "+step.version {
			t.Errorf("%s: the plugin is %q, %v", step.name, text, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.BinDir, ".*.tmp")); left != nil {
		t.Errorf("%v is left", left)
	}
}

// TestInstallUnderTheRunningPlugin: a program that runs cannot be written to, but
// it can be replaced.
func TestInstallUnderTheRunningPlugin(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	n := Node{BinDir: t.TempDir()}
	write(t, n.BinDir, map[string]string{Plugin: string(text)})
	c := exec.CommandContext(t.Context(), filepath.Join(n.BinDir, Plugin), "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	if f, err := os.OpenFile(filepath.Join(n.BinDir, Plugin), os.O_WRONLY, 0); !errors.Is(err, unix.ETXTBSY) {
		_ = f.Close()
		t.Fatalf("a running program can be written to (%v): the test shows nothing", err)
	}
	if did, err := n.Install(image(t, "1")); err != nil || actions(did) != "loopback installed, portmap installed, vxlan-cni replaced" {
		t.Errorf("%v, %s", err, actions(did))
	}
	if err := c.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the running one ended: %v", err)
	}
}

// TestKilledInBetween: whichever of the two files is there after a kill, it is
// known as ours.
func TestKilledInBetween(t *testing.T) {
	from := image(t, "2")
	for _, there := range []string{"portmap 1", "portmap 2"} {
		n := Node{BinDir: t.TempDir()}
		if _, err := n.Install(image(t, "1")); err != nil {
			t.Fatal(err)
		}
		noted, err := readNotes(n.BinDir)
		if err != nil {
			t.Fatal(err)
		}
		hash, err := hashOf(filepath.Join(from, "portmap"))
		if err != nil {
			t.Fatal(err)
		}
		noted.add("portmap", hash)
		if err := noted.write(); err != nil {
			t.Fatal(err)
		}
		write(t, n.BinDir, map[string]string{"portmap": there})
		if _, err := n.Install(from); err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(filepath.Join(n.BinDir, "portmap")); string(text) != "portmap 2" {
			t.Errorf("killed with %q: then %q, want ours", there, text)
		}
		if _, err := n.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(n.BinDir); len(left) > 0 {
			t.Errorf("killed with %q: %v is left", there, left)
		}
	}
}

// aNode makes a node on which others have files too, and returns a second one, of
// the same files without ours.
func aNode(t *testing.T) (n Node, root string) {
	t.Helper()
	root = t.TempDir()
	write(t, root, map[string]string{
		"bin/bridge": "theirs", "bin/loopback": "theirs", "conf/10-other.conflist": "theirs", "run/other/socket": "theirs",
	})
	return Node{BinDir: filepath.Join(root, "bin"), ConfDir: filepath.Join(root, "conf"), RunDir: filepath.Join(root, "run/vxlan-cni")}, root
}

// use leaves on a node what the network leaves.
func use(t *testing.T, n Node) {
	t.Helper()
	if _, err := n.Install(image(t, "1")); err != nil {
		t.Fatal(err)
	}
	write(t, n.ConfDir, map[string]string{deploy.ConflistName: "{}", "." + deploy.ConflistName + ".tmp": "{"})
	write(t, n.RunDir, map[string]string{lockName: "", "node.json": "{}", "slots-10.244.1.0-24": "x", "later/version": "x"})
}

func TestUninstallLeavesTheNodeAsItWas(t *testing.T) {
	n, root := aNode(t)
	before := tree(t, root)
	use(t, n)
	inUse := tree(t, root)

	dry := n
	dry.DryRun = true
	would, err := dry.Uninstall()
	if err != nil || tree(t, root) != inUse {
		t.Errorf("a dry run changed something, or failed: %v", err)
	}
	did, err := n.Uninstall()
	if err != nil || actions(did) != actions(would) {
		t.Errorf("%v, did %s, would %s", err, actions(did), actions(would))
	}
	if after := tree(t, root); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if did, err := n.Uninstall(); err != nil || len(did) > 0 {
		t.Errorf("once more: %v, %s", err, actions(did))
	}
}

func TestUninstallLeavesWhatIsOthers(t *testing.T) {
	n, root := aNode(t)
	use(t, n)
	write(t, n.BinDir, map[string]string{"portmap": "theirs by now"})
	did, err := n.Uninstall()
	if err != nil || !strings.Contains(actions(did), "portmap left") {
		t.Errorf("%v, %s", err, actions(did))
	}
	if text, _ := os.ReadFile(filepath.Join(n.BinDir, "portmap")); string(text) != "theirs by now" {
		t.Errorf("portmap is %q", text)
	}
	// A folder that is no run folder, and a plugin that is none of ours.
	n.RunDir = filepath.Join(root, "run")
	write(t, n.BinDir, map[string]string{Plugin: "not even a program"})
	before := tree(t, root)
	did, err = n.Uninstall()
	if err != nil || actions(did) != "run left" || tree(t, root) != before {
		t.Errorf("%v, %s, then\n%s", err, actions(did), tree(t, root))
	}
}

// TestUninstallByHandInstalled: a plugin that was copied by hand is known by what
// Go notes in it.
func TestUninstallByHandInstalled(t *testing.T) {
	n := Node{BinDir: t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", n.BinDir+"/", "../../cmd/vxlan-cni")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if did, err := n.Uninstall(); err != nil || actions(did) != "vxlan-cni removed" {
		t.Errorf("%v, %s", err, actions(did))
	}
}

func TestUninstallUnderARunningOverlayd(t *testing.T) {
	n, root := aNode(t)
	use(t, n)
	lock, err := os.Open(filepath.Join(n.RunDir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	if did, err := n.Uninstall(); !errors.Is(err, errRunning) || len(did) > 0 || tree(t, root) != before {
		t.Errorf("%v, %s, want an error and nothing done", err, actions(did))
	}
	n.DryRun = true
	if did, err := n.Uninstall(); err != nil || len(did) == 0 {
		t.Errorf("dry run: %v, %s", err, actions(did))
	}
}

// TestUninstallOfAMountedRunFolder: it is emptied, and that it stays is said.
func TestUninstallOfAMountedRunFolder(t *testing.T) {
	netlab.NeedRoot(t)
	n, _ := aNode(t)
	use(t, n)
	runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
	for _, err := range []error{
		unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(n.RunDir, n.RunDir, "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.RunDir, 0); err != nil {
			t.Error(err)
		}
	})
	did, err := n.Uninstall()
	if err != nil || !strings.Contains(actions(did), "vxlan-cni left") {
		t.Errorf("%v, %s", err, actions(did))
	}
	if left, err := os.ReadDir(n.RunDir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestErrorsNameTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		do   func() error
		want string
	}{
		{"no source", func() error { _, err := Node{BinDir: dir}.Install(dir + "/nosuch"); return err }, "nosuch"},
		{"empty source", func() error { _, err := Node{BinDir: dir}.Install(t.TempDir()); return err }, "no programs"},
		{"onto itself", func() error { _, err := Node{BinDir: dir + "/"}.Install(dir); return err }, "same folder"},
		{"no target", func() error { _, err := Node{BinDir: dir + "/nosuch"}.Install(image(t, "1")); return err }, "nosuch"},
		{"torn notes", func() error {
			write(t, dir, map[string]string{notesName: "{"})
			_, err := Node{BinDir: dir}.Uninstall()
			return err
		}, notesName},
		{"notes that lead away", func() error {
			write(t, dir, map[string]string{notesName: `{"../etc/passwd":["x"]}`})
			_, err := Node{BinDir: dir}.Install(image(t, "1"))
			return err
		}, "../etc/passwd"},
	} {
		if err := c.do(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %s", c.name, err, c.want)
		}
	}
}
