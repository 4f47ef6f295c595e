package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// The limits of issue and design: small, and without what takes long to start.
func TestBinary(t *testing.T) {
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 6<<20 {
		t.Errorf("binary has %d bytes, want at most 6 MiB", info.Size())
	}
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for _, bad := range []string{"net/http", "crypto/tls", "go.etcd.io/", "k8s.io/", "os/exec"} {
			if dep == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(dep, bad) {
				t.Errorf("links %s", dep)
			}
		}
	}
}

func BenchmarkADD(b *testing.B) {
	n := newNode(b)
	conf := n.conf("1.0.0")
	n.ok(podEnv("first", netlab.TestNamespace(b)), conf)
	pod := netlab.TestNamespace(b)
	for i := 0; b.Loop(); i++ {
		e := podEnv(fmt.Sprintf("c%d", i), pod)
		n.ok(e, conf)
		b.StopTimer()
		n.ok(e.with("DEL"), conf)
		b.StartTimer()
	}
}

func BenchmarkDEL(b *testing.B) {
	n := newNode(b)
	conf := n.conf("1.0.0")
	pod := netlab.TestNamespace(b)
	for i := 0; b.Loop(); i++ {
		e := podEnv(fmt.Sprintf("c%d", i), pod)
		b.StopTimer()
		n.ok(e, conf)
		b.StartTimer()
		n.ok(e.with("DEL"), conf)
	}
}

// One process and no more: what kubelet's repeated DELs cost.
func BenchmarkDELOfUnknown(b *testing.B) {
	n := newNode(b)
	conf := n.conf("1.0.0")
	n.ok(podEnv("first", netlab.TestNamespace(b)), conf)
	for b.Loop() {
		n.ok(env{verb: "DEL", container: "unknown", ifname: "eth0"}, conf)
	}
}

func BenchmarkVERSION(b *testing.B) {
	n := newNode(b)
	for b.Loop() {
		n.ok(env{verb: "VERSION"}, "")
	}
}

func BenchmarkSTATUS(b *testing.B) {
	n := newNode(b)
	conf := n.conf("1.1.0")
	for b.Loop() {
		n.ok(env{verb: "STATUS"}, conf)
	}
}

func BenchmarkCHECK(b *testing.B) {
	n := newNode(b)
	e := podEnv("abc", netlab.TestNamespace(b))
	conf := n.conf("1.0.0", `"prevResult": `+n.ok(e, n.conf("1.0.0")))
	for b.Loop() {
		n.ok(e.with("CHECK"), conf)
	}
}
