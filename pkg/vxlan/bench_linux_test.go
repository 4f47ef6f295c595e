package vxlan

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// manyState is what n peers with an IPv4 subnet each ask for: 3n entries.
func manyState(n int) State {
	peers := make([]Peer, n)
	for i := range peers {
		hi, lo := byte(i>>8), byte(i)
		gw := netip.AddrFrom4([4]byte{10, 128 + hi, lo, 0})
		peers[i] = Peer{Subnet: netip.PrefixFrom(gw, 24), Gateway: gw, MAC: MAC{0x0e, 1, 0, 0, hi, lo}, Underlay: netip.AddrFrom4([4]byte{172, 16, hi, lo})}
	}
	return Desired(peers)
}

// BenchmarkReconcile measures a node's start among n peers and its audit, when
// there is nothing to do.
func BenchmarkReconcile(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		want := manyState(n)
		ns := netlab.TestNamespace(b)
		d := openIn(b, ns, testConfig())
		ensure(b, d)
		b.Run(fmt.Sprintf("from-empty/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ops := reconcile(b, d, want); len(ops) != 3*n {
					b.Fatalf("%d changes, want %d", len(ops), 3*n)
				}
				b.StopTimer()
				reconcile(b, d, Empty())
				b.StartTimer()
			}
		})
		reconcile(b, d, want)
		b.Run(fmt.Sprintf("unchanged/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ops := reconcile(b, d, want); len(ops) != 0 {
					b.Fatalf("%d changes, want none", len(ops))
				}
			}
		})
	}
}

func BenchmarkEnsureUnchanged(b *testing.B) {
	d := openIn(b, netlab.TestNamespace(b), testConfig())
	ensure(b, d)
	b.ReportAllocs()
	for b.Loop() {
		if did := ensure(b, d); len(did) != 0 {
			b.Fatalf("did %q", did)
		}
	}
}
