package subnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// rec is a believable record of a node, stored at a revision. Nodes are told
// apart by n.
func rec(n int, created int64, subnets ...string) Record {
	node := fmt.Sprint("node-", n)
	ps := prefixes(subnets...)
	return Record{Key: Key(ps), Lease: Lease{
		Node: node, Subnets: ps, Backend: "vxlan", Created: created, Revision: created,
		VTEPs: []VTEP{{netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), VTEPMAC(node, true), 1}},
	}}
}

// picture is a snapshot as text, which is easier to compare.
func picture(s Snapshot) string {
	var b strings.Builder
	if len(s.Own.Subnets) > 0 {
		fmt.Fprintf(&b, "own %s %s\n", s.Own.Node, Key(s.Own.Subnets))
	}
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "peer %s %s\n", p.Node, Key(p.Subnets))
	}
	for _, i := range s.Ignored {
		fmt.Fprintf(&b, "ignored %s: %s\n", i.Key, i.Reason)
	}
	return b.String()
}

func TestSort(t *testing.T) {
	cfg := mustConfig(t, text46)
	with := func(r Record, change func(*Record)) Record {
		change(&r)
		return r
	}
	lines := func(l ...string) string { return strings.Join(l, "\n") + "\n" }
	for _, c := range []struct {
		name    string
		records []Record
		want    string
	}{
		{"nothing", nil, ""},
		{"peers by subnet, not by age", []Record{rec(3, 1, "10.244.9.0/24"), rec(1, 3, "10.244.5.0/24"), rec(2, 2, "10.244.7.0/24")},
			lines("own node-1 10.244.5.0-24", "peer node-2 10.244.7.0-24", "peer node-3 10.244.9.0-24")},
		{"no lease of its own", []Record{rec(2, 2, "10.244.7.0/24")}, lines("peer node-2 10.244.7.0-24")},
		{"two of its own: the older", []Record{rec(1, 9, "10.244.5.0/24"), rec(1, 4, "10.244.8.0/24")},
			lines("own node-1 10.244.8.0-24", "ignored 10.244.5.0-24: node node-1: has the older lease 10.244.8.0-24 already, want one")},
		{"own outside the network", []Record{rec(1, 4, "10.245.8.0/24"), rec(1, 9, "10.244.5.0/24")},
			lines("own node-1 10.244.5.0-24", "ignored 10.245.8.0-24: subnet 10.245.8.0/24: want one inside 10.244.0.0/16")},
		{"own endpoints out of date", []Record{with(rec(1, 4, "10.244.8.0/24"), func(r *Record) { r.Lease.VTEPs[0].VNI = 9 })},
			lines("own node-1 10.244.8.0-24")},
		{"own unreadable", []Record{with(rec(1, 4, "10.244.8.0/24"), func(r *Record) { r.Err = errors.New("torn") })},
			lines("ignored 10.244.8.0-24: torn")},
		{"own beats an older one", []Record{rec(2, 1, "10.244.5.0/25"), rec(1, 9, "10.244.5.0/24")},
			lines("own node-1 10.244.5.0-24", "ignored 10.244.5.0-25: subnet 10.244.5.0/25: overlaps this node's lease 10.244.5.0-24")},
		{"around own and a peer: own is named", []Record{rec(2, 1, "10.244.6.0/24"), rec(1, 9, "10.244.5.0/24"), rec(3, 11, "10.244.4.0/22")},
			lines("own node-1 10.244.5.0-24", "peer node-2 10.244.6.0-24", "ignored 10.244.4.0-22: subnet 10.244.4.0/22: overlaps this node's lease 10.244.5.0-24")},
		{"of others the older", []Record{rec(2, 7, "10.244.5.0/24"), rec(3, 5, "10.244.5.128/25"), rec(4, 6, "10.244.4.0/22")},
			lines("peer node-3 10.244.5.128-25",
				"ignored 10.244.4.0-22: subnet 10.244.4.0/22: overlaps the older lease 10.244.5.128-25",
				"ignored 10.244.5.0-24: subnet 10.244.5.0/24: overlaps the older lease 10.244.5.128-25")},
		{"an ignored one blocks nobody", []Record{rec(2, 1, "10.244.5.0/24"), rec(3, 2, "10.244.4.0/22"), rec(4, 3, "10.244.6.0/24")},
			lines("peer node-2 10.244.5.0-24", "peer node-4 10.244.6.0-24", "ignored 10.244.4.0-22: subnet 10.244.4.0/22: overlaps the older lease 10.244.5.0-24")},
		{"one subnet under two keys", []Record{
			rec(2, 1, "10.244.5.0/24", "fd00:244:0:5::/64"), with(rec(3, 2, "10.244.5.0/24", "fd00:244:0:5::/64"), func(r *Record) { r.Key = "10.244.5.0-24&fd00-244-0-5---64" })},
			lines("peer node-2 10.244.5.0-24&fd00:244:0:5::-64",
				"ignored 10.244.5.0-24&fd00-244-0-5---64: subnet 10.244.5.0/24: overlaps the older lease 10.244.5.0-24&fd00:244:0:5::-64")},
		{"one family overlaps", []Record{rec(2, 1, "10.244.5.0/24", "fd00:244:0:5::/64"), rec(3, 2, "10.244.6.0/24", "fd00:244:0:5::/64")},
			lines("peer node-2 10.244.5.0-24&fd00:244:0:5::-64",
				"ignored 10.244.6.0-24&fd00:244:0:5::-64: subnet fd00:244:0:5::/64: overlaps the older lease 10.244.5.0-24&fd00:244:0:5::-64")},
		{"own MAC", []Record{rec(1, 4, "10.244.8.0/24"), with(rec(2, 1, "10.244.5.0/24"), func(r *Record) { r.Lease.VTEPs[0].MAC = VTEPMAC("node-1", true) })},
			lines("own node-1 10.244.8.0-24", "ignored 10.244.5.0-24: VTEP MAC 7a:51:b4:ef:30:56: is that of this node's lease 10.244.8.0-24")},
		{"own address", []Record{rec(1, 4, "10.244.8.0/24"), with(rec(2, 1, "10.244.5.0/24"), func(r *Record) { r.Lease.VTEPs[0].Underlay = addr("192.0.0.1") })},
			lines("own node-1 10.244.8.0-24", "ignored 10.244.5.0-24: underlay address 192.0.0.1: is that of this node's lease 10.244.8.0-24")},
		{"a peer's MAC: the older", []Record{with(rec(2, 8, "10.244.5.0/24"), func(r *Record) { r.Lease.VTEPs[0].MAC = VTEPMAC("node-3", true) }), rec(3, 2, "10.244.6.0/24")},
			lines("peer node-3 10.244.6.0-24", "ignored 10.244.5.0-24: VTEP MAC "+VTEPMAC("node-3", true).String()+": is that of the older lease 10.244.6.0-24")},
		{"another type of backend", []Record{rec(1, 4, "10.244.8.0/24"), with(rec(2, 1, "10.244.5.0/24"), func(r *Record) { *r = toGateway(*r) })},
			lines("own node-1 10.244.8.0-24", `ignored 10.244.5.0-24: BackendType "host-gw": want "vxlan", as in the network configuration`)},
		{"no node, as flannel's", []Record{with(rec(2, 1, "10.244.5.0/24"), func(r *Record) { r.Lease.Node = "" })}, lines("peer  10.244.5.0-24")},
		{"not fit for the kernel", []Record{with(rec(2, 1, "10.244.5.0/24"), func(r *Record) { r.Lease.VTEPs[0].Underlay = addr("127.0.0.1") })},
			lines("ignored 10.244.5.0-24: underlay address 127.0.0.1: is loopback, want a unicast address that other nodes reach")},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := slices.Clone(c.records)
			if got := picture(Sort(cfg, "node-1", c.records)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if !reflect.DeepEqual(c.records, before) {
				t.Error("the records were changed")
			}
			slices.Reverse(c.records)
			if got := picture(Sort(cfg, "node-1", c.records)); got != c.want {
				t.Errorf("in reverse order: got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// toGateway makes a record what it would be with host-gw.
func toGateway(r Record) Record {
	r.Lease.Backend = "host-gw"
	r.Lease.VTEPs = []VTEP{{Underlay: r.Lease.VTEPs[0].Underlay}}
	return r
}

// TestSortGateways: that nobody has a MAC makes nobody the same.
func TestSortGateways(t *testing.T) {
	records := []Record{toGateway(rec(1, 4, "10.244.8.0/24")), toGateway(rec(2, 1, "10.244.5.0/24")), toGateway(rec(3, 2, "10.244.6.0/24")), rec(4, 3, "10.244.7.0/24")}
	const want = `own node-1 10.244.8.0-24
peer node-2 10.244.5.0-24
peer node-3 10.244.6.0-24
ignored 10.244.7.0-24: BackendType "vxlan": want "host-gw", as in the network configuration
`
	if got := picture(Sort(mustConfig(t, textGW), "node-1", records)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSortNoNode: flannel's records are nobody's own, whatever the caller says.
func TestSortNoNode(t *testing.T) {
	r := rec(2, 1, "10.244.5.0/24")
	r.Lease.Node = ""
	if got := picture(Sort(mustConfig(t, text4), "", []Record{r})); got != "peer  10.244.5.0-24\n" {
		t.Errorf("got %s", got)
	}
}

// TestSortModel compares with the rules written plainly: in order of age, each
// record against each that was accepted.
func TestSortModel(t *testing.T) {
	cfg := mustConfig(t, text46)
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 2000 {
		var records []Record
		for i := range rng.IntN(25) {
			var subnets []netip.Prefix
			if rng.IntN(4) > 0 {
				a := netip.AddrFrom4([4]byte{10, 244, byte(rng.IntN(4)), byte(rng.IntN(256))})
				subnets = append(subnets, netip.PrefixFrom(a, 20+rng.IntN(8)).Masked())
			}
			if len(subnets) == 0 || rng.IntN(3) == 0 {
				a := uint128{0xfd00_0244_0000_0000, uint64(rng.IntN(8)) << 61}.addr(false)
				subnets = append(subnets, netip.PrefixFrom(a, 62+rng.IntN(6)).Masked())
			}
			r := rec(rng.IntN(20), int64(rng.IntN(30)), "10.244.0.0/24")
			r.Key, r.Lease.Subnets = fmt.Sprint(Key(subnets), " ", i), subnets
			records = append(records, r)
		}
		got := Sort(cfg, "node-1", records)
		own, peers := model(cfg, "node-1", records)
		if !reflect.DeepEqual(got.Own, own) || !reflect.DeepEqual(got.Peers, peers) {
			t.Fatalf("round %d: %+v\ngot\n%s\nwant\n%s", round, records, picture(got), picture(Snapshot{Own: own, Peers: peers}))
		}
		if n := len(got.Peers) + len(got.Ignored); n != len(records) && n != len(records)-1 {
			t.Fatalf("round %d: %d records came to\n%s", round, len(records), picture(got))
		}
	}
}

func model(cfg Config, node string, records []Record) (own Lease, peers []Lease) {
	records = slices.Clone(records)
	slices.SortFunc(records, func(a, b Record) int {
		if a.Lease.Created != b.Lease.Created {
			return int(a.Lease.Created - b.Lease.Created)
		}
		return strings.Compare(a.Key, b.Key)
	})
	var accepted []Lease
	for _, r := range records {
		if r.Lease.Node == node && len(accepted) == 0 {
			own = r.Lease
			accepted = append(accepted, own)
		}
	}
	for _, r := range records {
		clash := r.Lease.Node == node || cfg.Check(r.Lease) != nil
		for _, a := range accepted {
			for _, s := range r.Lease.Subnets {
				clash = clash || slices.ContainsFunc(a.Subnets, s.Overlaps)
			}
			clash = clash || a.VTEPs[0].MAC == r.Lease.VTEPs[0].MAC
		}
		if !clash {
			accepted = append(accepted, r.Lease)
			peers = append(peers, r.Lease)
		}
	}
	slices.SortFunc(peers, func(a, b Lease) int { return a.Subnets[0].Compare(b.Subnets[0]) })
	return own, peers
}

func TestTaken(t *testing.T) {
	records := []Record{
		rec(1, 1, "10.244.1.0/24"), rec(2, 2, "10.244.2.0/24", "fd00:244:0:2::/64"), rec(3, 3, "10.245.3.0/24"),
		rec(4, 4, "10.244.0.0/16"), rec(5, 5, "0.0.0.0/1"), rec(6, 6, "10.244.6.7/24"),
		ParseRecord("10.244.7.0-24", []byte("garbage")), ParseRecord("garbage", nil),
	}
	want := prefixes("10.244.2.0/24", "10.244.6.0/24", "10.244.7.0/24")
	if got := Taken(mustConfig(t, text4), "node-1", records); !slices.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	// A record that bears the node's name but cannot be read is not its own.
	torn := records[0]
	torn.Err = errors.New("torn")
	if got := Taken(mustConfig(t, text4), "node-1", []Record{torn}); !slices.Equal(got, torn.Lease.Subnets) {
		t.Errorf("torn: got %s, want %s", got, torn.Lease.Subnets)
	}
}

// manyValues is n stored leases.
func manyValues(t testing.TB, n int) (keys []string, values [][]byte) {
	t.Helper()
	for i := range n {
		l := rec(i, 0, "10.0.0.0/24").Lease
		l.VTEPs[0].Underlay = netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)})
		data, err := EncodeRecord(l)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, fmt.Sprintf("10.%d.%d.0-24", i>>8, i&255))
		values = append(values, data)
	}
	return keys, values
}

func readAndSort(cfg Config, keys []string, values [][]byte) Snapshot {
	records := make([]Record, len(keys))
	for i := range keys {
		records[i] = ParseRecord(keys[i], values[i])
		records[i].Lease.Created = int64(i)
	}
	return Sort(cfg, "node-1", records)
}

func BenchmarkReadAndSort10000(b *testing.B) {
	cfg := mustConfig(b, `{"Network":"10.0.0.0/8"}`)
	keys, values := manyValues(b, 10_000)
	for b.Loop() {
		if s := readAndSort(cfg, keys, values); len(s.Peers) != len(keys)-1 {
			b.Fatalf("%d peers, %d ignored", len(s.Peers), len(s.Ignored))
		}
	}
}

// TestSortHostileNesting: 10,000 records that all contain one another, in every
// length that IPv6 has, must not take quadratic time.
func TestSortHostileNesting(t *testing.T) {
	cfg := mustConfig(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/16"}`)
	var records []Record
	for i := range 10_000 {
		p := netip.PrefixFrom(addr("fd00::"), 17+i%111).Masked()
		r := rec(i, int64(i), "10.0.0.0/24")
		r.Key, r.Lease.Subnets = fmt.Sprint(Key([]netip.Prefix{p}), i), []netip.Prefix{p}
		records = append(records, r)
	}
	begin := time.Now()
	if s := Sort(cfg, "node-1", records); len(s.Ignored) < 9_998 {
		t.Errorf("%d ignored: %+v", len(s.Ignored), s.Peers)
	}
	if took := time.Since(begin); took > 5*time.Second { // 25 ms without the race detector
		t.Errorf("took %s", took)
	}
}
