package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/install"
)

// TestInstallAndUninstall: what is done is printed, as a table and as JSON.
func TestInstallAndUninstall(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"image", "bin", "conf"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{"image/vxlan-cni": "a plugin", "conf/05-vxlan-cni.conflist": "{}", "image/portmap": "ours", "bin/portmap": "theirs"} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := []string{"install", "--from", dir + "/image", "--bin-dir", dir + "/bin"}
	un := []string{"uninstall", "--bin-dir", dir + "/bin", "--cni-conf-dir", dir + "/conf", "--run-dir", dir + "/run"}
	for _, step := range []struct {
		args []string
		want []string
	}{
		{append(in, "--dry-run"), []string{"ACTION", "installed", dir + "/bin/vxlan-cni", "left", "somebody else", "this is a dry run"}},
		{in, []string{"installed", dir + "/bin/vxlan-cni"}},
		{in, []string{"unchanged"}},
		{append(un, "--dry-run"), []string{"removed", dir + "/conf/05-vxlan-cni.conflist", dir + "/bin/vxlan-cni", "this is a dry run"}},
		{un, []string{"removed", dir + "/conf/05-vxlan-cni.conflist", dir + "/bin/vxlan-cni"}},
		{un, []string{"nothing to do"}},
	} {
		status, out, errs := call(t, step.args...)
		for _, want := range step.want {
			if status != exitOK || errs != "" || !strings.Contains(out, want) {
				t.Errorf("%q: exit %d, errors %q, output\n%s\nwant …%s…", step.args, status, errs, out, want)
			}
		}
	}
	for _, c := range []struct {
		args []string
		want int
	}{{append(un, "-o", "json"), 0}, {append(in, "-o", "json"), 2}} {
		var steps []install.Step
		status, out, errs := call(t, c.args...)
		if err := json.Unmarshal([]byte(out), &steps); err != nil || status != exitOK || len(steps) != c.want || steps == nil {
			t.Errorf("%q: exit %d, errors %q, %v, output\n%s", c.args, status, errs, err, out)
		}
	}
	status, _, errs := call(t, "install", "--from", dir+"/nosuch", "--bin-dir", dir+"/bin")
	if status != exitError || !strings.Contains(errs, "nosuch") {
		t.Errorf("exit %d, errors %q", status, errs)
	}
}
