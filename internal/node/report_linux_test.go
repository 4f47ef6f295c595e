package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// reporter is a Manager that keeps what is reported.
type reporter struct {
	subnet.Manager

	mu  sync.Mutex
	all []string
}

func (r *reporter) Report(node string, warning bool, reason, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fmt.Sprintf("%s %t %s %s", node, warning, reason, text))
}

// told waits for a report that begins so and contains what.
func (r *reporter) told(t *testing.T, begin, what string) {
	t.Helper()
	eventually(t, "report "+begin, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !slices.ContainsFunc(r.all, func(s string) bool { return strings.HasPrefix(s, "self "+begin) && strings.Contains(s, what) }) {
			return fmt.Errorf("%q is not in %q", what, r.all)
		}
		return nil
	})
}

// Admins hear that the network is up, what somebody else did to it, and why it is
// not followed; and of nothing else.
func TestAdminsAreTold(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	m := &reporter{Manager: store.Manager()}
	r := startWith(t, m, nil)
	r.ready()
	r.inSync(1)
	m.told(t, "false OverlayReady", "192.0.2.10")
	m.mu.Lock()
	if all := slices.DeleteFunc(slices.Clone(m.all), func(s string) bool {
		return strings.Contains(s, reportReady) || strings.Contains(s, reportSettings)
	}); len(all) > 0 {
		t.Errorf("told of a node that is well: %q", all)
	}
	m.mu.Unlock()
	ip(t, "ip route del 10.244.77.0/24")
	m.told(t, "true OverlayRepaired", "10.244.77.0/24")
	ip(t, "sh -c 'nft add table inet other && nft add chain inet other forward {type filter hook forward priority 0\\;policy drop\\;}'")
	defer ip(t, "nft delete table inet other")
	ip(t, "ip addr del 192.0.2.10/24 dev eth0")
	m.told(t, "true UnderlayLost", "")
	ip(t, "ip addr add 192.0.2.11/24 dev eth0")
	ip(t, "ip route add default via 192.0.2.1")
	m.told(t, "false UnderlayChanged", "192.0.2.11")
	m.told(t, "true PodsBlocked", "inet other")
}

// failing is a store whose leases cannot be had.
type failing struct{ *reporter }

func (failing) Acquire(context.Context, subnet.Request) (subnet.Lease, error) {
	return subnet.Lease{}, fmt.Errorf("spec.podCIDRs: outside the pod network")
}

// What ends the daemon is told before it ends.
func TestFailureIsTold(t *testing.T) {
	underlay(t)
	m := &reporter{Manager: subnettest.NewStore(network(t)).Manager()}
	r := startWith(t, failing{m}, nil)
	if err := <-r.done; err == nil {
		t.Error("the daemon ended without an error")
	}
	r.done = nil
	m.told(t, "true OverlayFailed", "outside the pod network")
}
