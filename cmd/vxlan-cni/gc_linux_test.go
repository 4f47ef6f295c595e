package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

func TestGC(t *testing.T) {
	n := newNode(t)
	attach := func(id string, conf ...string) {
		n.ok(podEnv(id, netlab.TestNamespace(t)), n.conf("1.1.0", conf...))
	}
	attach("a")
	attach("b")
	attach("other", `"name": "other-network"`)
	before := n.holds()
	collect := env{verb: "GC"}

	n.fails(collect, n.conf("1.1.0"), 7, "cni.dev/valid-attachments")
	n.fails(collect, n.conf("1.1.0", `"cni.dev/valid-attachments": {}`), 7, "cni.dev/valid-attachments")
	n.fails(collect, n.conf("1.1.0", `"cni.dev/valid-attachments": [{"ifname": "eth0"}]`), 7, "entry 0")
	n.fails(collect, n.conf("1.0.0", `"cni.dev/valid-attachments": []`), 1, "does not allow GC")
	n.ok(collect, n.conf("1.1.0", `"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]`))
	if after := n.holds(); after != before {
		t.Errorf("held\n%sand after a GC of nothing\n%s", before, after)
	}

	n.sh("ip link set " + pod.HostName("b", "eth0") + " alias nothing") // as if killed half-way
	n.ok(collect, n.conf("1.1.0", `"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]`))
	if left := n.holds(); strings.Count(left, "slot ") != 2 || strings.Count(left, "link ") != 2 || strings.Contains(left, "slot b/") {
		t.Errorf("after a GC of b:\n%s", left)
	}
	n.ok(collect, n.conf("1.1.0", `"cni.dev/valid-attachments": null`)) // libcni's empty list
	left := n.holds()
	if strings.Count(left, "\n") != 2 || !strings.Contains(left, "slot other/eth0") {
		t.Errorf("after a GC of all, another network has\n%s", left)
	}
}

func TestGCGoesOnAfterErrors(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"a", "b"} {
		n.ok(podEnv(id, netlab.TestNamespace(t)), n.conf("1.1.0"))
	}
	torn := filepath.Join(n.dir, "slots-10.244.77.0-24")
	if err := os.WriteFile(torn, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.fails(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": []`), codeSlotFile, torn)
	if links := n.links(); len(links) != 0 {
		t.Errorf("left behind: %v", links)
	}
	if err := os.Remove(torn); err != nil {
		t.Fatal(err)
	}
	n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": []`))
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestStaleAttachments(t *testing.T) {
	port := func(id, network string) pod.Port {
		return pod.Port{Container: id, IfName: "eth0", Network: network, HostName: pod.HostName(id, "eth0")}
	}
	half := func(id string) pod.Port { return pod.Port{HostName: pod.HostName(id, "eth0")} }
	renamed := func(id string) pod.Port {
		p := port(id, "pods")
		p.HostName = "renamed-" + id
		return p
	}
	slot := func(id string) ipam.Entry {
		return ipam.Entry{Slot: ipam.Slot{Key: ipam.Key{Container: id, IfName: "eth0"}}}
	}
	for name, test := range map[string]struct {
		valid string // container ids
		ports []pod.Port
		slots []ipam.Entry
		want  string
	}{
		"nothing there":          {valid: "a"},
		"all valid":              {valid: "a b", ports: []pod.Port{port("a", "pods"), half("b")}, slots: []ipam.Entry{slot("a"), slot("b")}},
		"link and slot":          {ports: []pod.Port{port("a", "pods")}, slots: []ipam.Entry{slot("a")}, want: "link+slot a"},
		"link without slot":      {ports: []pod.Port{port("a", "pods")}, want: "link+slot a"},
		"slot without link":      {valid: "b", slots: []ipam.Entry{slot("a"), slot("b")}, want: "slot a"},
		"half a link and a slot": {ports: []pod.Port{half("a")}, slots: []ipam.Entry{slot("a")}, want: "link  slot a"},
		"renamed, valid":         {valid: "a", ports: []pod.Port{renamed("a")}, slots: []ipam.Entry{slot("a")}},
		"renamed, stale":         {ports: []pod.Port{renamed("a")}, slots: []ipam.Entry{slot("a")}, want: "link+slot a"},
		"two halves":             {ports: []pod.Port{half("a"), half("b")}, want: "link  link "},
		"another network":        {ports: []pod.Port{port("a", "other")}, slots: []ipam.Entry{slot("a")}},
	} {
		var list []types.GCAttachment
		for id := range strings.FieldsSeq(test.valid) {
			list = append(list, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
		var got []string
		for _, s := range staleAttachments("pods", list, test.ports, test.slots) {
			switch {
			case s.link == "":
				got = append(got, "slot "+s.key.Container)
			case s.key.Container == "":
				got = append(got, "link ")
			default:
				got = append(got, "link+slot "+s.key.Container)
			}
		}
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s: stale %q, want %q", name, text, test.want)
		}
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t)
	ask := env{verb: "STATUS"}
	n.ok(ask, n.conf("1.1.0")) // no overlayd runs here at all
	n.fails(ask, n.conf("1.0.0"), 1, "does not allow STATUS")
	n.fails(ask, n.conf("1.1.0", `"nosuch": 1`), 7, "nosuch")
	n.fails(ask, n.conf("1.1.0", fmt.Sprintf(`"runDir": %q`, t.TempDir())), 50, "node.json")
	if err := os.WriteFile(filepath.Join(n.dir, "slots-10.244.1.0-24"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.fails(ask, n.conf("1.1.0"), 50, "slots-10.244.1.0-24")
}

// A renamed link is its pod's still, for GC, for an ADD that is repeated, and for DEL.
func TestRenamedLinkIsThePods(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	e := podEnv("abc", p)
	n.ok(e, n.conf("1.1.0"))
	n.sh("ip link set " + n.links()[0] + " name vethrenamed")
	before := n.holds()
	n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": [{"containerID": "abc", "ifname": "eth0"}]`))
	n.fails(e, n.conf("1.1.0"), 4, "CNI_IFNAME")
	if after := n.holds(); after != before {
		t.Errorf("after GC and ADD:\n%swant:\n%s", after, before)
	}
	n.ok(e.with("DEL"), n.conf("1.1.0"))
	if left := n.holds(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
