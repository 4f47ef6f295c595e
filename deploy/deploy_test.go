package deploy

import (
	"encoding/json"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// TestDropIns: what keeps other network managers off our links names all of
// them, and nobody else's.
func TestDropIns(t *testing.T) {
	ours := []string{"overlay.1", "overlay-v6.1", "overlay-br0", pod.HostName("0123456789abcdef", "eth0")}
	others := []string{"eth0", "ens3", "wlan0", "docker0", "veth0", "veth1a2b3c4", "cni0", "flannel.1", "lo"}
	for file, line := range map[string]*regexp.Regexp{
		"networkmanager/90-vxlan-cni.conf":      regexp.MustCompile(`(?m)^unmanaged-devices\+=(.+)$`),
		"systemd-networkd/10-vxlan-cni.network": regexp.MustCompile(`(?m)^Name=(.+)$`),
		"systemd-networkd/10-vxlan-cni.link":    regexp.MustCompile(`(?m)^OriginalName=(.+)$`),
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := line.FindSubmatch(text)
		if found == nil {
			t.Errorf("%s names no links", file)
			continue
		}
		patterns := strings.FieldsFunc(string(found[1]), func(r rune) bool { return r == ';' || r == ' ' })
		matches := func(link string) bool {
			for _, p := range patterns {
				if ok, err := path.Match(strings.TrimPrefix(p, "interface-name:"), link); err != nil {
					t.Fatalf("%s: %q: %v", file, p, err)
				} else if ok {
					return true
				}
			}
			return false
		}
		for _, link := range ours {
			if !matches(link) {
				t.Errorf("%s does not name %s", file, link)
			}
		}
		for _, link := range others {
			if matches(link) {
				t.Errorf("%s names %s", file, link)
			}
		}
	}
}

// TestConflist: it is JSON, and its first plugin is ours.
func TestConflist(t *testing.T) {
	var list struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(Conflist, &list); err != nil || list.Name == "" || len(list.Plugins) == 0 || list.Plugins[0].Type != "vxlan-cni" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestServiceMayWriteTheConflist: ProtectSystem=strict makes everything else
// read-only.
func TestServiceMayWriteTheConflist(t *testing.T) {
	text, err := os.ReadFile("overlayd.service")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^ProtectSystem=strict$`).Match(text) || !regexp.MustCompile(`(?m)^ReadWritePaths=-/etc/cni/net\.d$`).Match(text) {
		t.Errorf("overlayd.service:\n%s\nwant /etc/cni/net.d writable, if it is there", text)
	}
}
