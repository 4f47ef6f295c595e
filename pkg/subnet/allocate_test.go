package subnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestAllocateWant(t *testing.T) {
	cfg := mustConfig(t, `{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.31.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`)
	const node = "node-1"
	free, err := Allocate(cfg, node, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		want, taken []netip.Prefix
		get         []netip.Prefix
	}{
		{"none", nil, nil, free},
		{"both", prefixes("10.244.20.0/24", "fd00:244:0:7::/64"), nil, prefixes("10.244.20.0/24", "fd00:244:0:7::/64")},
		{"either order", prefixes("fd00:244:0:7::/64", "10.244.20.0/24"), nil, prefixes("10.244.20.0/24", "fd00:244:0:7::/64")},
		{"one family", prefixes("fd00:244:0:7::/64"), nil, []netip.Prefix{free[0], prefix("fd00:244:0:7::/64")}},
		{"bounds", prefixes("10.244.31.0/24", "fd00:244:0:ffff::/64"), nil, prefixes("10.244.31.0/24", "fd00:244:0:ffff::/64")},
		{"below the minimum", prefixes("10.244.15.0/24", "fd00:244::/64"), nil, free},
		{"above the maximum", prefixes("10.244.32.0/24"), nil, free},
		{"outside the network", prefixes("10.245.20.0/24", "fd01::/64"), nil, free},
		{"wrong length", prefixes("10.244.20.0/25", "10.244.16.0/20", "fd00:244::/48"), nil, free},
		{"host bits", prefixes("10.244.20.1/24"), nil, free},
		{"invalid", make([]netip.Prefix, 1), make([]netip.Prefix, 1), free},
		{"taken, then the second choice", prefixes("10.244.20.0/24", "10.244.21.0/24", "fd00:244:0:7::/64"), prefixes("10.244.20.0/24"),
			prefixes("10.244.21.0/24", "fd00:244:0:7::/64")},
		{"taken in part", prefixes("10.244.20.0/24"), prefixes("10.244.20.128/25"), free},
		{"taken with others", prefixes("10.244.20.0/24"), []netip.Prefix{prefix("10.244.20.0/22")}, nil},
		{"taken elsewhere", nil, prefixes("10.244.1.0/24", "10.245.0.0/16", "fd01::/16", "192.0.2.0/24"), free},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Allocate(cfg, node, c.want, c.taken)
			if err != nil {
				t.Fatal(err)
			}
			if c.get != nil && !slices.Equal(got, c.get) {
				t.Errorf("got %s, want %s", got, c.get)
			}
			for _, s := range c.taken {
				if s.IsValid() && (s.Overlaps(got[0]) || s.Overlaps(got[1])) {
					t.Errorf("got %s, of which %s is taken", got, s)
				}
			}
		})
	}
}

// TestAllocateModel compares with the obvious way: list all subnets, strike out
// what is taken, start at the node's own place.
func TestAllocateModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		const network = "10.9.0.0/22"
		cfg := mustConfig(t, fmt.Sprintf(`{"Network":%q,"SubnetLen":28,"SubnetMin":"10.9.0.32","SubnetMax":"10.9.2.%d"}`, network, 16*rng.IntN(16)))
		r := cfg.Ranges[0]
		var taken []netip.Prefix
		for range rng.IntN(60) {
			a := netip.AddrFrom4([4]byte{10, 9, byte(rng.IntN(4)), byte(rng.IntN(256))})
			taken = append(taken, netip.PrefixFrom(a, 24+rng.IntN(9))) // with host bits
		}
		node := fmt.Sprint("node-", i)
		var all []netip.Prefix
		for a := r.Min; !r.Max.Less(a); a = lastAddr(netip.PrefixFrom(a, r.SubnetLen)).Next() {
			all = append(all, netip.PrefixFrom(a, r.SubnetLen))
		}
		start := int(hash(node) % uint64(len(all)))
		var want netip.Prefix
		for _, p := range slices.Concat(all[start:], all[:start]) {
			if !slices.ContainsFunc(taken, p.Overlaps) {
				want = p
				break
			}
		}
		got, err := Allocate(cfg, node, nil, taken)
		switch {
		case !want.IsValid() && !errors.Is(err, ErrNoSubnet):
			t.Fatalf("%+v, taken %s: got %s, %v; want %v", r, taken, got, err, ErrNoSubnet)
		case want.IsValid() && (err != nil || got[0] != want):
			t.Fatalf("%+v, taken %s: got %s, %v; want %s", r, taken, got, err, want)
		}
	}
}

// TestAllocateFills gives every subnet away, each once, then none.
func TestAllocateFills(t *testing.T) {
	cfg := mustConfig(t, `{"Network":"10.244.0.0/16","SubnetLen":24}`)
	var taken []netip.Prefix
	for i := range 255 {
		got, err := Allocate(cfg, fmt.Sprint("node-", i), nil, taken)
		if err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		if slices.Contains(taken, got[0]) || cfg.checkSubnets(got) != nil || got[0] == prefix("10.244.0.0/24") {
			t.Fatalf("node %d got %s", i, got)
		}
		taken = append(taken, got...)
	}
	_, err := Allocate(cfg, "one-more", prefixes("10.244.7.0/24"), taken)
	if !errors.Is(err, ErrNoSubnet) {
		t.Fatalf("got %v, want %v", err, ErrNoSubnet)
	}
	wantWords(t, "full", err, "10.244.0.0/16 /24 10.244.1.0 10.244.255.0 255 taken")
}

// TestAllocateSpread: racing nodes, none of whom sees another, rarely meet.
func TestAllocateSpread(t *testing.T) {
	cfg := mustConfig(t, text4)
	seen := map[netip.Prefix]int{}
	for i := range 255 {
		got, err := Allocate(cfg, fmt.Sprint("node-", i), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen[got[0]]++
	}
	// 255 balls in 255 bins leave 1/e of them empty: about 161 are hit.
	if len(seen) < 130 {
		t.Errorf("255 nodes start at %d places, want about 161", len(seen))
	}
}

// TestAllocateWide: ranges with 2^16 to more than 2^64 subnets, 10,000 taken.
func TestAllocateWide(t *testing.T) {
	for _, text := range []string{
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/16","IPv6SubnetLen":64}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/62","IPv6SubnetLen":126}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/61","IPv6SubnetLen":126}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/7","IPv6SubnetLen":126}`,
	} {
		cfg := mustConfig(t, text)
		r := cfg.Ranges[0]
		// A solid block where the node would start: it must be leapt over.
		start, err := Allocate(cfg, "node", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var taken []netip.Prefix
		for p := start[0]; len(taken) < 10_000; p = netip.PrefixFrom(lastAddr(p).Next(), r.SubnetLen) {
			if _, ok := r.index(p); !ok {
				p = netip.PrefixFrom(r.Min, r.SubnetLen)
			}
			taken = append(taken, p)
		}
		begin := time.Now()
		got, err := Allocate(cfg, "node", nil, taken)
		if err != nil || slices.Contains(taken, got[0]) || cfg.checkSubnets(got) != nil {
			t.Errorf("%s: got %s, %v", text, got, err)
		}
		if _, ok := r.index(got[0]); !ok {
			t.Errorf("%s: %s is outside %s to %s", text, got[0], r.Min, r.Max)
		}
		// 3 ms without the race detector.
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s: took %s", text, took)
		}
	}
}

func TestLastAddr(t *testing.T) {
	for p, want := range map[string]string{
		"10.0.0.0/8": "10.255.255.255", "10.1.2.3/32": "10.1.2.3", "0.0.0.0/0": "255.255.255.255", "10.1.2.3/24": "10.1.2.255",
		"::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "fd00::/63": "fd00::1:ffff:ffff:ffff:ffff", "fd00::7/128": "fd00::7",
	} {
		if got := lastAddr(prefix(p)); got != addr(want) {
			t.Errorf("last address of %s: %s, want %s", p, got, want)
		}
	}
}

func BenchmarkAllocate(b *testing.B) {
	cfg := mustConfig(b, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`)
	var taken []netip.Prefix
	for i := range 10_000 {
		taken = append(taken, cfg.Ranges[0].at(uint64(i*6)))
	}
	for b.Loop() {
		if _, err := Allocate(cfg, "node", nil, taken); err != nil {
			b.Fatal(err)
		}
	}
}
