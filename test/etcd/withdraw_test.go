package etcd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

// TestWithdraw: the own records go, a reservation stays one that peers do not
// send to, and everybody else's stay as they are.
func TestWithdraw(t *testing.T) {
	s := newStore(t, network)
	m2 := s.manager(t, nil)
	other := acquire(t, m2, request("node-2"))
	r := run(t, m2)
	acquire(t, s.manager(t, nil), request("node-1"))
	r.wait(t, "node-1", peers(other, "node-1"))
	m := s.manager(t, nil)
	for range 2 {
		if err := m.Withdraw(within(t), "node-1"); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(t, "no peers", peers(other))
	if n := len(s.records(t)); n != 1 {
		t.Errorf("%d records left, want node-2's", n)
	}

	value, err := subnet.EncodeRecord(subnet.Lease{Node: "node-1", Backend: "vxlan", VTEPs: request("node-1").VTEPs})
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, subnets+"10.244.99.0-24", string(value)) // hangs on no etcd lease
	r.wait(t, "the reservation", peers(other, "node-1"))
	if err := m.Withdraw(within(t), "node-1"); err != nil {
		t.Fatal(err)
	}
	r.wait(t, "no peers again", peers(other))
	again := acquire(t, s.manager(t, nil), request("node-1"))
	if again.Subnets[0].String() != "10.244.99.0/24" || !again.Reserved {
		t.Errorf("came back as %+v, want what is reserved for it", again)
	}
}

// TestWithdrawWaits: until its context ends, and then the error says for what.
func TestWithdrawWaits(t *testing.T) {
	m, err := etcd.New(etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.Withdraw(ctx, "node-1"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not reachable") {
		t.Errorf("without etcd: %v", err)
	}
}
