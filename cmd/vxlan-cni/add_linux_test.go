package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
)

// Whatever goes wrong, the error says what and an ADD leaves nothing.
func TestAddThatFailsLeavesNothing(t *testing.T) {
	n, pod := newNode(t), netlab.TestNamespace(t)
	good := podEnv("abc", pod)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	change := func(fn func(*env)) env { e := good; fn(&e); return e }
	output(t, pod, "ip link add name taken type bridge")
	for name, test := range map[string]struct {
		env  env
		conf []string
		code uint
		text string
	}{
		"netns missing":         {change(func(e *env) { e.netns = "" }), nil, 4, "CNI_NETNS"},
		"netns gone":            {change(func(e *env) { e.netns = "/run/netns/nosuch" }), nil, 4, "CNI_NETNS"},
		"netns a plain file":    {change(func(e *env) { e.netns = file }), nil, 4, "CNI_NETNS"},
		"netns of mounts":       {change(func(e *env) { e.netns = "/proc/self/ns/mnt" }), nil, 4, "CNI_NETNS"},
		"netns the node's":      {change(func(e *env) { e.netns = n.ns.Path() }), nil, 4, "CNI_NETNS"},
		"name taken":            {change(func(e *env) { e.ifname = "taken" }), nil, 4, "CNI_IFNAME"},
		"name lo":               {change(func(e *env) { e.ifname = "lo" }), nil, 4, "CNI_IFNAME"},
		"name too long":         {change(func(e *env) { e.ifname = "abcdefghijklmnop" }), nil, 4, "interface name"},
		"name with slash":       {change(func(e *env) { e.ifname = "a/b" }), nil, 4, "interface name"},
		"container id":          {change(func(e *env) { e.container = "a b" }), nil, 4, "containerID"},
		"container id too long": {change(func(e *env) { e.container = strings.Repeat("a", 181) }), nil, 4, "CNI_CONTAINERID"},
		"args unknown":          {change(func(e *env) { e.args = "Foo=bar" }), nil, 4, "Foo"},
		"args without value":    {change(func(e *env) { e.args = "Foo" }), nil, 4, "CNI_ARGS"},
		"args IP":               {change(func(e *env) { e.args = "IP=10.244.1" }), nil, 4, "CNI_ARGS: IP"},
		"address elsewhere":     {good, []string{`"runtimeConfig": {"ips": ["10.244.2.7"]}`}, 7, "10.244.2.7"},
		"address of gateway":    {good, []string{`"runtimeConfig": {"ips": ["10.244.1.1"]}`}, 7, "10.244.1.1"},
		"addresses apart":       {good, []string{`"runtimeConfig": {"ips": ["10.244.1.7", "fd00:1::8"]}`}, 7, "fd00:1::8"},
		"MAC of a group":        {good, []string{`"runtimeConfig": {"mac": "01:00:5e:00:00:01"}`}, 7, "group"},
		"MAC of the bridge":     {good, []string{`"runtimeConfig": {"mac": "0a:58:0a:f4:01:01"}`}, 7, "bridge cni0"},
		"pod with a space":      {change(func(e *env) { e.args = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b c" }), nil, 4, "CNI_ARGS: K8S_POD_NAME"},
		"namespace with a tab":  {change(func(e *env) { e.args = "K8S_POD_NAMESPACE=a\tb;K8S_POD_NAME=c" }), nil, 4, "CNI_ARGS: K8S_POD_NAMESPACE"},
		"key unknown":           {good, []string{`"hairpinMode": true`}, 7, `"hairpinMode"`},
		"key of a wrong type":   {good, []string{`"hairpin": "yes"`}, 7, "hairpin"},
		"run folder relative":   {good, []string{`"RunDir": "run"`}, 7, "runDir"},
		"masquerade":            {good, []string{`"ipMasq": true`}, 2, "ipMasq: true"},
		"other IPAM":            {good, []string{`"ipam": {"type": "host-local"}`}, 2, "host-local"},
		"previous result":       {good, []string{`"prevResult": {"cniVersion": "1.0.0", "ips": 7}`}, 6, "prevResult"},
		"network name":          {good, []string{`"name": "` + strings.Repeat("n", 48) + `"`}, 7, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			testNode{t, n.ns, n.dir}.fails(test.env, n.conf("1.0.0", test.conf...), test.code, test.text)
			if left := n.holds(); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
	n.ok(good, n.conf("1.0.0")) // and the next takes the first address
}

func TestAddThatCannotReportIsUndone(t *testing.T) {
	n, pod := newNode(t), netlab.TestNamespace(t)
	cmd, _ := command(podEnv("abc", pod), n.conf("1.0.0"))
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	cmd.Stdout = full
	if err := n.ns.Do(cmd.Run); err == nil {
		t.Error("ADD succeeded without telling its result")
	}
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// kubelet may repeat an ADD. The first attachment must outlive the second's
// failure.
func TestRepeatedAddKeepsTheFirst(t *testing.T) {
	n, pod := newNode(t), netlab.TestNamespace(t)
	e := podEnv("abc", pod)
	n.ok(e, n.conf("1.0.0"))
	before := n.holds()
	n.fails(e, n.conf("1.0.0"), 4, "attached already")
	n.sh("ip link set cni0 down") // one more way to fail: the bridge
	n.sh("ip link set cni0 name cni1")
	n.sh("ip link add cni0 type veth")
	n.fails(e, n.conf("1.0.0"), 5, `kind "veth", want a bridge`)
	n.sh("ip link del cni0")
	if after := n.holds(); after != before {
		t.Errorf("the first attachment was\n%sand is\n%s", before, after)
	}
}

func TestAddWaitsForNodeFile(t *testing.T) {
	n, pod := newNode(t), netlab.TestNamespace(t)
	if err := os.Remove(filepath.Join(n.dir, "node.json")); err != nil {
		t.Fatal(err)
	}
	cmd, out := command(podEnv("abc", pod), n.conf("1.0.0"))
	if err := n.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	n.fails(env{verb: "STATUS"}, n.conf("1.1.0"), 50, "node.json") // takes long enough for ADD to have looked
	n.writeNodeFile("10.244.1.0/24")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ADD: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "node.json"), []byte(`{"schema": 1, "no`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.fails(podEnv("def", pod), n.conf("1.0.0"), codeNodeFile, "node.json")
}

func TestWaitForNodeFileEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), addBound)
		defer cancel()
		start := time.Now()
		_, err := waitNodeFile(ctx, dir)
		if err == nil || !strings.Contains(err.Error(), "overlayd") || time.Since(start) != addBound {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// exhausted is a pool whose next address is free after a while.
type exhausted struct{ free time.Time }

func (p exhausted) Acquire(context.Context, ipam.Request) (ipam.Slot, error) {
	if wait := time.Until(p.free); wait > 0 {
		return ipam.Slot{}, &ipam.ExhaustedError{Usage: ipam.Usage{Total: 2, Held: 1, Resting: 1, Next: wait}}
	}
	return ipam.Slot{Index: 7}, nil
}

func TestAddWaitsForARestingAddress(t *testing.T) {
	for _, test := range []struct {
		next, took time.Duration
		ok         bool
	}{
		{3 * time.Second, 3 * time.Second, true},
		{addBound + 1, 0, false}, // not worth the wait
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), addBound)
			defer cancel()
			start := time.Now()
			slot, err := acquire(ctx, exhausted{start.Add(test.next)}, ipam.Request{})
			if took := time.Since(start); took != test.took || (slot.Index == 7) != test.ok {
				t.Errorf("free in %s: %v, %v after %s", test.next, slot, err, took)
			}
			if !test.ok && !errors.Is(err, ipam.ErrExhausted) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestAddWithoutAddresses(t *testing.T) {
	n := newNode(t)
	n.writeNodeFile("10.244.1.0/29") // 5 for pods
	for i := range 5 {
		n.ok(podEnv(fmt.Sprintf("c%d", i), netlab.TestNamespace(t)), n.conf("1.0.0"))
	}
	one := podEnv("one-more", netlab.TestNamespace(t))
	n.fails(one, n.conf("1.0.0"), codeExhausted, "5 of 5 held")
	n.fails(env{verb: "STATUS"}, n.conf("1.1.0"), 50, "every address")
	n.ok(env{verb: "DEL", container: "c3", ifname: "eth0"}, n.conf("1.0.0"))
	n.fails(one, n.conf("1.0.0"), 11, "1 resting")
	n.ok(env{verb: "STATUS"}, n.conf("1.1.0"))
}

// A new lease: old pods keep what they have, the bridge serves the new subnet.
func TestAddAfterTheSubnetChanged(t *testing.T) {
	n := newNode(t)
	n.ok(podEnv("old", netlab.TestNamespace(t)), n.conf("1.0.0"))
	n.writeNodeFile("10.244.9.0/24", "fd00:9::/64")
	r := n.add(podEnv("new", netlab.TestNamespace(t)), n.conf("1.0.0"))
	if want := []string{"10.244.9.2/24", "fd00:9::2/64"}; !slices.Equal(addresses(r), want) {
		t.Errorf("addresses %v, want %v", addresses(r), want)
	}
	if out := n.sh("ip -br addr show cni0"); strings.Contains(out, "10.244.1.1") || !strings.Contains(out, "10.244.9.1/24") {
		t.Errorf("bridge: %s", out)
	}
	for _, id := range []string{"old", "new"} {
		n.ok(env{verb: "DEL", container: id, ifname: "eth0"}, n.conf("1.0.0"))
	}
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestAddsInParallel(t *testing.T) {
	const pods = 30
	n := newNode(t)
	type call struct {
		wait func() error
		out  *bytes.Buffer
		env  env
	}
	var calls []call
	for i := range pods {
		e := podEnv(fmt.Sprintf("c%d", i), netlab.TestNamespace(t))
		cmd, out := command(e, n.conf("1.0.0"))
		if err := n.ns.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, call{cmd.Wait, out, e})
	}
	for _, c := range calls {
		if err := c.wait(); err != nil {
			t.Errorf("%s: %v: %s", c.env.container, err, c.out)
		}
	}
	given := map[string]bool{}
	slots, err := ipam.List(t.Context(), n.dir)
	for _, s := range slots {
		given[fmt.Sprint(s.Addrs)] = true
	}
	if err != nil || len(given) != pods || len(n.links()) != pods {
		t.Errorf("%d addresses and %d links for %d pods (%v)", len(given), len(n.links()), pods, err)
	}
	for _, c := range calls {
		n.ok(c.env.with("DEL"), n.conf("1.0.0"))
	}
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// A pipe where a namespace is expected must not keep ADD waiting for its writer.
func TestPipeIsNoNamespace(t *testing.T) {
	n := newNode(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	n.fails(env{verb: "ADD", container: "abc", netns: pipe, ifname: "eth0"}, n.conf("1.0.0"), 4, "not a network namespace")
	n.ok(env{verb: "DEL", container: "abc", netns: pipe, ifname: "eth0"}, n.conf("1.0.0"))
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
