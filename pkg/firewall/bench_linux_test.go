package firewall

import (
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// What a wish costs on a node with 1,000 peers: all of it, one peer more or less,
// and none where others have or have not changed anything.
func BenchmarkEnsure(b *testing.B) {
	ns := netlab.TestNamespace(b)
	f := open(b, ns, Auto)
	r := testRules()
	r.Peers = manyPeers(500)
	less := r
	less.Peers = r.Peers[1:]
	loop := func(name string, before func(), rules ...Rules) {
		b.Run(name, func(b *testing.B) {
			must(b, ns.Do(func() error {
				for i := 0; b.Loop(); i++ {
					before()
					if _, err := f.Ensure(rules[i%len(rules)]); err != nil {
						return err
					}
				}
				return nil
			}))
		})
	}
	loop("whole", func() {}, r, Rules{})
	ensure(b, ns, f, r)
	loop("one peer", func() {}, less, r)
	ensure(b, ns, f, r)
	loop("nothing", func() {}, r)
	loop("compare", func() { f.good = false }, r)
}
