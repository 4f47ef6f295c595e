package node

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// write sets a kernel setting of the test's namespace for as long as the test takes.
func write(t *testing.T, path, value string) {
	t.Helper()
	old, err := os.ReadFile(procSys + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(procSys+"/"+path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(procSys+"/"+path, old, 0) })
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(procSys + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestWrongSettingsAreToldOrMended(t *testing.T) {
	underlay(t)
	write(t, "net/ipv4/ip_forward", "0")
	write(t, "net/ipv6/conf/all/forwarding", "0")
	write(t, "net/ipv6/conf/eth0/accept_ra", "1")
	write(t, "net/ipv4/conf/all/rp_filter", "1")
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	told := start(t, store, nil)
	told.ready()
	want := []string{"net.ipv4.ip_forward is 0", "net.ipv6.conf.all.forwarding is 0", "net.ipv4.conf.overlay/1.rp_filter is "}
	eventually(t, "warnings", func() error {
		text := strings.Join(told.status().Warnings, "\n")
		for _, w := range want {
			if !strings.Contains(text, w) {
				return fmt.Errorf("warnings are\n%s\nwant %q", text, w)
			}
		}
		return nil
	})
	if read(t, "net/ipv4/ip_forward") != "0" {
		t.Error("a setting was changed unasked")
	}
	told.end()
	if n := strings.Count(told.log.String(), "net.ipv4.ip_forward is 0"); n != 1 {
		t.Errorf("told %d times", n)
	}

	mended := start(t, store, func(c *Config) { c.FixSysctls = true })
	mended.ready()
	eventually(t, "no warnings", func() error {
		if w := mended.status().Warnings; len(w) > 0 {
			return fmt.Errorf("%q", w)
		}
		return nil
	})
	for path, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/eth0/accept_ra": "2", "net/ipv4/conf/overlay.1/rp_filter": "2",
		"net/ipv4/conf/eth0/rp_filter": "0", // not ours
	} {
		if got := read(t, path); got != value {
			t.Errorf("%s is %s, want %s", path, got, value)
		}
	}
}

func TestOtherMTUsAreTold(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	l := lease("small", "10.244.77.0/24", "192.0.2.77", 77)
	l.MTU = 1350
	put(t, store, l)
	r := start(t, store, nil)
	r.ready()
	r.inSync(1)
	l.MTU = 1400 // which alone changes nothing in the kernel
	put(t, store, l)
	eventually(t, "told", func() error {
		if text := strings.Join(r.status().Warnings, "\n"); !strings.Contains(text, "is 1450 here and 1400 on small") {
			return fmt.Errorf("warnings: %s", text)
		}
		return nil
	})
}
