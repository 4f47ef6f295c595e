package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// settled waits until the daemon has seen the store's newest revision, and
// returns what it has done to the kernel.
func (r *running) settled(store *subnettest.Store) api.Kernel {
	r.t.Helper()
	var newest int64
	for _, rec := range store.Records() {
		newest = max(newest, rec.Lease.Revision)
	}
	var s api.Status
	eventually(r.t, "the newest snapshot", func() error {
		if s = r.status(); s.Store.Revision < newest {
			return fmt.Errorf("revision %d, want %d", s.Store.Revision, newest)
		}
		return nil
	})
	return s.Kernel
}

// TestForeignRenewalCostsNoLookAtTheKernel: flannel renews by writing its record
// anew, ours may get another MTU; the kernel is not even asked what it holds.
func TestForeignRenewalCostsNoLookAtTheKernel(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	a := lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77)
	put(t, store, a)
	r := start(t, store, nil)
	r.ready()
	r.inSync(1)
	// The kernel announces what was just made; nothing of that may be under way.
	before := r.settled(store)
	eventually(t, "quiet", func() error {
		last := before.Reconciles
		before = r.settled(store)
		if before.Reconciles != last || time.Since(before.Last) < 200*time.Millisecond {
			return fmt.Errorf("%d reconciles, the last %s ago", before.Reconciles, time.Since(before.Last))
		}
		return nil
	})
	for i := range 20 {
		a.MTU = 1400 + i%2
		put(t, store, a)
		r.settled(store)
	}
	if after := r.settled(store); after.Reconciles != before.Reconciles || after.Operations != before.Operations {
		t.Errorf("20 renewals cost %d looks and %d operations, want none", after.Reconciles-before.Reconciles, after.Operations-before.Operations)
	}
	// A change that concerns the kernel still reaches it.
	put(t, store, lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.99", 77))
	eventually(t, "the new address", func() error {
		if got := tables(t); !strings.Contains(got, "dst 192.0.2.99") {
			return fmt.Errorf("tables:\n%s", got)
		}
		return nil
	})
}

// TestEmptiedStoreLosesNoRoute: five nodes run when somebody empties the store.
// They refill it, and this one's kernel is not touched meanwhile.
func TestEmptiedStoreLosesNoRoute(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	t.Cleanup(others.Wait)
	t.Cleanup(cancel)
	for i := range 4 {
		m := store.Manager()
		node := fmt.Sprintf("node-%d", i)
		if _, err := m.Acquire(ctx, subnet.Request{Node: node, MTU: 1450, VTEPs: []subnet.VTEP{{
			Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}), MAC: subnet.VTEPMAC(node, true), VNI: 1,
		}}}); err != nil {
			t.Fatal(err)
		}
		others.Go(func() {
			if err := m.Run(ctx, func(subnet.Snapshot) {}); err != nil {
				t.Errorf("%s: %v", node, err)
			}
		})
	}
	r := start(t, store, nil)
	r.ready()
	r.inSync(4)
	records, want, before := contents(store), tables(t), r.settled(store)
	monitor := watchDeletions(t)
	for range 3 {
		store.Empty()
		eventually(t, "the store is full again", func() error {
			if got := contents(store); got != records {
				return fmt.Errorf("records\n%s\nwant\n%s", got, records)
			}
			return nil
		})
	}
	r.inSync(4)
	if after := r.settled(store); after.Operations != before.Operations || tables(t) != want {
		t.Errorf("%d operations; tables are\n%s\nwere\n%s", after.Operations-before.Operations, tables(t), want)
	}
	if deleted := monitor(); deleted != "" {
		t.Errorf("meanwhile the kernel lost\n%s", deleted)
	}
}

// contents are the store's keys and the nodes that have them.
func contents(store *subnettest.Store) string {
	var b strings.Builder
	for _, r := range store.Records() {
		fmt.Fprintln(&b, r.Key, r.Lease.Node)
	}
	return b.String()
}

// watchDeletions runs ip monitor, and returns a function that ends it and tells
// the routes and neighbours that were deleted.
func watchDeletions(t *testing.T) func() string {
	t.Helper()
	cmd := exec.Command("ip", "monitor", "route", "neigh")
	var out logBuffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it is over in any case
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	mark := func(address string) {
		eventually(t, "ip monitor tells", func() error {
			// Again each time, for the monitor may not listen yet; and gone again,
			// for of a route that is there nothing is told.
			ip(t, "ip route add "+address+" dev lo")
			ip(t, "ip route del "+address+" dev lo")
			if !strings.Contains(out.String(), address) {
				return fmt.Errorf("it has told %q", out.String())
			}
			return nil
		})
	}
	mark("203.0.113.1")
	return func() string {
		mark("203.0.113.2")
		end()
		var deleted []string
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "Deleted") && !strings.Contains(line, "203.0.113.") {
				deleted = append(deleted, line)
			}
		}
		return strings.Join(deleted, "")
	}
}

// releasing is a Manager in whose store leases can be released, and end.
type releasing struct {
	subnet.Manager
	store *subnettest.Store
	after func(key string) // called after a release
}

func (m *releasing) Release(_ context.Context, node string, revision int64) error {
	if node == "reserved" {
		return fmt.Errorf("%w: delete its key", subnet.ErrReserved)
	}
	for _, r := range m.store.Records() {
		if r.Lease.Node != node {
			continue
		}
		if revision != 0 && r.Lease.Revision != revision {
			return fmt.Errorf("%w: it is at revision %d", subnet.ErrChanged, r.Lease.Revision)
		}
		m.store.Delete(r.Key)
		m.after(r.Key)
		return nil
	}
	return subnet.ErrNoLease
}

func (m *releasing) Expiries(context.Context) (map[netip.Prefix]time.Time, error) {
	return map[netip.Prefix]time.Time{netip.MustParsePrefix("10.244.77.0/24"): time.Unix(2e9, 0)}, nil
}

func TestRelease(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	a := lease("a", "10.244.77.0/24 fd00:0:0:77::/64", "192.0.2.77", 77)
	put(t, store, a)
	m := &releasing{Manager: store.Manager(), store: store, after: func(string) {}}
	r := startWith(t, m, nil)
	r.ready()
	r.inSync(1)
	release := func(node string, revision int64) (api.Released, error) {
		return r.client.Release(t.Context(), api.Release{Node: node, Revision: revision})
	}
	for want, f := range map[string]func() (api.Released, error){
		"self is this node":    func() (api.Released, error) { return release("self", 0) },
		"holds no lease":       func() (api.Released, error) { return release("nobody", 0) },
		"has changed meanwhil": func() (api.Released, error) { return release("a", 12345) },
		`want {"node"`:         func() (api.Released, error) { return release("", 0) },
	} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want …%s…", err, want)
		}
	}
	// It is a refusal, and nothing that overlayd suffers from.
	if _, err := release("reserved", 0); err == nil || err.Error() != subnet.ErrReserved.Error()+": delete its key" {
		t.Errorf("%v, want what the store says", err)
	}
	if n := len(store.Records()); n != 2 {
		t.Fatalf("%d records after refusals, want 2", n)
	}

	// A node that runs takes its lease again.
	m.after = func(string) { put(t, store, a) }
	if done, err := release("a", 0); err != nil || !done.TakenBack {
		t.Errorf("%+v, %v; want it taken back", done, err)
	}
	m.after = func(string) {}
	before := r.status().Kernel.Operations
	if done, err := release("a", 0); err != nil || done.TakenBack {
		t.Errorf("%+v, %v; want it released for good", done, err)
	}
	if n := len(store.Records()); n != 1 {
		t.Errorf("%d records, want the own one", n)
	}
	r.inSync(1) // its grace time
	if after := r.status().Kernel.Operations; after != before {
		t.Errorf("%d operations on the kernel, want none in the grace time", after-before)
	}
}

// TestNoReleaseOverTCP: where there is no authentication nothing can be changed.
func TestNoReleaseOverTCP(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	put(t, store, lease("a", "10.244.77.0/24", "192.0.2.77", 77))
	m := &releasing{Manager: store.Manager(), store: store, after: func(string) {}}
	startWith(t, m, func(c *Config) { c.Metrics = "127.0.0.1:19444" }).ready()
	resp, err := http.Post("http://127.0.0.1:19444"+api.PathRelease, "application/json", strings.NewReader(`{"node":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound || len(store.Records()) != 2 {
		t.Errorf("status %s, %d records, want 404 and 2", resp.Status, len(store.Records()))
	}
}

func TestReleaseNeedsAStoreThatCan(t *testing.T) {
	underlay(t)
	r := start(t, subnettest.NewStore(network(t)), nil)
	r.ready()
	if _, err := r.client.Release(t.Context(), api.Release{Node: "a"}); err == nil || !strings.Contains(err.Error(), `store of kind "memory"`) {
		t.Errorf("%v, want that the store cannot", err)
	}
	// And it knows no end of leases: the answer is as without.
	var plain, asked json.RawMessage
	for path, into := range map[string]*json.RawMessage{api.PathLeases: &plain, api.PathLeasesExpiry: &asked} {
		if err := r.client.Get(t.Context(), path, into); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(plain, asked) {
		t.Errorf("with expiry\n%s\nwithout\n%s", asked, plain)
	}
}

func TestLeasesTellIgnoredRecordsAndExpiry(t *testing.T) {
	underlay(t)
	store := subnettest.NewStore(network(t))
	a := lease("a", "10.244.77.0/24", "192.0.2.77", 77)
	a.Since = time.Unix(1e9, 0).UTC()
	put(t, store, a)
	put(t, store, lease("b", "10.244.76.0/23", "192.0.2.78", 78)) // overlaps a's
	store.Put("10.244.5.0-24", []byte("{garbage"))
	store.Put("nonsense", []byte("{}"))
	r := startWith(t, &releasing{Manager: store.Manager(), store: store, after: func(string) {}}, nil)
	r.ready()
	var leases []api.Lease
	eventually(t, "all records", func() error {
		if err := r.client.Get(t.Context(), api.PathLeasesExpiry, &leases); err != nil {
			return err
		}
		if len(leases) != 5 {
			return fmt.Errorf("%d leases: %+v", len(leases), leases)
		}
		return nil
	})
	var got []string
	for _, l := range leases {
		name := l.Node
		if l.Ignored != "" {
			name = l.Key
		}
		got = append(got, fmt.Sprint(name, " ", l.Subnets, " ", l.Ignored != "", " ", l.Conflict, " ", l.Since.Unix() == 1e9, " ", l.Expiry.Unix() == 2e9))
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{
		"a [10.244.77.0/24] false false true true",
		"10.244.76.0-23 [10.244.76.0/23] true true false false",
		"10.244.5.0-24 [10.244.5.0/24] true false false false",
		"nonsense [] true false false false",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("leases are\n%s\nwant\n%s", text, want)
		}
	}
}

// The store cannot know what a node's links look like; the node does. What leads to
// itself, or to all of a link, is no peer.
func TestAddressesThatNoPeerHas(t *testing.T) {
	underlay(t)
	ip(t, "ip addr add 198.51.100.9/24 dev eth0")
	store := subnettest.NewStore(network(t))
	for i, addr := range []string{"192.0.2.255", "192.0.2.0", "198.51.100.9", "192.0.2.77"} {
		put(t, store, lease(fmt.Sprint("n", i), fmt.Sprintf("10.244.%d.0/24", 70+i), addr, byte(70+i)))
	}
	r := start(t, store, nil)
	r.ready()
	eventually(t, "the one peer", func() error {
		if got := tables(t); !strings.Contains(got, "10.244.73.0/24") || strings.Count(got, "\n") != 3 {
			return fmt.Errorf("tables:\n%s", got)
		}
		return nil
	})
	s := r.status()
	if s.Peers.Total != 4 || s.Peers.InSync != 1 {
		t.Errorf("peers %+v", s.Peers)
	}
	for _, want := range []string{
		"lease of n0 leads to 192.0.2.255, which is a link's broadcast address", "lease of n1 leads to 192.0.2.0, which is a link's network address",
		"lease of n2 leads to 198.51.100.9, which is this node's own",
	} {
		if n := strings.Count(r.log.String(), want); n != 1 || !strings.Contains(fmt.Sprint(s.Warnings), want) {
			t.Errorf("%q is told %d times, warnings %q", want, n, s.Warnings)
		}
	}
}
