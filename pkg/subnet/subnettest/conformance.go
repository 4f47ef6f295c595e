package subnettest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A Fixture is one store, with a network configuration in it and no leases.
// What a store cannot do is nil; cases that need it are left out.
type Fixture struct {
	// Manager makes a Manager on the store, as a node that starts would. It is
	// closed, if need be, by t.Cleanup.
	Manager func(t *testing.T) subnet.Manager

	Expire  func(t *testing.T, node string)            // removes the node's record, as at the end of its time
	PutRaw  func(t *testing.T, key string, val []byte) // writes a record; the key is as subnet.Key writes it
	Delete  func(t *testing.T, key string)             // removes a record
	Outage  func(t *testing.T, on bool)                // takes the store out of reach, or brings it back
	Restart func(t *testing.T)                         // stops the store and starts it with the same content
}

// patience is how long a case waits for what must come: 20 s, or half of what
// the test has left.
func patience(t *testing.T) time.Duration {
	if deadline, ok := t.Deadline(); ok {
		return min(20*time.Second, time.Until(deadline)/2)
	}
	return 20 * time.Second
}

// Conformance checks that a Manager does what the interface says. New makes a
// fresh store for each case. The numbers in the cases' names are of what flannel
// does wrong; see also test/etcd.
func Conformance(t *testing.T, new func(t *testing.T, cfg subnet.Config) Fixture) {
	for _, c := range []struct {
		name   string
		config string
		run    func(*testing.T, Fixture)
	}{
		{"config", config4, testConfig},
		{"acquire is idempotent", config4, testIdempotent},
		{"preferred subnet", config4, testPreferred},
		{"same subnet after a restart", config4, testNodeRestart},
		{"same subnet at another address, defect 8", config4, testRival},
		{"dual stack", config46, testDualStack},
		{"IPv6 only", config6, testIPv6Only},
		{"two underlays, defect 16", config46, testTwoUnderlays},
		{"lease of flannel on two underlays", config46, testInheritedDual},
		{"host-gw", configGW, testGateways},
		{"new endpoint and MTU", config4, testUpdate},
		{"many nodes at once, defect 11", config64, testRace},
		{"exhaustion", config4of3, testExhaustion},
		{"peers come, change and go", config4, testPeers},
		{"newest snapshot wins", config4, testNewest},
		{"run before acquire", config4, testRunFirst},
		{"end of the context", config4, testContextEnd},
		{"withdrawn", config4, testWithdrawn},
		{"hostile records", config4, testHostile},
		{"foreign lease is never overwritten, defect 9", config4of3, testForeign},
		{"lease of flannel on this node", config4, testInherited},
		{"two heirs of one lease", config4, testHeirs},
		{"lost lease, defect 10", config4, testLost},
		{"outage", config4, testOutage},
		{"restart of the store", config4, testStoreRestart},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := subnet.ParseConfig([]byte(c.config))
			if err != nil {
				t.Fatal(err)
			}
			c.run(t, new(t, cfg))
		})
	}
}

const (
	config4    = `{"Network":"10.244.0.0/16"}`
	config64   = `{"Network":"10.244.0.0/16","SubnetLen":22,"SubnetMin":"10.244.0.0"}` // 64 subnets
	config4of3 = `{"Network":"10.244.0.0/22"}`                                         // 3, the first being left out
	config6    = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`
	configGW   = `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`
	config46   = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`
)

// request is what node i asks for.
func request(i int) subnet.Request {
	node := fmt.Sprintf("node-%d", i)
	return subnet.Request{
		Node: node,
		VTEPs: []subnet.VTEP{{
			Underlay: netip.AddrFrom4([4]byte{192, 0, byte(2 + i/250), byte(1 + i%250)}),
			MAC:      subnet.VTEPMAC(node, true),
			VNI:      1,
		}},
		MTU: 1450,
	}
}

func acquire(t *testing.T, m subnet.Manager, want subnet.Request) subnet.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	l, err := m.Acquire(ctx, want)
	if err != nil {
		t.Fatalf("acquire for %s: %v", want.Node, err)
	}
	if l.Node != want.Node || l.MTU != want.MTU || !slices.Equal(l.VTEPs, want.VTEPs) || len(l.Subnets) == 0 {
		t.Fatalf("lease %+v does not grant %+v", l, want)
	}
	return l
}

// A runner is a Manager's Run on a goroutine and the newest snapshot from it.
type runner struct {
	stop context.CancelFunc
	done chan error

	mu   sync.Mutex
	last subnet.Snapshot
	news chan struct{} // closed, and replaced, at each snapshot
	busy atomic.Bool
}

// run starts m.Run. It is stopped at the end of the test at the latest.
func run(t *testing.T, m subnet.Manager) *runner {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{stop: cancel, done: make(chan error, 1), news: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- m.Run(ctx, func(s subnet.Snapshot) { r.take(t, s) })
	}()
	t.Cleanup(func() { // before the store's own, which was registered earlier
		cancel()
		<-ended
	})
	return r
}

func (r *runner) take(t *testing.T, s subnet.Snapshot) {
	if !r.busy.CompareAndSwap(false, true) {
		t.Error("snapshots come concurrently")
	}
	defer r.busy.Store(false)
	runtime.Gosched() // a second caller comes now, also where there is one processor
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Revision < r.last.Revision {
		t.Errorf("snapshot of revision %d after one of %d", s.Revision, r.last.Revision)
	}
	r.last = s
	close(r.news)
	r.news = make(chan struct{})
}

// wait waits for a snapshot that ok accepts, and returns it.
func (r *runner) wait(t *testing.T, what string, ok func(subnet.Snapshot) bool) subnet.Snapshot {
	t.Helper()
	deadline := time.After(patience(t))
	for {
		r.mu.Lock()
		last, news := r.last, r.news
		r.mu.Unlock()
		if ok(last) {
			return last
		}
		select {
		case <-news:
		case err := <-r.done:
			t.Fatalf("Run ended with %v while waiting for %s", err, what)
		case <-deadline:
			t.Fatalf("no snapshot with %s in time; the last: %+v", what, last)
		}
	}
}

// end stops Run and checks that it returns nil.
func (r *runner) end(t *testing.T) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			t.Fatalf("Run at the end of its context: %v, want nil", err)
		}
	case <-time.After(patience(t)):
		t.Fatal("Run does not return at the end of its context")
	}
}

// sees accepts a snapshot with exactly these leases as peers and the own one.
func sees(own subnet.Lease, peers ...subnet.Lease) func(subnet.Snapshot) bool {
	return func(s subnet.Snapshot) bool {
		if !same(s.Own, own) || len(s.Peers) != len(peers) {
			return false
		}
		sorted := slices.SortedFunc(slices.Values(peers), func(a, b subnet.Lease) int {
			return a.Subnets[0].Compare(b.Subnets[0])
		})
		return slices.EqualFunc(s.Peers, sorted, same)
	}
}

// same compares leases but for what only the store knows.
func same(a, b subnet.Lease) bool {
	return a.Node == b.Node && a.MTU == b.MTU && a.Backend == b.Backend &&
		slices.Equal(a.Subnets, b.Subnets) && slices.Equal(a.VTEPs, b.VTEPs)
}

func testConfig(t *testing.T, f Fixture) {
	want, err := subnet.ParseConfig([]byte(config4))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Manager(t).Config(t.Context())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func testIdempotent(t *testing.T, f Fixture) {
	m := f.Manager(t)
	first := acquire(t, m, request(1))
	if !first.Reserved && first.Revision == 0 {
		t.Errorf("lease has no revision: %+v", first)
	}
	if second := acquire(t, m, request(1)); !same(first, second) || first.Created != second.Created {
		t.Errorf("second time %+v\nfirst time %+v", second, first)
	}
	other := acquire(t, f.Manager(t), request(2))
	if other.Subnets[0].Overlaps(first.Subnets[0]) {
		t.Errorf("node-2 got %s, node-1 holds %s", other.Subnets[0], first.Subnets[0])
	}
}

func testNodeRestart(t *testing.T, f Fixture) {
	m := f.Manager(t)
	want := request(1)
	want.Want = []netip.Prefix{netip.MustParsePrefix("10.244.200.0/24")}
	first := acquire(t, m, want)
	r := run(t, m)
	r.wait(t, "the own lease", sees(first))
	r.end(t)
	if again := acquire(t, f.Manager(t), request(1)); !same(again, first) { // no preference now
		t.Errorf("after the restart %+v\nbefore it %+v", again, first)
	}
}

func testUpdate(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one, two := acquire(t, m1, request(1)), acquire(t, m2, request(2))
	r1, r2 := run(t, m1), run(t, m2)
	r1.wait(t, "both leases", sees(one, two))
	r2.wait(t, "both leases", sees(two, one))

	want := request(2)
	want.MTU = 1400
	want.VTEPs[0].Underlay = netip.MustParseAddr("198.51.100.7")
	updated := acquire(t, m2, want)
	if !slices.Equal(updated.Subnets, two.Subnets) || updated.Created != two.Created {
		t.Errorf("after the change %+v\nbefore it %+v", updated, two)
	}
	r1.wait(t, "node-2's new MTU and address", sees(one, updated))
	r2.wait(t, "the own new MTU and address", sees(updated, one))
}

func testPeers(t *testing.T, f Fixture) {
	m1, m2, m3 := f.Manager(t), f.Manager(t), f.Manager(t)
	one := acquire(t, m1, request(1))
	r := run(t, m1)
	r.wait(t, "the own lease alone", sees(one))
	two := acquire(t, m2, request(2))
	r.wait(t, "node-2's lease", sees(one, two))
	three := acquire(t, m3, request(3))
	r.wait(t, "node-2's and node-3's lease", sees(one, two, three))

	// A peer's new MAC alone is a change (flannel compares subnets only).
	want := request(2)
	want.VTEPs[0].MAC = subnet.VTEPMAC("another", true)
	two = acquire(t, m2, want)
	r.wait(t, "node-2's new MAC", sees(one, two, three))

	if f.Delete == nil {
		return
	}
	f.Delete(t, subnet.Key(three.Subnets))
	r.wait(t, "node-2's lease alone", sees(one, two))
}

// testNewest: who is slow to take a snapshot gets the newest next, and all
// comes in order.
func testNewest(t *testing.T, f Fixture) {
	m := f.Manager(t)
	own := acquire(t, m, request(0))
	entered, leave := make(chan struct{}), make(chan struct{})
	snaps := make(chan subnet.Snapshot, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		first := true
		done <- m.Run(ctx, func(s subnet.Snapshot) {
			if first {
				first = false
				close(entered)
				<-leave
			}
			snaps <- s
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run at the end of its context: %v, want nil", err)
		}
	})
	<-entered
	var peers []subnet.Lease
	for i := 1; i <= 20; i++ {
		peers = append(peers, acquire(t, f.Manager(t), request(i)))
	}
	close(leave)
	deadline := time.After(patience(t))
	for before := int64(0); ; {
		select {
		case s := <-snaps:
			if s.Revision < before {
				t.Fatalf("revision %d after %d", s.Revision, before)
			}
			if before = s.Revision; sees(own, peers...)(s) {
				return
			}
		case <-deadline:
			t.Fatalf("no snapshot with all %d peers", len(peers))
		}
	}
}

func testRunFirst(t *testing.T, f Fixture) {
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	if err := f.Manager(t).Run(ctx, func(subnet.Snapshot) {}); err == nil {
		t.Error("Run before Acquire: nil, want an error at once: there is no lease to keep")
	}
}

func testContextEnd(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	one := acquire(t, m1, request(1))
	r := run(t, m1)
	r.wait(t, "the own lease", sees(one))
	r.end(t)
	two := acquire(t, m2, request(2))
	run(t, m2).wait(t, "the lease of the node that stopped", sees(two, one))
}

// testWithdrawn: a node that leaves for good is nobody's peer, whoever asks, and
// may come back.
func testWithdrawn(t *testing.T, f Fixture) {
	m1, m2 := f.Manager(t), f.Manager(t)
	w, ok := f.Manager(t).(interface {
		Withdraw(ctx context.Context, node string) error
	})
	if !ok {
		t.Skip("cannot withdraw")
	}
	one, two := acquire(t, m1, request(1)), acquire(t, m2, request(2))
	r := run(t, m2)
	r.wait(t, "both leases", sees(two, one))
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	for _, node := range []string{"node-1", "node-1", "nobody"} { // twice, and the absent, succeed
		if err := w.Withdraw(ctx, node); err != nil {
			t.Fatalf("withdraw %s: %v", node, err)
		}
	}
	r.wait(t, "node-2's lease alone", sees(two))
	back := request(1)
	back.Want = one.Subnets
	r.wait(t, "node-1, which came back", sees(two, acquire(t, f.Manager(t), back)))
}

// record is a record's value as a node writes it, for hostile variations.
func record(t *testing.T, l subnet.Lease) map[string]any {
	t.Helper()
	data, err := subnet.EncodeRecord(l)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}
