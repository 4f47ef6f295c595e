package vxlan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

const testDevice = "overlay.1"

// testConfig is what the tests' device should be.
func testConfig() Config {
	return Config{
		Name: testDevice, VNI: 1, Port: 8472, MAC: MAC{2, 0, 0, 0, 0, 1}, Local: addr("192.0.2.1"), MTU: 1450,
		Addrs: []netip.Prefix{prefix("10.244.0.0/32"), prefix("fd00::/128")},
	}
}

// openIn opens the device inside a namespace, for as long as the test takes.
func openIn(t testing.TB, ns *netlab.Namespace, c Config) *Device {
	t.Helper()
	var d *Device
	if err := ns.Do(func() (err error) {
		d, err = Open(c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// ensure makes the device right, and fails the test if that is refused.
func ensure(t testing.TB, d *Device) []string {
	t.Helper()
	did, err := d.Ensure()
	if err != nil {
		t.Fatalf("ensure (after %q): %v", did, err)
	}
	return did
}

// reconcile makes the tables right, and fails the test if that is refused.
func reconcile(t testing.TB, k Kernel, want State) []Op {
	t.Helper()
	ops, err := Reconcile(k, Exactly(want))
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// run carries out one command inside the namespace and returns the id of its
// process.
func run(t testing.TB, ns *netlab.Namespace, line string) uint32 {
	t.Helper()
	f := strings.Fields(line)
	cmd := ns.Command(f[0], f[1:]...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return uint32(cmd.Process.Pid)
}

// show returns what a command inside the namespace prints.
func show(t testing.TB, ns *netlab.Namespace, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := ns.Output(f[0], f[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// seen returns the device's tables as ip and bridge print them, in the words of
// Entry. Lines that no Entry would print stay as they are.
func seen(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	out, err := ns.Output("sh", "-c", fmt.Sprintf(
		"ip -4 route show proto %[1]d; ip -6 route show proto %[1]d; ip neigh show dev %[2]s nud permanent; bridge fdb show dev %[2]s", Protocol, testDevice))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, entryText(strings.TrimSpace(line)))
	}
	return sorted(lines)
}

func entryText(line string) string {
	f := strings.Fields(line)
	switch {
	case strings.HasSuffix(line, "self permanent") && len(f) == 5 && f[1] == "dst":
		return fmt.Sprintf("fdb %s dst %s", f[0], f[2])
	case strings.HasSuffix(line, "PERMANENT") && len(f) == 4 && f[1] == "lladdr":
		return fmt.Sprintf("neigh %s lladdr %s", f[0], f[2])
	case len(f) >= 6 && f[1] == "via" && f[3] == "dev" && f[4] == testDevice && strings.Contains(line, "onlink"):
		return fmt.Sprintf("route %s via %s onlink", f[0], f[2])
	case len(f) >= 5 && f[1] == "via" && f[3] == "dev" && f[4] == "under" && !strings.Contains(line, "onlink"):
		return fmt.Sprintf("route %s via %s", f[0], f[2])
	}
	return line
}
