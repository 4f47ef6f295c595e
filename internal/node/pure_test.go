package node

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

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
	for kind, as := range map[string]func(subnet.Lease) subnet.Lease{
		"tunnels":  func(l subnet.Lease) subnet.Lease { return l },
		"gateways": gateway,
	} {
		r, start := retention{grace: 10 * time.Minute}, time.Unix(1e9, 0)
		for _, s := range steps {
			var current []subnet.Lease
			for _, l := range s.current {
				current = append(current, as(l))
			}
			if got := names(r.update(as(own), current, start.Add(s.after))); got != s.want {
				t.Fatalf("%s, %s: have %s, want %s", kind, s.name, got, s.want)
			}
		}
	}
}

// gateway makes a lease one of host-gw: its endpoints have neither MAC nor VNI.
func gateway(l subnet.Lease) subnet.Lease {
	l.Backend, l.VTEPs = subnet.TypeHostGW, slices.Clone(l.VTEPs)
	for i, v := range l.VTEPs {
		l.VTEPs[i] = subnet.VTEP{Underlay: v.Underlay}
	}
	return l
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

// Each subnet rides the underlay of its own family where both nodes have it.
func TestPeersOf(t *testing.T) {
	dual := lease("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1", 1)
	both := dual
	six := subnet.VTEP{Underlay: netip.MustParseAddr("2001:db8::1"), MAC: subnet.MAC{2, 0, 0, 0, 0, 6}, VNI: 1}
	both.VTEPs = append(slices.Clone(dual.VTEPs), six)
	only6 := dual
	only6.VTEPs = []subnet.VTEP{six}
	const (
		four4 = "192.0.2.1: 10.244.1.0/24"
		six4  = "192.0.2.1: fd00:1::/64"
		four6 = "2001:db8::1: 10.244.1.0/24"
		six6  = "2001:db8::1: fd00:1::/64"
	)
	v4, v6, v46 := []bool{true}, []bool{false}, []bool{true, false}
	tests := []struct {
		name  string
		lease subnet.Lease
		own   []bool
		want  string
	}{
		{"both families ride on the IPv4 tunnel", dual, v4, four4 + "|" + six4},
		{"and so they do if we have another", dual, v46, four4 + "|" + six4},
		{"no tunnel in common", dual, v6, ""},
		{"both ride on the IPv6 tunnel", only6, v6, four6 + "|" + six6},
		{"of two tunnels the one that we have", both, v6, four6 + "|" + six6},
		{"of two tunnels the one that we have, IPv4", both, v4, four4 + "|" + six4},
		{"each on its own family's", both, v46, four4 + "|" + six6},
	}
	for _, tt := range tests {
		var entries []string
		for is4, peers := range peersOf([]subnet.Lease{tt.lease}, tt.own) {
			for _, p := range peers {
				entries = append(entries, p.Underlay.String()+": "+p.Subnet.String())
				if want := tt.lease.VTEPs[slices.IndexFunc(tt.lease.VTEPs, func(v subnet.VTEP) bool { return v.Underlay == p.Underlay })]; p.MAC != vxlan.MAC(want.MAC) ||
					p.Gateway != p.Subnet.Addr() || p.Underlay.Is4() != is4 {
					t.Errorf("%s: peer %+v", tt.name, p)
				}
			}
		}
		slices.Sort(entries)
		if got := strings.Join(entries, "|"); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestDeviceName(t *testing.T) {
	for name, want := range map[string]string{"overlay.1": "overlay-v6.1", "flannel.1": "flannel-v6.1", "vx": "vx-v6", "a.b.c": "a.b-v6.c"} {
		if got := deviceName(name, false); got != want || deviceName(name, true) != name {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestPodMTU(t *testing.T) {
	end := func(a string) vxlan.End {
		return vxlan.End{Addr: netip.MustParseAddr(a), Local: netip.MustParseAddr(a)}
	}
	four, six := end("192.0.2.1"), end("2001:db8::1")
	tests := []struct {
		network string
		mtu     int
		ends    []vxlan.End
		want    int // 0: an error
		bound   int
	}{
		{`{"Network":"10.244.0.0/16"}`, 1500, []vxlan.End{four}, 1250, 1300},
		{`{"Network":"10.244.0.0/16"}`, 1500, []vxlan.End{four}, 1450, 9000},
		{`{"Network":"10.244.0.0/16"}`, 1500, []vxlan.End{four}, 1450, 0},
		{`{"Network":"10.244.0.0/16"}`, 1500, []vxlan.End{six}, 1430, 0},
		{`{"Network":"10.244.0.0/16"}`, 9000, []vxlan.End{four, six}, 8930, 0},
		{`{"Network":"10.244.0.0/16","Backend":{"MTU":1400}}`, 1500, []vxlan.End{four}, 1350, 0},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}`, 1320, []vxlan.End{four}, 0, 0},
		{`{"Network":"10.244.0.0/16"}`, 100, []vxlan.End{four}, 0, 0},
	}
	for _, tt := range tests {
		c, err := subnet.ParseConfig([]byte(tt.network))
		if err != nil {
			t.Fatal(err)
		}
		got, err := podMTU(c, vxlan.Underlay{Interface: "eth0", MTU: tt.mtu, Ends: tt.ends}, tt.bound)
		if got != tt.want || (err != nil) != (tt.want == 0) {
			t.Errorf("%s on %d: %d, %v; want %d", tt.network, tt.mtu, got, err, tt.want)
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
		{"public-ipv6", func(c *Config) { c.Public6 = netip.MustParseAddr("192.0.2.1") }},
		{"public-ipv6", func(c *Config) {
			c.Public, c.Public6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		}},
		{"iface", func(c *Config) { c.Ifaces = []string{"eth0", ""} }},
		{"iface-can-reach", func(c *Config) { c.CanReach = netip.MustParseAddr("127.0.0.1") }},
		{"iface-can-reach", func(c *Config) { c.CanReach, c.Ifaces = netip.MustParseAddr("192.0.2.1"), []string{"eth0"} }},
		{"iface-regex", func(c *Config) {
			c.IfaceRegexes, c.Ifaces = []*regexp.Regexp{regexp.MustCompile("x")}, []string{"eth0"}
		}},
		{"bridge", func(c *Config) { c.Bridge = "b\u00a0r" }},
		{"device", func(c *Config) { c.Device = "sixteen-bytes-lo" }},
		{"device", func(c *Config) { c.Device = "a/b" }},
		{"bridge", func(c *Config) { c.Bridge = ".." }},
		{"bridge", func(c *Config) { c.Bridge = "two words" }},
		{"bridge", func(c *Config) { c.Bridge = c.Device }},
		{"resolve", func(c *Config) { c.Resolve = "lazy" }},
		{"grace", func(c *Config) { c.Grace = -1 }},
		{"sweep-interval", func(c *Config) { c.Sweep = 29 * time.Second }},
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

// TestRepairsThatWereNotNeededCostNothing: a fight that other reconciles see to must
// not delay the repairs that come after it.
func TestRepairsThatWereNotNeededCostNothing(t *testing.T) {
	l := &loop{repairs: rate.NewLimiter(repairRate, repairBurst)}
	for range 200 {
		l.kernel.Last = time.Now()
		l.lookSoon()
		l.pace(nil) // after a reconcile for another reason
	}
	l.kernel.Last = time.Now()
	l.lookSoon()
	if wait := time.Until(l.clock[repair]); wait > time.Second/repairRate {
		t.Errorf("the next repair is in %s, want at most %s", wait, time.Second/repairRate)
	}
}

// Whoever does not wait for the answer any more must not find it written later.
func TestQuestionGivenUpIsNotAnswered(t *testing.T) {
	n := &node{queries: make(chan func())}
	ctx, cancel := context.WithCancel(t.Context())
	answered := false
	result := make(chan bool)
	go func() { result <- n.do(ctx, func(*loop) { answered = true }) }()
	query := <-n.queries // the loop has taken it, and does something else first
	cancel()
	if <-result {
		t.Error("it was not answered")
	}
	query()
	if answered {
		t.Error("answered although nobody waits")
	}
	// One that is being answered is waited for.
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		result <- n.do(ctx, func(*loop) {
			cancel()
			answered = true
		})
	}()
	(<-n.queries)()
	if !<-result || !answered {
		t.Errorf("given up while it was answered: answered %t", answered)
	}
}

// TestOnlyWhatWasUndoneIsBlamed: kube-proxy, which changes rules beside ours all the
// time, is not to blame for a pod that the daemon saw half attached.
func TestOnlyWhatWasUndoneIsBlamed(t *testing.T) {
	route := news{vxlan.Change{Text: "deleted route"}, inTables}
	named := news{vxlan.Change{Text: "added neighbour", Port: 77}, inTables}
	rule, element := news{vxlan.Change{Text: "changed rules"}, inRules}, news{vxlan.Change{Text: "changed filter"}, inFilter}
	for _, tt := range []struct {
		heard   []news
		changes [areas]int
		want    string // what is reported
		events  int
	}{
		{nil, [areas]int{1, 1, 1}, "", 0},
		{[]news{rule}, [areas]int{inFilter: 1}, "", 0},
		{[]news{rule, element}, [areas]int{inFilter: 1}, element.Text, 1},
		{[]news{rule, route}, [areas]int{inRules: 1}, rule.Text, 1},
		{[]news{route, rule, route}, [areas]int{inTables: 2}, route.Text, 2},
		{[]news{named}, [areas]int{}, "", 1},
	} {
		told := ""
		l := &loop{heard: tt.heard, journal: &journal{}, report: func(_ bool, _, text string) { told += text }}
		l.blame(tt.changes)
		if !strings.HasSuffix(told, tt.want) || (told == "") != (tt.want == "") {
			t.Errorf("%v, %v: told %q, want %q", tt.heard, tt.changes, told, tt.want)
		}
		if n := len(l.journal.events.newest()); n != tt.events || (l.kernel.Foreign > 0) != (tt.want != "") {
			t.Errorf("%v: %d events and %d foreign changes, want %d", tt.heard, n, l.kernel.Foreign, tt.events)
		}
	}
}
