package firewall

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// foreign is what others have on a node, in every back end and in tables that
// ours go into, too.
const foreign = `
nft add table inet firewalld; nft add chain inet firewalld forward '{ type filter hook forward priority 10; }'; nft add rule inet firewalld forward counter accept
nft add table bridge vxlan-cni; nft add chain bridge vxlan-cni input '{ type filter hook input priority 0; }'
nft add table ip vxlan-cni
for f in nft legacy; do for i in iptables-$f ip6tables-$f; do
  $i -N KUBE-FORWARD; $i -A FORWARD -m comment --comment 'kube rules' -j KUBE-FORWARD; $i -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
  $i -A INPUT -p tcp --dport 22 -j ACCEPT; $i -t nat -N KUBE-POSTROUTING; $i -t nat -A POSTROUTING -j KUBE-POSTROUTING
  $i -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN; $i -t raw -A PREROUTING -p tcp --dport 9 -j DROP; $i -t raw -N MINE
done; done`

// What others have stays as it is, and nothing of ours stays.
func TestRemove(t *testing.T) {
	for name, others := range map[string]string{
		"alone":       "true",
		"with others": foreign,
		"with drops":  foreign + "\niptables-nft -P FORWARD DROP; iptables-legacy -P FORWARD DROP; ip6tables-nft -A FORWARD -j REJECT",
		"in part":     "iptables-nft -A INPUT -j ACCEPT; ip6tables-nft -t raw -A OUTPUT -j ACCEPT; ip6tables-nft -t nat -P OUTPUT ACCEPT",
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, v variant) {
				ns := netlab.TestNamespace(t)
				if v.legacy {
					// A table of this flavour never goes: it must be there before.
					run(t, ns, "for i in iptables ip6tables; do for t in raw nat filter; do $i-legacy -t $t -S >/dev/null; done; done")
				}
				run(t, ns, others)
				before := ruleset(t, ns)
				f := open(t, ns, v.mode)
				ensure(t, ns, f, testRules())
				quiet(t, ns, f, testRules())
				during := ruleset(t, ns)
				for line := range strings.Lines(before) {
					if !strings.Contains(during, line) {
						t.Errorf("%q is gone from\n%s", line, during)
					}
				}
				remove := func() (did []string) {
					must(t, ns.Do(func() (err error) {
						did, err = Remove()
						return err
					}))
					return did
				}
				if did := remove(); len(did) == 0 {
					t.Error("it says that it removed nothing")
				}
				if after := ruleset(t, ns); after != before {
					t.Errorf("after Remove it is\n%s\nand was before\n%s", after, before)
				}
				if did := remove(); len(did) > 0 {
					t.Errorf("of nothing it removed %q", did)
				}
			})
		})
	}
}

// A change of mode leaves nothing of the one before.
func TestModeChange(t *testing.T) {
	usePrograms(t, false)
	ns := netlab.TestNamespace(t)
	fresh := map[Mode]string{}
	for _, m := range []Mode{Auto, NFTables, IPTables, None} {
		ns := netlab.TestNamespace(t)
		ensure(t, ns, open(t, ns, m), testRules())
		fresh[m] = ruleset(t, ns)
	}
	for _, m := range []Mode{Auto, IPTables, NFTables, IPTables, Auto, None, IPTables, None} {
		f := open(t, ns, m)
		ensure(t, ns, f, testRules())
		quiet(t, ns, f, testRules())
		if got := ruleset(t, ns); sortedText(got) != sortedText(fresh[m]) {
			t.Fatalf("in mode %s it is\n%s\nand fresh\n%s", m, got, fresh[m])
		}
	}
}

// A daemon that starts anew finds all right.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		ns := netlab.TestNamespace(t)
		run(t, ns, "iptables-nft -P FORWARD DROP; iptables-legacy -P FORWARD DROP")
		f := open(t, ns, v.mode)
		ensure(t, ns, f, testRules())
		before := ruleset(t, ns)
		quiet(t, ns, open(t, ns, v.mode), testRules())
		if after := ruleset(t, ns); sortedText(after) != sortedText(before) {
			t.Errorf("it is\n%s\nand was\n%s", after, before)
		}
	})
}

// Whatever was wished before, the kernel holds what a fresh one would.
func TestTransitions(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		rounds := 40
		if v.mode == IPTables {
			rounds = 12 // each is some processes
		}
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		ns := netlab.TestNamespace(t)
		f := open(t, ns, v.mode)
		for i := range rounds {
			r := randomRules(random)
			if random.IntN(4) == 0 {
				policy := []string{"ACCEPT", "DROP"}[random.IntN(2)]
				run(t, ns, "iptables-nft -P FORWARD "+policy)
			}
			if random.IntN(4) == 0 {
				lines := tampers(v)
				_ = ns.Command("sh", "-c", lines[random.IntN(len(lines))]).Run() // it may not apply
				run(t, ns, "nft 'list table inet vxlan-cni' >/dev/null 2>&1 || true")
			}
			ensure(t, ns, f, r)
			quiet(t, ns, f, r)
			if got, want := ours(ruleset(t, ns)), ours(freshRuleset(t, v.mode, r, ns)); got != want {
				t.Fatalf("round %d, %+v: it is\n%s\nwant\n%s", i, r, got, want)
			}
		}
	})
}

// freshRuleset is what rules come to in a namespace that held nothing but the
// same policy.
func freshRuleset(t *testing.T, m Mode, r Rules, like *netlab.Namespace) string {
	t.Helper()
	ns := netlab.TestNamespace(t)
	if strings.Contains(ruleset(t, like), "hook forward priority filter; policy drop") {
		run(t, ns, "iptables-nft -P FORWARD DROP")
	}
	ensure(t, ns, open(t, ns, m), r)
	return ruleset(t, ns)
}

// ours is the lines of a rule set that are about us, sorted.
func ours(s string) string {
	var lines []string
	table, chain := "", ""
	for line := range strings.Lines(s) {
		word := strings.Fields(line)
		switch {
		case len(word) == 0 || word[0] == "}":
			continue
		case word[0] == "table", strings.HasPrefix(word[0], "*"):
			table, chain = strings.TrimSpace(line), ""
			continue
		case word[0] == "chain" || word[0] == "set":
			chain = word[1]
		case strings.HasPrefix(word[0], ":"):
			chain = word[0]
		case word[0] == "-A":
			chain = word[1]
		}
		if strings.Contains(table, "inet vxlan-cni") || strings.Contains(line, prefix) || strings.Contains(chain, prefix) {
			if !strings.Contains(line, made) && !strings.Contains(chain, made) {
				lines = append(lines, fmt.Sprint(table, " ", chain, " ", strings.TrimSpace(line)))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func randomRules(r *rand.Rand) (out Rules) {
	some := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			if r.IntN(2) == 0 {
				out = append(out, netip.MustParsePrefix(s))
			}
		}
		r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	out = Rules{
		Networks:   some("10.244.0.0/16", "10.245.0.0/16", "10.244.7.0/24", "fd00::/48", "fd00:0:1::/48", "0.0.0.0/1", "255.0.0.0/8"),
		Subnets:    some("10.244.1.0/24", "fd00:0:0:1::/64", "ffff::/16"),
		Masquerade: r.IntN(4) > 0, Forward: r.IntN(4) > 0, Filter: r.IntN(4) > 0,
	}
	if r.IntN(4) > 0 {
		out.Port = []uint16{8472, 4789}[r.IntN(2)]
	}
	for range r.IntN(6) {
		out.Peers = append(out.Peers, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(8))}), netip.AddrFrom16([16]byte{0x20, 1, 15: byte(1 + r.IntN(4))}))
	}
	return out
}

// manyPeers is n addresses of each family.
func manyPeers(n int) (list []netip.Addr) {
	for i := range n {
		list = append(list, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0x20, 1, 13: 1, 14: byte(i >> 8), 15: byte(i)}))
	}
	return list
}

// One peer more or less costs one element; the table stays, with what it has
// counted.
func TestManyPeers(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		n := 5000 // more than one message takes
		if v.mode == IPTables {
			n = 1000
		}
		ns := netlab.TestNamespace(t)
		f := open(t, ns, v.mode)
		r := testRules()
		r.Peers = manyPeers(n)
		ensure(t, ns, f, r)
		quiet(t, ns, f, r)
		if v.mode != IPTables {
			handle := func() string {
				out, err := ns.Output("nft", "-a", "list", "chain", "inet", Table, "vxlan")
				must(t, err)
				return counters.ReplaceAllString(out, "")
			}
			before := handle()
			r.Peers = append(r.Peers[2:], addr("192.0.2.77"))
			if did, want := fmt.Sprint(ensure(t, ns, f, r)), "[nftables set peers-ipv4: 1 added, 1 removed nftables set peers-ipv6: 0 added, 1 removed]"; did != want {
				t.Errorf("it did %s, want %s", did, want)
			}
			if after := handle(); after != before {
				t.Errorf("the chain was made anew: %s, was %s", after, before)
			}
		}
		r.Peers = nil
		ensure(t, ns, f, r)
		r.Peers = manyPeers(n)
		ensure(t, ns, f, r)
		quiet(t, ns, f, r)
		open2 := open(t, ns, v.mode)
		quiet(t, ns, open2, r)
	})
}

// While nothing changes, nothing is executed, whether by Ensure or by what is
// heard of others' changes elsewhere.
func TestNoExecWhileIdle(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		log := countPrograms(t)
		ns := netlab.TestNamespace(t)
		run(t, ns, "iptables-nft -P FORWARD DROP; iptables-legacy -P FORWARD DROP")
		f := open(t, ns, v.mode)
		start(t, f)
		ensure(t, ns, f, testRules())
		b, err := os.ReadFile(log)
		must(t, err)
		if v.mode == IPTables && len(b) == 0 {
			t.Fatal("no program was counted, and some must have run")
		}
		must(t, os.WriteFile(log, nil, 0o644))
		for range 100 {
			quiet(t, ns, f, testRules())
		}
		// Changes by others that do not concern us, past the counting programs.
		run(t, ns, "nft add table inet elsewhere; nft add table ip elsewhere; /usr/sbin/iptables-legacy -A INPUT -j ACCEPT; /usr/sbin/iptables-nft -t nat -N OTHER")
		for range 10 {
			quiet(t, ns, f, testRules())
		}
		noNews(t, f)
		if b, err := os.ReadFile(log); err != nil || len(b) > 0 {
			t.Errorf("while idle it ran %s (%v)", b, err)
		}
	})
}

// countPrograms puts scripts in front of the programs of iptables that write a
// line when they are run, and returns the file.
func countPrograms(t *testing.T) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	must(t, os.WriteFile(log, nil, 0o644))
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"", "-legacy", "-nft"} {
			for _, end := range []string{"", "-save", "-restore"} {
				name := base + flavour + end
				path, err := exec.LookPath(name)
				must(t, err)
				script := fmt.Sprintf("#!/bin/sh\necho %s $* >>%s\nexec %s \"$@\"\n", name, log, path)
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}
