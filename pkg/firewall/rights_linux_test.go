package firewall

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// asked tells the child of TestRights what to do.
const asked = "OVL_FIREWALL_MODE"

// A daemon that may do nothing but CAP_NET_ADMIN, and CAP_NET_RAW where it runs
// the legacy iptables, with a /proc that cannot be written.
func TestRights(t *testing.T) {
	if mode := os.Getenv(asked); mode != "" {
		if err := ensureAll(Mode(mode)); err != nil {
			t.Fatal(err)
		}
		return
	}
	each(t, func(t *testing.T, v variant) {
		ns := netlab.TestNamespace(t)
		rights := "-all,+net_admin"
		if v.mode != NFTables { // auto: legacy's FORWARD drops
			rights += ",+net_raw"
		}
		run(t, ns, "iptables-nft -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP")
		before := ruleset(t, ns)
		line := fmt.Sprintf("mount -o bind,remount,ro /proc; exec setpriv --bounding-set=%s %s -test.run '^TestRights$' -test.v", rights, os.Args[0])
		cmd := ns.Command("unshare", "--mount", "sh", "-ec", line)
		cmd.Env = append(os.Environ(), asked+"="+string(v.mode))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "PASS") {
			t.Fatalf("%v: %s", err, out)
		}
		if after := ruleset(t, ns); v.mode == NFTables && after != before {
			t.Errorf("it is\n%s\nand was\n%s", after, before)
		}
	})
}

// ensureAll goes through a life of the rules.
func ensureAll(mode Mode) error {
	f, err := Open(mode, slog.Default())
	if err != nil {
		return err
	}
	for range 2 {
		did, err := f.Ensure(testRules())
		slog.Info("ensure", "did", did)
		if err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	did, err := Remove()
	slog.Info("remove", "did", did)
	return err
}
