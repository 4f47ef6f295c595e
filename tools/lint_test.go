package tools

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vxlan-cni/vxlan-cni"

// A planted file, and the rules that it must break: names of depguard rules, or
// the identifier that forbidigo forbids. None: it must pass.
type planted struct {
	file  string // in the repository
	what  string // an import of this module (cmd/…, pkg/…, internal/…), one from elsewhere, or a statement
	rules string // separated by spaces
}

// Imports name a leaf below a room, which imports nothing: rooms that import
// each other would be a cycle and not compile.
var plants = []planted{
	// What each room may not import of this module, and something that it may.
	{"cmd/vxlan-cni/a.go", "pkg/vxlan/leaf", "cmd-vxlan-cni"},
	{"cmd/vxlan-cni/b.go", "pkg/subnet/etcd", "cmd-vxlan-cni"},
	{"cmd/vxlan-cni/c.go", "internal/api", "cmd-vxlan-cni"},
	{"cmd/vxlan-cni/d.go", "pkg/subnet", ""},
	{"cmd/vxlan-cni/e.go", "pkg/pod", ""},
	{"cmd/vxlan-cni/f.go", "internal/version", ""},
	{"cmd/overlayd/a.go", "pkg/vxlan/leaf", "cmd-overlayd"},
	{"cmd/overlayd/b.go", "internal/node", ""},
	{"cmd/overlayd/c.go", "pkg/subnet/etcd", ""},
	{"cmd/overlayctl/a.go", "internal/node", "cmd-overlayctl"},
	{"cmd/overlayctl/b.go", "pkg/subnet/etcd", "cmd-overlayctl"},
	{"cmd/overlayctl/c.go", "internal/api", ""},
	{"cmd/overlayctl/d.go", "pkg/doctor", ""},
	{"cmd/overlayctl/e.go", "cmd/overlayd/leaf", "cmd-overlayctl"},
	{"pkg/subnet/a.go", "pkg/vxlan/leaf", "pkg-subnet"},
	{"pkg/subnet/b.go", "pkg/ipam/leaf", "pkg-subnet"},
	{"pkg/subnet/etcd/a.go", "pkg/pod/leaf", "pkg-subnet"},
	{"pkg/subnet/etcd/b.go", "pkg/subnet", ""},
	{"pkg/subnet/etcd/c.go", "internal/node/leaf", "pkg-subnet"},
	{"pkg/subnet/etcd/d.go", "pkg/subnet/outage", ""},
	{"pkg/subnet/outage/a.go", "pkg/subnet/leaf", "pkg-subnet-outage"},
	{"pkg/vxlan/a.go", "pkg/subnet/leaf", "pkg-vxlan"},
	{"pkg/vxlan/b_test.go", "pkg/subnet/leaf", "pkg-vxlan"},
	{"pkg/vxlan/c.go", "internal/rtnl", ""},
	{"pkg/vxlan/d.go", "internal/node/leaf", "pkg-vxlan"},
	{"pkg/ipam/a.go", "pkg/subnet/leaf", "pkg-ipam"},
	{"pkg/ipam/b.go", "pkg/pod/leaf", "pkg-ipam"},
	{"pkg/pod/a.go", "pkg/ipam/leaf", "pkg-pod"},
	{"pkg/pod/b.go", "pkg/firewall/leaf", "pkg-pod"},
	{"pkg/pod/c.go", "internal/rtnl", ""},
	{"pkg/firewall/a.go", "pkg/vxlan/leaf", "pkg-firewall"},
	{"pkg/doctor/a.go", "pkg/pod/leaf", "pkg-doctor"},
	{"pkg/doctor/b.go", "pkg/vxlan/leaf", ""},
	{"internal/node/a.go", "cmd/overlayd/leaf", "internal-node"},
	{"internal/node/b.go", "pkg/vxlan", ""},
	{"internal/migrate/a.go", "pkg/vxlan/leaf", "internal-migrate"},
	{"internal/migrate/b.go", "pkg/ipam", ""},
	{"cmd/overlayctl/f.go", "internal/migrate", ""},
	{"internal/install/a.go", "pkg/subnet/leaf", "internal-install"},
	{"internal/install/b.go", "deploy", ""},
	{"internal/install/c.go", "internal/atomicfile", ""},
	{"internal/node/c.go", "deploy", ""},
	{"cmd/overlayctl/g.go", "internal/install", ""},
	{"internal/netlab/a.go", "pkg/ipam/leaf", "internal-netlab"},
	{"internal/netlab/b.go", "pkg/pod/leaf", ""},
	{"internal/api/a.go", "pkg/subnet/leaf", "rest"},
	{"internal/rtnl/a.go", "pkg/vxlan/leaf", "rest"},
	{"internal/rtnl/b_test.go", "pkg/vxlan/leaf", "rtnl-tests"},
	{"internal/rtnl/c_test.go", "internal/netlab/leaf", ""},
	{"pkg/newroom/a.go", "internal/rtnl", "rest"},
	{"cmd/newprogram/a.go", "internal/api", "rest"},

	// The lab is for tests.
	{"pkg/vxlan/lab.go", "internal/netlab/leaf", "netlab-in-tests"},
	{"pkg/vxlan/lab_test.go", "internal/netlab/leaf", ""},
	{"internal/node/lab.go", "internal/netlab/leaf", "netlab-in-tests"},
	{"test/demo/lab.go", "internal/netlab/leaf", ""},

	// Other modules.
	{"pkg/vxlan/n.go", "github.com/vishvananda/netlink", "netlink"},
	{"pkg/vxlan/n_linux.go", "github.com/vishvananda/netlink", ""},
	{"pkg/pod/n_linux_test.go", "github.com/vishvananda/netlink", ""},
	{"pkg/ipam/n_linux.go", "github.com/vishvananda/netlink", "netlink"},
	{"pkg/subnet/n_linux.go", "github.com/vishvananda/netlink", "netlink"},
	{"cmd/vxlan-cni/n_linux.go", "github.com/vishvananda/netlink", "netlink"},
	{"internal/node/n_linux.go", "github.com/vishvananda/netlink", "netlink"},
	{"internal/rtnl/n_linux.go", "github.com/vishvananda/netlink", ""},
	{"pkg/pod/ip.go", "github.com/containernetworking/plugins/pkg/ip", "netlink"},
	{"pkg/firewall/n.go", "github.com/google/nftables", "nftables"},
	{"pkg/firewall/n_linux.go", "github.com/google/nftables", ""},
	{"pkg/firewall/m_linux_test.go", "github.com/mdlayher/netlink", ""},
	{"pkg/pod/m_linux.go", "github.com/mdlayher/netlink", "nftables"},
	{"internal/node/i_linux.go", "github.com/coreos/go-iptables/iptables", "nftables"},
	{"pkg/firewall/i_linux.go", "github.com/coreos/go-iptables/iptables", ""},
	{"pkg/subnet/e.go", "go.etcd.io/etcd/client/v3", "etcd"},
	{"pkg/subnet/etcd/e.go", "go.etcd.io/etcd/client/v3", ""},
	{"internal/node/e.go", "go.etcd.io/etcd/client/v3", "etcd"},
	{"test/e2e/e.go", "go.etcd.io/etcd/client/v3", ""},
	{"pkg/subnet/k.go", "k8s.io/api", "kubernetes"},
	{"pkg/subnet/kube/k.go", "k8s.io/api", ""},
	{"cmd/overlayd/k.go", "sigs.k8s.io/yaml", "kubernetes"},
	{"pkg/ipam/h.go", "net/http", "net-http"},
	{"internal/version/h.go", "net/http", "net-http"},
	{"pkg/subnet/etcd/h.go", "net/http", ""},
	{"pkg/pod/h_test.go", "net/http", ""},

	// Calls.
	{"pkg/ipam/exit.go", "os.Exit(1)", "os.Exit"},
	{"cmd/overlayd/exit.go", "os.Exit(1)", "os.Exit"},
	{"cmd/overlayd/main.go", "os.Exit(1)", ""},
	{"test/demo/main.go", "os.Exit(1)", ""},
	{"deploy/build/image/main.go", "os.Exit(1)", ""},
	{"internal/node/fatal.go", "log.Fatalf(``)", "log.Fatalf"},
	{"cmd/overlayd/fatal.go", "log.Fatal()", "log.Fatal"},
	{"internal/node/print.go", "fmt.Println()", "fmt.Println"},
	{"cmd/overlayctl/print.go", "fmt.Println()", ""},
	{"pkg/vxlan/sleep.go", "time.Sleep(1)", "time.Sleep"},
	{"pkg/vxlan/sleep_test.go", "time.Sleep(1)", ""},
}

// stubs are the outside modules, so that the planted files compile.
var stubs = map[string][]string{ // module → packages
	"github.com/vishvananda/netlink":         {""},
	"github.com/containernetworking/plugins": {"pkg/ip"},
	"github.com/google/nftables":             {""},
	"github.com/mdlayher/netlink":            {""},
	"github.com/coreos/go-iptables":          {"iptables"},
	"go.etcd.io/etcd/client/v3":              {""},
	"k8s.io/api":                             {""},
	"sigs.k8s.io/yaml":                       {""},
}

// TestRulesBite plants files in a miniature of the repository and compares what
// the linter finds, by the repository's configuration, with what it must.
func TestRulesBite(t *testing.T) {
	linter := os.Getenv("GOLANGCI_LINT")
	if linter == "" {
		t.Fatal("GOLANGCI_LINT is not set: run `make lint-selftest`")
	}
	root := miniature(t)
	found := lint(t, linter, root)
	for _, p := range plants {
		if got := strings.Join(found[p.file], " "); got != p.rules {
			t.Errorf("%s with %s breaks %q, want %q", p.file, p.what, got, p.rules)
		}
		delete(found, p.file)
	}
	for file, rules := range found {
		t.Errorf("%s breaks %s, but nothing was planted there", file, rules)
	}
}

// TestEveryRuleIsTested: an import rule without a planted file that breaks it
// may be one that does nothing.
func TestEveryRuleIsTested(t *testing.T) {
	config, err := os.ReadFile("../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(config), "    depguard:\n")
	section, _, _ = strings.Cut(section, "    forbidigo:\n")
	names := regexp.MustCompile(`(?m)^ {8}([a-z-]+):$`).FindAllStringSubmatch(section, -1)
	if len(names) == 0 {
		t.Fatal("no import rules found in .golangci.yml")
	}
	for _, name := range names {
		if !slices.ContainsFunc(plants, func(p planted) bool { return p.rules == name[1] }) {
			t.Errorf("no planted file breaks rule %s", name[1])
		}
	}
}

// miniature makes a repository of the planted files and returns its folder.
func miniature(t *testing.T) string {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile("../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	write(".golangci.yml", string(config))
	gomod := "module " + module + "\n\ngo 1.26.0\n"
	for name, packages := range stubs {
		gomod += fmt.Sprintf("require %s %s\nreplace %[1]s => ./stubs/%[1]s\n", name, stubVersion(name))
		write("stubs/"+name+"/go.mod", "module "+name+"\n")
		for _, p := range packages {
			write(path.Join("stubs", name, p, "stub.go"), "package stub\n")
		}
	}
	write("go.mod", gomod)
	for _, p := range plants {
		folder := path.Dir(p.file)
		write(p.file, source(folder, p.what))
		write(folder+"/doc.go", source(folder, ""))
		if isOurs(p.what) {
			write(p.what+"/doc.go", source(p.what, ""))
		}
	}
	return root
}

func stubVersion(module string) string {
	if strings.HasSuffix(module, "/v3") {
		return "v3.0.0"
	}
	return "v0.0.0"
}

func isOurs(what string) bool {
	return what == "deploy" || strings.HasPrefix(what, "cmd/") || strings.HasPrefix(what, "pkg/") || strings.HasPrefix(what, "internal/")
}

// source is a file of the package in folder that has what in it.
func source(folder, what string) string {
	text := "package stub\n"
	call := strings.HasSuffix(what, ")")
	switch {
	case what == "":
		if parent := path.Dir(folder); parent == "cmd" || folder == "test/demo" {
			return "package main\n\nfunc main() {}\n"
		}
		return text
	case call:
		text += fmt.Sprintf("\nimport %q\n\nfunc _() { %s }\n", strings.SplitN(what, ".", 2)[0], what)
	case isOurs(what):
		text += fmt.Sprintf("\nimport _ %q\n", module+"/"+what)
	default:
		text += fmt.Sprintf("\nimport _ %q\n", what)
	}
	if parent := path.Dir(folder); parent == "cmd" || folder == "test/demo" {
		text = "package main\n" + strings.TrimPrefix(text, "package stub\n")
	}
	return text
}

// ruleName finds the rule in a finding's text.
var ruleName = regexp.MustCompile("(?:not allowed from list '([^']+)')|(?:use of `([^`]+)` forbidden)")

// lint returns the rules that each file breaks, sorted.
func lint(t *testing.T, linter, root string) map[string][]string {
	t.Helper()
	command := exec.CommandContext(t.Context(), linter, "run", "--enable-only=depguard,forbidigo",
		"--output.json.path=stdout", "--show-stats=false", "--allow-parallel-runners", "./...")
	command.Dir = root
	var stderr strings.Builder
	command.Stderr = &stderr
	output, err := command.Output() // exit status 1: there are findings
	var report struct {
		Issues []struct {
			FromLinter, Text string
			Pos              struct{ Filename string }
		}
	}
	if jsonErr := json.Unmarshal(output, &report); jsonErr != nil {
		t.Fatalf("%v: %v\n%s\n%s", err, jsonErr, output, stderr.String())
	}
	found := map[string][]string{}
	for _, issue := range report.Issues {
		rule := issue.FromLinter + ": " + issue.Text
		if m := ruleName.FindStringSubmatch(issue.Text); m != nil {
			rule = m[1] + m[2]
		}
		found[issue.Pos.Filename] = append(found[issue.Pos.Filename], rule)
	}
	for _, rules := range found {
		slices.Sort(rules)
	}
	return found
}
