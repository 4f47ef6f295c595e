package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/migrate"
)

// flannelsFiles are those of a node whose links are not there; the arguments lead
// to them.
func flannelsFiles(t *testing.T, env string) (args []string) {
	t.Helper()
	dir := t.TempDir()
	grants := filepath.Join(dir, "networks", "cbr0")
	if err := os.MkdirAll(grants, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(dir, "subnet.env"): env, filepath.Join(grants, "10.244.7.5"): "0123456789abcdef0123\r\neth0", filepath.Join(grants, "10.244.7.1"): "x\r\neth0",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{
		"migrate", "--from", "flannel", "--run-dir", filepath.Join(dir, "run"), "--subnet-env", filepath.Join(dir, "subnet.env"),
		"--cni-networks", filepath.Join(dir, "networks"), "--cni-results", dir, "--device", "nosuch.1", "--bridge", "nosuch0", "--proc", dir,
	}
}

const flannelsEnv = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"

func TestMigrate(t *testing.T) {
	args := flannelsFiles(t, flannelsEnv)
	slots := filepath.Join(filepath.Dir(args[6]), "run", "slots-10.244.7.0-24")
	for _, step := range []struct {
		more []string
		want []string
		file bool // the slot file is there afterwards
	}{
		{[]string{"--dry-run"}, []string{"10.244.7.0/24 of 10.244.0.0/16, mtu 1450", "10.244.7.5", "import", "0123456789abc ", "reserved", "this is a dry run"}, false},
		{nil, []string{"1 addresses entered. Now start overlayd with: --device nosuch.1 --bridge nosuch0\n"}, true},
		{nil, []string{"10.244.7.5  held", "0 addresses entered"}, true},
	} {
		status, out, errs := call(t, append(args, step.more...)...)
		for _, want := range step.want {
			if status != exitOK || errs != "" || !strings.Contains(out, want) {
				t.Errorf("%q: exit %d, errors %q, output\n%s\nwant …%s…", step.more, status, errs, out, want)
			}
		}
		if _, err := os.Stat(slots); (err == nil) != step.file {
			t.Errorf("%q: slot file: %v, want it there: %t", step.more, err, step.file)
		}
	}
	status, out, _ := call(t, append(args, "-o", "json")...)
	var p migrate.Plan
	if err := json.Unmarshal([]byte(out), &p); err != nil || status != exitOK || len(p.Addresses) != 2 || len(p.Problems) != 0 {
		t.Errorf("-o json: exit %d, %v\n%s", status, err, out)
	}
}

func TestMigrateThatCannotBe(t *testing.T) {
	args := flannelsFiles(t, strings.Replace(flannelsEnv, "10.244.7.1", "10.9.7.1", 1))
	for _, format := range []string{"table", "json"} {
		status, out, errs := call(t, append(args, "-o", format)...)
		const want = `FLANNEL_SUBNET "10.9.7.1/24": want a subnet of FLANNEL_NETWORK 10.244.0.0/16`
		if status != exitError || errs != "overlayctl: "+want+"\n" || !strings.Contains(out, "FLANNEL_SUBNET") {
			t.Errorf("-o %s: exit %d, errors %q, output\n%s", format, status, errs, out)
		}
	}
	for _, from := range []string{"", "calico"} {
		status, out, errs := call(t, "migrate", "--from", from)
		if want := `overlayctl: --from "` + from + "\": want flannel; see overlayctl migrate --help\n"; status != exitUsage || errs != want || out != "" {
			t.Errorf("--from %q: exit %d, errors %q, output %q, want %d and %q", from, status, errs, out, exitUsage, want)
		}
	}
}

func TestPlanText(t *testing.T) {
	p := migrate.Plan{
		From: "flannel", Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, MTU: 1450,
		Device:    migrate.Link{Name: "flannel.1", Found: true, MAC: "2a:67:92:2b:6c:d5", MTU: 1450},
		Bridge:    migrate.Bridge{Name: "cni0", Found: true, MAC: "9a:0b:11:22:33:44", Addrs: []netip.Prefix{netip.MustParsePrefix("10.244.7.1/24")}, Ports: 2},
		Addresses: []migrate.Address{{Addr: netip.MustParseAddr("10.244.7.5"), Container: "short", IfName: "eth0", Pod: "web/\x1b[31mred", Port: "veth1", Action: migrate.Import}},
		Stays:     []string{"what stays"}, Warnings: []string{"what to know"},
	}
	const want = `from     flannel
subnets  10.244.7.0/24 of 10.244.0.0/16, mtu 1450
device   flannel.1, mac 2a:67:92:2b:6c:d5, mtu 1450: overlayd makes it anew, with its own mac
bridge   cni0, 10.244.7.1/24, mac 9a:0b:11:22:33:44, 2 pods: stays as it is
stays    what stays
warning  what to know

ADDRESS     ACTION  POD              PORT   CONTAINER  INTERFACE
10.244.7.5  import  web/\x1b[31mred  veth1  short      eth0

Nothing was done: this is a dry run.
`
	if got := planText(look{}, p, true, nil); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	p.Problems = []migrate.Problem{{Field: "field", Value: "value", Want: "another"}}
	if got := planText(look{}, p, false, p.Problems[0]); !strings.Contains(got, "PROBLEM  field \"value\": want another\n") || !strings.HasSuffix(got, "Nothing was done: see PROBLEM.\n") {
		t.Errorf("with a problem\n%s", got)
	}
}

// TestMigrateThatFails: what looked well cannot be written.
func TestMigrateThatFails(t *testing.T) {
	args := flannelsFiles(t, flannelsEnv)
	args[4] = "/proc/nosuch" // no folder can be made there
	if status, out, errs := call(t, append(args, "--dry-run")...); status != exitOK {
		t.Fatalf("dry run: exit %d, errors %q, output\n%s", status, errs, out)
	}
	status, out, errs := call(t, args...)
	if status != exitError || !strings.Contains(errs, "slot file") || strings.Contains(out, "start overlayd with") || !strings.Contains(out, "were not entered") {
		t.Errorf("exit %d, errors %q, output\n%s", status, errs, out)
	}
}
