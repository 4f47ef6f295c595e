package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

func lease(node, subnets, underlay string, mac byte) subnet.Lease {
	l := subnet.Lease{Node: node, Backend: "vxlan", VTEPs: []subnet.VTEP{{
		Underlay: netip.MustParseAddr(underlay), MAC: subnet.MAC{2, 0, 0, 0, 0, mac}, VNI: 1,
	}}}
	for s := range strings.FieldsSeq(subnets) {
		l.Subnets = append(l.Subnets, netip.MustParsePrefix(s))
	}
	return l
}

func names(leases []subnet.Lease) string {
	var out []string
	for _, l := range leases {
		out = append(out, fmt.Sprintf("%s%v", l.Node, l.Subnets))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestRetention(t *testing.T) {
	own := lease("own", "10.244.9.0/24", "192.0.2.9", 9)
	a := lease("a", "10.244.1.0/24", "192.0.2.1", 1)
	b := lease("b", "10.244.2.0/24", "192.0.2.2", 2)
	steps := []struct {
		name    string
		after   time.Duration // since the start
		current []subnet.Lease
		want    string
	}{
		{"both leased", 0, []subnet.Lease{a, b}, "a[10.244.1.0/24] b[10.244.2.0/24]"},
		{"a vanished and is kept", time.Minute, []subnet.Lease{b}, "a[10.244.1.0/24] b[10.244.2.0/24]"},
		{"a second look does not prolong it", 9 * time.Minute, []subnet.Lease{b}, "a[10.244.1.0/24] b[10.244.2.0/24]"},
		{"the grace time is over", 11 * time.Minute, []subnet.Lease{b}, "b[10.244.2.0/24]"},
		{"everything vanished: an emptied store", 12 * time.Minute, nil, "b[10.244.2.0/24]"},
		{"b came back", 13 * time.Minute, []subnet.Lease{b}, "b[10.244.2.0/24]"},
		{"b vanished again: a new grace time", 20 * time.Minute, nil, "b[10.244.2.0/24]"},
		{"and is kept all of it", 29 * time.Minute, nil, "b[10.244.2.0/24]"},
		{"but not longer", 30 * time.Minute, nil, ""},
	}
	r, start := retention{grace: 10 * time.Minute}, time.Unix(1e9, 0)
	for _, s := range steps {
		if got := names(r.update(own, s.current, start.Add(s.after))); got != s.want {
			t.Fatalf("%s: have %s, want %s", s.name, got, s.want)
		}
	}
}

func TestRetentionGivesWay(t *testing.T) {
	own := lease("own", "10.244.9.0/24", "192.0.2.9", 9)
	a := lease("a", "10.244.1.0/24", "192.0.2.1", 1)
	for name, heir := range map[string]subnet.Lease{
		"subnet leased to another node":  lease("b", "10.244.1.0/24", "192.0.2.2", 2),
		"overlapping subnet":             lease("b", "10.244.0.0/23", "192.0.2.2", 2),
		"same node with another subnet":  lease("a", "10.244.7.0/24", "192.0.2.1", 1),
		"another node with its address":  lease("b", "10.244.7.0/24", "192.0.2.1", 2),
		"another node with its VTEP MAC": lease("b", "10.244.7.0/24", "192.0.2.2", 1),
	} {
		r := retention{grace: time.Hour}
		r.update(own, []subnet.Lease{a}, time.Now())
		if got, want := names(r.update(own, []subnet.Lease{heir}, time.Now())), names([]subnet.Lease{heir}); got != want {
			t.Errorf("%s: have %s, want %s", name, got, want)
		}
		if _, waiting := r.next(); waiting {
			t.Errorf("%s: something still waits for its end", name)
		}
	}
	r := retention{grace: time.Hour}
	r.update(own, []subnet.Lease{a}, time.Now())
	moved := lease("own", "10.244.1.0/24", "192.0.2.9", 9)
	if got := names(r.update(moved, nil, time.Now())); got != "" {
		t.Errorf("the own lease took the subnet, but %s is kept", got)
	}
}

func TestRetentionOfManyIsQuick(t *testing.T) {
	var all []subnet.Lease
	for i := range 10_000 {
		l := lease(fmt.Sprint("n", i), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), fmt.Sprintf("172.16.%d.%d", i/256, i%256), 1)
		l.VTEPs[0].MAC = subnet.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}
		all = append(all, l)
	}
	r := retention{grace: time.Hour}
	r.update(subnet.Lease{}, all, time.Now())
	if got := r.update(subnet.Lease{}, all[1:], time.Now()); len(got) != len(all) {
		t.Fatalf("%d leases kept, want %d", len(got), len(all))
	}
}

func BenchmarkRetention10000(b *testing.B) {
	var all []subnet.Lease
	for i := range 10_000 {
		all = append(all, lease(fmt.Sprint("n", i), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), "172.16.0.1", 1))
	}
	r := retention{grace: time.Hour}
	for b.Loop() {
		r.update(subnet.Lease{}, all, time.Now())
	}
}

func TestPeersOf(t *testing.T) {
	dual := lease("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1", 1)
	both := dual
	both.VTEPs = append(slices.Clone(dual.VTEPs), subnet.VTEP{Underlay: netip.MustParseAddr("2001:db8::1"), MAC: subnet.MAC{2, 0, 0, 0, 0, 6}, VNI: 1})
	tests := []struct {
		name      string
		lease     subnet.Lease
		underlay4 bool
		want      string
	}{
		{"both families ride on the IPv4 tunnel", dual, true,
			"fdb 02:00:00:00:00:01 dst 192.0.2.1|neigh 10.244.1.0 lladdr 02:00:00:00:00:01|neigh fd00:1:: lladdr 02:00:00:00:00:01|route 10.244.1.0/24 via 10.244.1.0 onlink|route fd00:1::/64 via fd00:1:: onlink"},
		{"no IPv6 tunnel, no IPv6 peer", dual, false, ""},
		{"of two tunnels the device's own family", both, false,
			"fdb 02:00:00:00:00:06 dst 2001:db8::1|neigh 10.244.1.0 lladdr 02:00:00:00:00:06|neigh fd00:1:: lladdr 02:00:00:00:00:06|route 10.244.1.0/24 via 10.244.1.0 onlink|route fd00:1::/64 via fd00:1:: onlink"},
	}
	for _, tt := range tests {
		var entries []string
		for _, o := range vxlan.Diff(vxlan.Desired(peersOf([]subnet.Lease{tt.lease}, tt.underlay4)), vxlan.Empty()) {
			entries = append(entries, o.Entry.String())
		}
		slices.Sort(entries)
		if got := strings.Join(entries, "|"); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestSchedule(t *testing.T) {
	var s schedule
	now := time.Unix(1e9, 0)
	s.set(audit, now.Add(time.Minute))
	s.set(retry, now.Add(time.Second))
	s.setEarlier(retry, now.Add(time.Hour))
	if got := s.earliest(); got != now.Add(time.Second) {
		t.Errorf("earliest is %s", got)
	}
	s.setEarlier(retry, now)
	if !s.take(retry, now) || s.take(retry, now) {
		t.Error("a due task is taken once")
	}
	if s.take(audit, now) {
		t.Error("a task was taken before its time")
	}
	s.clear(audit)
	if !s.earliest().IsZero() {
		t.Error("a cleared task is due")
	}
}

func TestRing(t *testing.T) {
	var r ring[int]
	if got := r.newest(); got == nil || len(got) != 0 {
		t.Errorf("an empty ring gives %v", got)
	}
	for i := range ringSize + 10 {
		r.add(i)
	}
	got := r.newest()
	if len(got) != ringSize || got[0] != ringSize+9 || got[ringSize-1] != 10 {
		t.Errorf("%d entries from %d to %d", len(got), got[0], got[len(got)-1])
	}
}

func TestConfigCheck(t *testing.T) {
	tests := []struct {
		flag   string
		change func(*Config)
	}{
		{"node-id", func(c *Config) { c.Node = "" }},
		{"node-id", func(c *Config) { c.Node = strings.Repeat("x", 254) }},
		{"node-id", func(c *Config) { c.Node = "a b" }},
		{"node-id", func(c *Config) { c.Node = "x\ty" }},
		{"run-dir", func(c *Config) { c.RunDir = "" }},
		{"run-dir", func(c *Config) { c.RunDir = "relative" }},
		{"run-dir", func(c *Config) { c.RunDir = "/" + strings.Repeat("x", 100) }},
		{"public-ip", func(c *Config) { c.Public = netip.MustParseAddr("0.0.0.0") }},
		{"public-ip", func(c *Config) { c.Public = netip.MustParseAddr("127.0.0.1") }},
		{"public-ip", func(c *Config) { c.Public = netip.MustParseAddr("224.1.1.1") }},
		{"public-ip", func(c *Config) { c.Public = netip.MustParseAddr("::ffff:1.2.3.4") }},
		{"bridge", func(c *Config) { c.Bridge = "b\u00a0r" }},
		{"device", func(c *Config) { c.Device = "sixteen-bytes-lo" }},
		{"device", func(c *Config) { c.Device = "a/b" }},
		{"bridge", func(c *Config) { c.Bridge = ".." }},
		{"bridge", func(c *Config) { c.Bridge = "two words" }},
		{"bridge", func(c *Config) { c.Bridge = c.Device }},
		{"resolve", func(c *Config) { c.Resolve = "lazy" }},
		{"grace", func(c *Config) { c.Grace = -1 }},
		{"metrics-address", func(c *Config) { c.Metrics = "nowhere" }},
		{"metrics-address", func(c *Config) { c.Metrics = "127.0.0.1:http" }},
		{"metrics-address", func(c *Config) { c.Metrics = ":70000" }},
	}
	for _, tt := range tests {
		c := Default()
		c.Node = "n"
		if err := c.Check(); err != nil {
			t.Fatalf("the defaults: %v", err)
		}
		tt.change(&c)
		err := c.Check()
		if err == nil || !strings.HasPrefix(err.Error(), "--"+tt.flag+" ") || !strings.Contains(err.Error(), "want") {
			t.Errorf("--%s: %v", tt.flag, err)
		}
	}
}
