package vxlan

import (
	"fmt"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A question that nobody read (its notification was dropped, or came while no
// daemon ran) is answered by the next comparison, also in on-miss mode.
func TestReconcileAnswersWhatWasAskedUnheard(t *testing.T) {
	ns := netlab.TestNamespace(t)
	d := openIn(t, ns, testConfig())
	ensure(t, d)
	want := Desired(peersOf(1, 1, 0, 0))
	if _, err := Reconcile(d, want.OnMiss); err != nil {
		t.Fatal(err)
	}
	gateway := addr("10.244.1.0")
	if s, err := d.State(); err != nil || len(s.Neighs) != 0 || len(s.Asked) != 0 {
		t.Fatalf("before anybody asked: %+v, %v", s, err)
	}
	conn, err := ns.Dial("udp", "10.244.1.5:9")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	err = netlab.Eventually(2*time.Second, func() error {
		s, err := d.State()
		if err == nil && !s.Asked[gateway] {
			err = fmt.Errorf("asked %v", s.Asked)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ops, err := Reconcile(d, want.OnMiss)
	if err != nil || len(ops) != 2 {
		t.Errorf("did %v, %v; want the FDB entry and the neighbour", ops, err)
	}
	s, err := d.State()
	if err != nil || s.Neighs[gateway] != peersOf(1, 1, 0, 0)[0].MAC || s.Asked[gateway] {
		t.Errorf("holds %+v, %v", s, err)
	}
	if ops, err := Reconcile(d, want.OnMiss); err != nil || len(ops) != 0 {
		t.Errorf("a second one did %v, %v", ops, err)
	}
}
