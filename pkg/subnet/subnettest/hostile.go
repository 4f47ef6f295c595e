package subnettest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A hostile record and a word that the reason must have.
type hostile struct {
	key    string
	value  string
	reason string
}

// hostiles are records that must not reach the kernel of a node with this
// lease in the network 10.244.0.0/16. Each is harmful by itself.
func hostiles(t *testing.T, own subnet.Lease) []hostile {
	good := subnet.Lease{Node: "mallory", Backend: "vxlan", MTU: 1450, VTEPs: request(66).VTEPs}
	with := func(changes map[string]any) string {
		fields := record(t, good)
		maps.Copy(fields, changes)
		data, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	end := func(vni int, mac string) map[string]any {
		return map[string]any{"BackendData": map[string]any{"VNI": vni, "VtepMAC": mac}}
	}
	ours := own.VTEPs[0]
	return []hostile{
		{"10.244.240.0-24", "garbage", "invalid character"},
		{"10.244.240.0-24", "", "unexpected end"},
		{"10.244.240.0-24", "null", "JSON object"},
		{"10.244.240.0-24", `{"PublicIP":7}`, "PublicIP"},
		{"not a subnet", with(nil), "key"},
		{"10.99.0.0-24", with(nil), "10.99.0.0/24"},
		{"0.0.0.0-0", with(nil), "0.0.0.0-0"},
		{"0.0.0.0-1", with(nil), "0.0.0.0/1"},
		{"10.0.0.0-8", with(nil), "10.0.0.0/8"},
		{"10.244.0.0-16", with(nil), subnet.Key(own.Subnets)},
		{"10.244.240.7-24", with(nil), "host bits"},
		{subnet.Key([]netip.Prefix{netip.PrefixFrom(own.Subnets[0].Addr(), 25)}), with(nil), subnet.Key(own.Subnets)},
		{"10.244.240.0-24&fd00:1::-64", with(nil), "fd00:1::/64"},
		{"10.244.240.0-24", with(end(1, "01:00:5e:00:00:01")), "group"},
		{"10.244.240.0-24", with(end(1, "00:00:00:00:00:00")), "zero"},
		{"10.244.240.0-24", with(end(1, ours.MAC.String())), ours.MAC.String()},
		{"10.244.240.0-24", with(end(7, "0e:00:00:00:00:01")), "VNI 7"},
		{"10.244.240.0-24", with(map[string]any{"PublicIP": "10.244.3.4"}), "pod network"},
		{"10.244.240.0-24", with(map[string]any{"PublicIP": "224.0.0.1"}), "multicast"},
		{"10.244.240.0-24", with(map[string]any{"PublicIP": "127.0.0.1"}), "loopback"},
		{"10.244.240.0-24", with(map[string]any{"PublicIP": "255.255.255.255"}), "broadcast"},
		{"10.244.240.0-24", with(map[string]any{"PublicIP": ours.Underlay.String()}), ours.Underlay.String()},
		{"10.244.240.0-24", with(map[string]any{"BackendType": "udp"}), "udp"},
		{"10.244.240.0-24", with(map[string]any{"BackendType": "host-gw"}), "host-gw"},
	}
}

func testHostile(t *testing.T, f Fixture) {
	if f.PutRaw == nil || f.Delete == nil {
		return
	}
	m1, m2 := f.Manager(t), f.Manager(t)
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	want2 := request(2)
	want2.Want = []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}
	own, peer := acquire(t, m1, want), acquire(t, m2, want2)
	r := run(t, m1)
	r.wait(t, "both leases", sees(own, peer))
	for _, h := range hostiles(t, own) {
		f.PutRaw(t, h.key, []byte(h.value))
		snap := r.wait(t, "a reason with "+h.reason+" for "+h.key+" "+h.value, func(s subnet.Snapshot) bool {
			return slices.ContainsFunc(s.Ignored, func(i subnet.Ignored) bool {
				return strings.Contains(i.Key, h.key) && strings.Contains(i.Reason, h.reason)
			})
		})
		if !sees(own, peer)(snap) {
			t.Errorf("beside %s %s: own %+v, peers %+v", h.key, h.value, snap.Own, snap.Peers)
		}
		f.Delete(t, h.key)
		r.wait(t, "no record ignored", func(s subnet.Snapshot) bool { return len(s.Ignored) == 0 })
	}
}

// testForeign: a subnet that somebody else's record names is not given away,
// even if the record is not believed, and the record stays as it is.
func testForeign(t *testing.T, f Fixture) {
	if f.PutRaw == nil {
		return
	}
	// As flannel reserves subnets: an owner's address, no endpoint.
	f.PutRaw(t, "10.244.1.0-24", []byte(`{"PublicIP":"192.0.2.200","BackendType":"vxlan"}`))
	f.PutRaw(t, "10.244.2.0-24", []byte(`{"PublicIP":"192.0.2.201","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:02"},"FlannelsNext":{"a":1}}`))
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	m := f.Manager(t)
	own := acquire(t, m, want)
	if own.Subnets[0] != netip.MustParsePrefix("10.244.3.0/24") {
		t.Fatalf("got %s, want 10.244.3.0/24, the only one that no record names", own.Subnets)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	if _, err := f.Manager(t).Acquire(ctx, request(2)); !errors.Is(err, subnet.ErrNoSubnet) {
		t.Errorf("the next node: %v, want %v", err, subnet.ErrNoSubnet)
	}
	snap := run(t, m).wait(t, "flannel's lease", func(s subnet.Snapshot) bool { return len(s.Peers) == 1 && len(s.Ignored) == 1 })
	if p := snap.Peers[0]; p.Node != "" || p.VTEPs[0].Underlay != netip.MustParseAddr("192.0.2.201") {
		t.Errorf("flannel's lease reads %+v", p)
	}
}

func testLost(t *testing.T, f Fixture) {
	if f.Expire == nil {
		return
	}
	m1, m2 := f.Manager(t), f.Manager(t)
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.244.123.0/24")}
	own, peer := acquire(t, m1, want), acquire(t, m2, request(2))
	r1, r2 := run(t, m1), run(t, m2)
	r1.wait(t, "both leases", sees(own, peer))
	r2.wait(t, "both leases", sees(peer, own))
	before := r1.wait(t, "the own lease", sees(own, peer)).Own.Created
	f.Expire(t, "node-1")
	// Created tells the lease that came back from the one that was lost.
	back := func(l subnet.Lease) bool { return same(l, own) && l.Created > before }
	r1.wait(t, "the own lease, acquired again", func(s subnet.Snapshot) bool { return back(s.Own) })
	r2.wait(t, "node-1's lease, acquired again", func(s subnet.Snapshot) bool { return slices.ContainsFunc(s.Peers, back) })
}

func testOutage(t *testing.T, f Fixture) {
	if f.Outage == nil {
		return
	}
	m1, m2 := f.Manager(t), f.Manager(t)
	one := acquire(t, m1, request(1))
	r := run(t, m1)
	r.wait(t, "the own lease", sees(one))

	f.Outage(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if l, err := m2.Acquire(ctx, request(2)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquire during an outage: %+v, %v; want it to wait until its context ends", l, err)
	}
	type result struct {
		lease subnet.Lease
		err   error
	}
	waiting := make(chan result, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		l, err := m2.Acquire(ctx, request(2))
		waiting <- result{l, err}
	}()
	f.Outage(t, false) // which takes some stores longer than patience lasts
	select {
	case two := <-waiting:
		if two.err != nil {
			t.Fatalf("acquire that outlasted an outage: %v", two.err)
		}
		r.wait(t, "node-2's lease", sees(one, two.lease))
	case <-time.After(patience(t)):
		t.Fatal("acquire that outlasted an outage does not return")
	}
}

func testStoreRestart(t *testing.T, f Fixture) {
	if f.Restart == nil {
		return
	}
	m1 := f.Manager(t)
	one := acquire(t, m1, request(1))
	r := run(t, m1)
	r.wait(t, "the own lease", sees(one))
	f.Restart(t)
	two := acquire(t, f.Manager(t), request(2))
	r.wait(t, "node-2's lease", sees(one, two))
}
