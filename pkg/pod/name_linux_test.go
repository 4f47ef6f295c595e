package pod

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHostName(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"a", "b", "a/eth0", strings.Repeat("f", 64), strings.Repeat("f", 63) + "e"} {
		for _, ifname := range []string{"eth0", "eth1", "net1"} {
			name := HostName(id, ifname)
			if other := seen[name]; other != "" || len(name) != 15 || !strings.HasPrefix(name, "veth") {
				t.Errorf("%s of %s: %q, which is also %q", ifname, id, name, other)
			}
			seen[name] = id + " " + ifname
		}
	}
	// Names must not change between versions: DEL comes from a later one.
	if got := HostName("abc", "eth0"); got != "veth538f587a236" {
		t.Errorf("name %s", got)
	}
}

func TestMACFor(t *testing.T) {
	for text, want := range map[string]string{
		"10.244.1.7/24":            "0a:58:0a:f4:01:07",
		"fd00::7/64 10.244.1.7/24": "0a:58:0a:f4:01:07",
		"fd00::7/64":               "0a:58:00:00:00:07",
		"fd00::1:2345:6789/64":     "0a:58:23:45:67:89",
	} {
		if got := MACFor(prefixes(strings.Fields(text)...)).String(); got != want {
			t.Errorf("MAC of %s: %s, want %s", text, got, want)
		}
	}
}

func TestAlias(t *testing.T) {
	longID, longNetwork := strings.Repeat("c", maxContainer), strings.Repeat("n", MaxNetwork)
	for name, test := range map[string]struct{ a Attachment }{
		"usual":          {Attachment{Container: strings.Repeat("0", 64), IfName: "eth0", Network: "pods", Pod: "kube-system/coredns-7db6d8ff4d-abcde"}},
		"no pod":         {Attachment{Container: "c", IfName: "eth0", Network: "pods"}},
		"long pod":       {Attachment{Container: strings.Repeat("0", 64), IfName: "eth0", Network: "pods", Pod: strings.Repeat("p", 63) + "/" + strings.Repeat("q", 253)}},
		"long in bytes":  {Attachment{Container: "c", IfName: "eth0", Network: "pods", Pod: "n/" + strings.Repeat("é", 200)}},
		"all at maximum": {Attachment{Container: longID, IfName: strings.Repeat("i", 15), Network: longNetwork, Pod: "n/p"}},
	} {
		text := test.a.alias()
		p, ok := parseAlias(text)
		on := test.a
		on.Hairpin = true
		if wantsHairpin(text) || !wantsHairpin(on.alias()) {
			t.Errorf("%s: hairpin mode is lost: %q, %q", name, text, on.alias())
		}
		if len(text) > maxAlias || !utf8.ValidString(text) || !ok {
			t.Errorf("%s: %d bytes: %q", name, len(text), text)
		}
		if p.Container != test.a.Container || p.IfName != test.a.IfName || p.Network != test.a.Network || !strings.HasPrefix(test.a.Pod, p.Pod) {
			t.Errorf("%s: read back as %+v", name, p)
		}
	}
	for _, text := range []string{
		"", "vxlan-cni", "vxlan-cni a/eth0", "vxlan-cni a pods", "vxlan-cni /eth0 pods", "vxlan-cni a/ pods", "vxlan-cni a/eth0/x pods",
		"vxlan-cni a/eth0  n/p", "vxlan-cni a/eth0 pods n/p more", "other a/eth0 pods n/p", "vxlan-cnia/eth0 pods n/p", "vxlan-cni-- a/eth0 pods",
	} {
		if p, ok := parseAlias(text); ok {
			t.Errorf("%q was read as %+v", text, p)
		}
	}
}

func FuzzAlias(f *testing.F) {
	f.Add("abc", "eth0", "pods", "default/web")
	f.Add(strings.Repeat("c", 180), "abcdefghijklmno", strings.Repeat("n", 47), "é/é")
	f.Fuzz(func(t *testing.T, container, ifname, network, pod string) {
		if p, ok := parseAlias(container); ok && p.Container+p.IfName+p.Network == "" {
			t.Errorf("%q was read as nothing", container)
		}
		a := Attachment{Hairpin: len(container)%2 == 0, Container: container, IfName: ifname, Network: network, Pod: pod, Addrs: prefixes("10.0.0.1/24")}
		if a.check() != nil {
			return
		}
		p, ok := parseAlias(a.alias())
		if !ok || len(a.alias()) > maxAlias || p.Container != container || p.IfName != ifname || p.Network != network || !strings.HasPrefix(pod, p.Pod) {
			t.Errorf("%+v was read back as %+v from %q", a, p, a.alias())
		}
	})
}
