package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
)

// binary is the plugin, built once as it is released.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vxlan-cni-test-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "vxlan-cni")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build.Args, err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// A testNode is a node: a namespace and a run folder.
type testNode struct {
	testing.TB
	ns  *netlab.Namespace
	dir string
}

// newNode is a node that holds a lease of 10.244.1.0/24 and fd00:1::/64.
func newNode(t testing.TB) testNode {
	n := testNode{t, netlab.TestNamespace(t), t.TempDir()}
	n.writeNodeFile("10.244.1.0/24", "fd00:1::/64")
	return n
}

func (n testNode) writeNodeFile(subnets ...string) {
	n.Helper()
	networks := []string{"10.244.0.0/16", "fd00::/16"}[:len(subnets)]
	data, err := json.Marshal(map[string]any{
		"schema": 1, "node": "n1", "networks": networks, "subnets": subnets, "mtu": 1450, "bridge": "cni0",
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "node.json"), data, 0o644)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// conf is a network configuration, with more keys in the form `"key": value`.
func (n testNode) conf(version string, more ...string) string {
	keys := append([]string{
		`"cniVersion": "` + version + `"`, `"name": "pods"`, `"type": "vxlan-cni"`, `"runDir": "` + n.dir + `"`,
	}, more...)
	return "{" + strings.Join(keys, ", ") + "}"
}

// env is the environment of one call.
type env struct{ verb, container, netns, ifname, args string }

// pod is the environment of an ADD.
func podEnv(container string, ns *netlab.Namespace) env {
	return env{"ADD", container, ns.Path(), "eth0", ""}
}

func (e env) with(verb string) env { e.verb = verb; return e }

func (e env) list() []string {
	list := []string{"CNI_COMMAND=" + e.verb, "CNI_PATH=/opt/cni/bin"}
	for name, value := range map[string]string{
		"CNI_CONTAINERID": e.container, "CNI_NETNS": e.netns, "CNI_IFNAME": e.ifname, "CNI_ARGS": e.args,
	} {
		if value != "" {
			list = append(list, name+"="+value)
		}
	}
	return list
}

// command prepares a call; it has to be started inside the node's namespace.
func command(e env, conf string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(binary)
	cmd.Env = e.list()
	cmd.Stdin = strings.NewReader(conf)
	var out bytes.Buffer
	cmd.Stdout = &out
	return cmd, &out
}

// call runs the plugin on the node and returns what it wrote to standard output
// and, if it failed, its error.
func (n testNode) call(e env, conf string) (string, *types.Error) {
	n.Helper()
	cmd, out := command(e, conf)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := n.ns.Do(cmd.Run)
	if err == nil {
		return out.String(), nil
	}
	var failure types.Error
	if jerr := json.Unmarshal(out.Bytes(), &failure); jerr != nil || failure.Code == 0 || failure.Msg == "" {
		n.Fatalf("%s: %v; standard output is no CNI error: %q (%v); standard error: %q", e.verb, err, out, jerr, &stderr)
	}
	return out.String(), &failure
}

// ok is call that must succeed.
func (n testNode) ok(e env, conf string) string {
	n.Helper()
	out, failure := n.call(e, conf)
	if failure != nil {
		n.Fatalf("%s: code %d: %v", e.verb, failure.Code, failure)
	}
	return out
}

// fails is call that must fail with that code and text.
func (n testNode) fails(e env, conf string, code uint, text string) {
	n.Helper()
	out, failure := n.call(e, conf)
	switch {
	case failure == nil:
		n.Errorf("%s succeeded, want an error with %q: %s", e.verb, text, out)
	case failure.Code != code || !strings.Contains(failure.Error(), text):
		n.Errorf("%s: error %d %q, want %d with %q", e.verb, failure.Code, failure, code, text)
	}
}

// add is ok for ADD, with the result read.
func (n testNode) add(e env, conf string) *current.Result {
	n.Helper()
	out := n.ok(e, conf)
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal([]byte(out), &head); err != nil {
		n.Fatal(err)
	}
	c := netConf{Version: head.CNIVersion, raw: rawConf{PrevResult: []byte(out)}}
	r, err := c.prevResult()
	if err != nil {
		n.Fatal(err)
	}
	return r
}

// addresses lists a result's addresses as text.
func addresses(r *current.Result) (list []string) {
	for _, ip := range r.IPs {
		list = append(list, ip.Address.String())
	}
	return list
}

// holds lists what slots and links the node has, as text.
func (n testNode) holds() string {
	n.Helper()
	slots, err := ipam.List(n.Context(), n.dir)
	if err != nil {
		n.Fatal(err)
	}
	var b strings.Builder
	for _, s := range slots {
		fmt.Fprintf(&b, "slot %s %v\n", s.Key, s.Addrs)
	}
	for _, l := range n.links() {
		fmt.Fprintf(&b, "link %s\n", l)
	}
	return b.String()
}

var linkName = regexp.MustCompile(`(?m)^(veth[^@ ]*)`)

// links lists the node's ends of all pairs.
func (n testNode) links() []string {
	n.Helper()
	return linkName.FindAllString(n.sh("ip -br link show type veth"), -1)
}

// sh runs a command in the node's namespace.
func (n testNode) sh(command string) string {
	n.Helper()
	return output(n, n.ns, command)
}

func output(t testing.TB, ns *netlab.Namespace, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := ns.Output(words[0], words[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
