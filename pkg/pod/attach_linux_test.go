package pod

import (
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func TestAttachState(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	attach(t, node, testAttachment(ns, 7), e)
	t.Logf("%v\n%s\n%s", e.Changes, state(t, node), state(t, ns))
	e = ensure(t, node, testBridge())
	t.Log(e.Changes)
	in(t, node, func() error { return Check(testAttachment(ns, 7), "cni0") })
}

func BenchmarkAttachDetach(b *testing.B) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	for b.Loop() {
		in(b, node, func() error {
			if _, err := Attach(a, e); err != nil {
				return err
			}
			b.StopTimer()
			_, err := Detach(a.Container, a.IfName)
			b.StartTimer()
			return err
		})
	}
}

func BenchmarkDetach(b *testing.B) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	for b.Loop() {
		in(b, node, func() error {
			b.StopTimer()
			_, err := Attach(a, e)
			b.StartTimer()
			if err != nil {
				return err
			}
			_, err = Detach(a.Container, a.IfName)
			return err
		})
	}
}

func BenchmarkEnsure(b *testing.B) {
	node := netlab.TestNamespace(b)
	ensure(b, node, testBridge())
	for b.Loop() {
		ensure(b, node, testBridge())
	}
}
func BenchmarkCheck(b *testing.B) {
	node, ns := netlab.TestNamespace(b), netlab.TestNamespace(b)
	e := ensure(b, node, testBridge())
	a := testAttachment(ns, 7)
	attach(b, node, a, e)
	for b.Loop() {
		in(b, node, func() error { return Check(a, "cni0") })
	}
}
