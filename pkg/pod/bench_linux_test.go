package pod

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// filledFilter makes a filter with n ports in the node's namespace.
func filledFilter(b *testing.B, node *netlab.Namespace, n int) (list []Guarded) {
	b.Helper()
	in(b, node, func() error {
		for i := range n {
			g := Guarded{
				Container: fmt.Sprint(i), IfName: "eth0",
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))},
			}
			list = append(list, g)
			if err := testGuard(g); err != nil {
				return err
			}
		}
		return nil
	})
	return list
}

// testGuard puts an attachment's elements in.
func testGuard(g Guarded) error {
	f, err := dialFilter()
	if err != nil {
		return err
	}
	defer f.close()
	return f.guard(HostName(g.Container, g.IfName), g.mac(), g.Addrs)
}

// BenchmarkFilter is what the filter costs one ADD, CHECK and DEL, and the daemon a
// look at all of it.
func BenchmarkFilter(b *testing.B) {
	for _, n := range []int{1, 250, 4000} {
		node := netlab.TestNamespace(b)
		list := filledFilter(b, node, n)
		g := Guarded{Container: "one more", IfName: "eth0", Addrs: addrs("10.245.0.1", "fd00:2::1")}
		name := HostName(g.Container, g.IfName)
		run := func(what string, fn func(b *testing.B) error) {
			b.Run(fmt.Sprintf("ports=%d/%s", n, what), func(b *testing.B) {
				in(b, node, func() error {
					for b.Loop() {
						if err := fn(b); err != nil {
							return err
						}
					}
					return nil
				})
			})
		}
		run("guard", func(*testing.B) error { return testGuard(g) })
		run("check", func(*testing.B) error { return CheckFilter(g) })
		run("guard+unguard", func(*testing.B) error {
			if err := testGuard(g); err != nil {
				return err
			}
			return unguard(name)
		})
		run("unguard unknown", func(*testing.B) error { return unguard(name) })
		run("ensure", func(*testing.B) error {
			changes, err := EnsureFilter(func() ([]Guarded, error) { return list, nil })
			if err == nil && len(changes) > 0 {
				err = fmt.Errorf("%d changes: %q", len(changes), changes[0])
			}
			return err
		})
	}
}
