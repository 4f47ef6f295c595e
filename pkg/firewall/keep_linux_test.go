package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A blocked FORWARD in each flavour, and how it looks to us.
var blocks = []struct{ name, line string }{
	{"nft policy", "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP"},
	{"nft reject", "iptables-nft -A FORWARD -j REJECT; ip6tables-nft -A FORWARD -j REJECT"},
	{"nft reject by a chain", `for i in iptables-nft ip6tables-nft; do $i -N POLICY; $i -A FORWARD -i nothing -j POLICY; $i -A FORWARD -j POLICY; $i -A POLICY -m comment --comment all -j DROP; done`},
	{"nft reject by a goto", `for i in iptables-nft ip6tables-nft; do $i -N POLICY; $i -A FORWARD -g POLICY; $i -A POLICY -j DROP; done`},
	{"legacy policy", "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP"},
	{"legacy reject", "iptables-legacy -A FORWARD -j REJECT; ip6tables-legacy -A FORWARD -j REJECT"},
	{"legacy reject by a goto", `for i in iptables-legacy ip6tables-legacy; do $i -N POLICY; $i -A FORWARD -g POLICY; $i -A POLICY -j DROP; done`},
	{"legacy reject by a chain", `for i in iptables-legacy ip6tables-legacy; do $i -N POLICY; $i -A FORWARD -i nothing -j POLICY; $i -A FORWARD -j POLICY; $i -A POLICY -m comment --comment all -j DROP; done`},
}

// Whatever FORWARD drops, pods are heard, whether it was so before or comes
// later, also in front of our rule; and when it is over nothing of ours stays.
func TestForward(t *testing.T) {
	for _, mode := range []Mode{Auto, IPTables} {
		for _, b := range blocks {
			t.Run(string(mode)+" "+b.name, func(t *testing.T) {
				usePrograms(t, false)
				s := newSite(t)
				f := open(t, s.node, mode)
				start(t, f)
				ensure(t, s.node, f, testRules())
				clean := ruleset(t, s.node)
				talk := func() {
					t.Helper()
					eachFamily(t, func(t *testing.T, p place) {
						sees(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 7), p.nodeOut)
						sees(t, s.outside, p.outside, netip.AddrPortFrom(p.pod, 7), p.outside)
					})
				}
				for _, p := range places {
					serve(t, s.outside, netip.AddrPortFrom(p.outside, 7))
					serve(t, s.pod, netip.AddrPortFrom(p.pod, 7))
				}
				talk()
				run(t, s.node, b.line)
				if mode == Auto || strings.HasPrefix(b.name, "legacy") {
					awaitNews(t, f) // else our accept stands there already
				}
				ensure(t, s.node, f, testRules())
				talk()
				quiet(t, s.node, f, testRules())

				// Somebody puts a rule in front of ours.
				for _, i := range programs(b.line) {
					run(t, s.node, i+" -I FORWARD -j REJECT")
				}
				awaitNews(t, f)
				ensure(t, s.node, f, testRules())
				talk()

				// What is not for pods stays as it is.
				for _, i := range programs(b.line) {
					run(t, s.node, i+" -F FORWARD; "+i+" -P FORWARD ACCEPT; "+i+" -F; for c in $("+i+" -S | sed -n 's/^-N //p' | grep -v VXLAN); do "+i+" -X $c; done")
				}
				awaitNews(t, f)
				ensure(t, s.node, f, testRules())
				quiet(t, s.node, f, testRules())
				if mode == Auto && strings.Contains(ruleset(t, s.node), prefix) {
					t.Errorf("nothing drops, and our accept is still there:\n%s", ruleset(t, s.node))
				}
				if mode == IPTables && b.name == "nft policy" {
					if got := ruleset(t, s.node); got != clean {
						t.Errorf("it has become\n%s\nand was\n%s", got, clean)
					}
				}
			})
		}
	}
}

// programs are the iptables that a line runs.
func programs(line string) []string {
	if strings.Contains(line, "legacy") {
		return []string{"iptables-legacy", "ip6tables-legacy"}
	}
	return []string{"iptables-nft", "ip6tables-nft"}
}

// A drop of certain packets is somebody's will, and stays in force.
func TestForwardKeepsOthersDrops(t *testing.T) {
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			s := newSite(t)
			p := places["ipv4"]
			run(t, s.node, fmt.Sprintf("iptables-%s -A FORWARD -d %s -p udp --dport 8 -j DROP; iptables-%[1]s -P FORWARD DROP", flavour, p.outside))
			f := open(t, s.node, Auto)
			ensure(t, s.node, f, testRules())
			serve(t, s.outside, netip.AddrPortFrom(p.outside, 7))
			serve(t, s.outside, netip.AddrPortFrom(p.outside, 8))
			sees(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 7), p.nodeOut)
			if got, err := whoami(t, s.pod, p.pod, netip.AddrPortFrom(p.outside, 8)); err == nil {
				t.Errorf("what somebody drops arrived, as from %s", got)
			}
		})
	}
}

// What drops and is not ours to change is named, and not changed.
func TestBlocked(t *testing.T) {
	const firewalld = `nft add table inet firewalld; nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority filter + 10; }'
nft add rule inet firewalld filter_FORWARD ct state established accept; nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited`
	for _, c := range []struct {
		mode Mode
		line string
		want string
	}{
		{Auto, "true", "[]"},
		{Auto, firewalld, "[nftables inet firewalld filter_FORWARD]"},
		{Auto, "nft add table ip mine; nft add chain ip mine f '{ type filter hook forward priority 0; policy drop; }'", "[nftables ip mine f]"},
		{Auto, "nft add table ip mine; nft add chain ip mine f '{ type filter hook input priority 0; policy drop; }'", "[]"},
		{Auto, "iptables-nft -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP", "[]"},
		{NFTables, "iptables-nft -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP", "[nftables ip filter FORWARD iptables FORWARD (ipv6, legacy)]"},
		{NFTables, "iptables-nft -A FORWARD -j ACCEPT; iptables-nft -P FORWARD DROP", "[]"},
		{None, "iptables-nft -P FORWARD DROP", "[]"},
	} {
		ns := netlab.TestNamespace(t)
		f := open(t, ns, c.mode)
		ensure(t, ns, f, testRules())
		run(t, ns, c.line)
		before := strings.ReplaceAll(ruleset(t, ns), "\n", "")
		ensure(t, ns, f, testRules())
		quiet(t, ns, f, testRules())
		if got := fmt.Sprint(f.Blocked()); got != c.want {
			t.Errorf("%s, %s: it names %s, want %s", c.mode, c.line, got, c.want)
		}
		if c.mode != Auto {
			if after := strings.ReplaceAll(ruleset(t, ns), "\n", ""); after != before {
				t.Errorf("%s, %s: it has become\n%s\nand was\n%s", c.mode, c.line, after, before)
			}
		}
	}
}

// awaitNews waits for Ready.
func awaitNews(t testing.TB, f *Firewall) {
	t.Helper()
	select {
	case <-f.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("ten seconds are over, and nothing was noticed")
	}
}

// noNews fails the test if something was noticed until now.
func noNews(t testing.TB, f *Firewall) {
	t.Helper()
	select {
	case <-f.Ready():
		t.Error("it was told of a change that is none")
	default:
	}
}

// tampers is what others do to our rules.
func tampers(v variant) []string {
	switch {
	case v.mode != IPTables:
		return []string{
			"nft flush ruleset",
			"nft delete table inet vxlan-cni",
			"nft flush table inet vxlan-cni",
			"nft flush chain inet vxlan-cni postrouting",
			"nft flush set inet vxlan-cni peers-ipv4",
			"nft delete element inet vxlan-cni peers-ipv6 '{ 2001:db8::2 }'",
			"nft add element inet vxlan-cni peers-ipv4 '{ 192.0.2.66 }'",
			"nft flush set inet vxlan-cni pods-ipv6",
			"nft add element inet vxlan-cni local-ipv4 '{ 203.0.113.0/24 }'",
			"nft insert rule inet vxlan-cni vxlan accept",
			"nft insert rule inet vxlan-cni postrouting accept",
			"nft add chain inet vxlan-cni more",
			"nft add set inet vxlan-cni more '{ type ipv4_addr; }'",
			"nft 'delete rule inet vxlan-cni vxlan handle '$(nft -a list chain inet vxlan-cni vxlan | sed -n 's/.*drop.*handle //p')",
			"nft 'replace rule inet vxlan-cni prerouting handle '$(nft -a list chain inet vxlan-cni prerouting | sed -n 's/.*jump.*handle //p')' udp dport 8473 jump vxlan'",
			"nft 'add table inet vxlan-cni { flags dormant; }'",
			"nft 'chain inet vxlan-cni prerouting { policy drop; }'",
			"text=$(nft list chain inet vxlan-cni output | sed 's/type filter/type route/'); nft delete chain inet vxlan-cni output; echo \"$text\" | nft -f -",
		}
	case v.legacy:
		return []string{
			"iptables-legacy -F FORWARD", "ip6tables-legacy -t raw -F", "iptables-legacy -t nat -F POSTROUTING",
			"iptables-legacy -F VXLAN-CNI-FORWARD", "ip6tables-legacy -t raw -D VXLAN-CNI-VXLAN 2",
			"iptables-legacy -t raw -I PREROUTING -p udp -j ACCEPT",
			"iptables-legacy -t raw -I VXLAN-CNI-VXLAN -s 192.0.2.66 -j RETURN",
			"iptables-legacy -t nat -F; iptables-legacy -t nat -X",
			"iptables-legacy -t raw -R VXLAN-CNI-PREROUTING 2 -p udp --dport 8473 -m addrtype --dst-type LOCAL -j VXLAN-CNI-VXLAN",
			"iptables-legacy -N VXLAN-CNI-MORE",
		}
	}
	return []string{
		"nft flush ruleset",
		"iptables-nft -F FORWARD", "ip6tables-nft -t raw -F", "iptables-nft -t nat -F POSTROUTING",
		"iptables-nft -F VXLAN-CNI-FORWARD", "ip6tables-nft -t raw -D VXLAN-CNI-VXLAN 2",
		"iptables-nft -t raw -I PREROUTING -p udp -j ACCEPT",
		"iptables-nft -t raw -I VXLAN-CNI-VXLAN -s 192.0.2.66 -j RETURN",
		"iptables-nft -t nat -F; iptables-nft -t nat -X",
		"iptables-nft -t raw -R VXLAN-CNI-PREROUTING 2 -p udp --dport 8473 -m addrtype --dst-type LOCAL -j VXLAN-CNI-VXLAN",
		"iptables-nft -N VXLAN-CNI-MORE",
	}
}

// What others change is noticed, and put right by the next Ensure; our own
// changes are no news.
func TestTampering(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		ns := netlab.TestNamespace(t)
		f := open(t, ns, v.mode)
		start(t, f)
		ensure(t, ns, f, testRules())
		right := ruleset(t, ns)
		for _, line := range tampers(v) {
			t.Run(line, func(t *testing.T) {
				noNews(t, f)
				run(t, ns, line)
				awaitNews(t, f)
				if did := ensure(t, ns, f, testRules()); len(did) == 0 {
					t.Error("it says that it changed nothing")
				}
				quiet(t, ns, f, testRules())
				got := ruleset(t, ns)
				if strings.Contains(line, "-p udp -j ACCEPT") { // somebody's own rule, behind ours by now
					run(t, ns, strings.Replace(line, "-I", "-D", 1))
					got = ruleset(t, ns)
				}
				if sortedText(got) != sortedText(right) {
					t.Errorf("it is\n%s\nand was\n%s", got, right)
				}
			})
		}
		noNews(t, f)
	})
}

// Notifications that were lost hide nothing.
func TestOverrun(t *testing.T) {
	ns := netlab.TestNamespace(t)
	f := open(t, ns, Auto)
	ensure(t, ns, f, testRules())
	must(t, f.watch.nft.SetReadBuffer(1)) // as small as the kernel allows
	run(t, ns, "nft add table ip more; for i in $(seq 500); do echo add chain ip more c$i; done | nft -f -; nft delete table inet vxlan-cni")
	if err := f.watch.nft.Next(func(rtnl.Notification) {}); !errors.Is(err, rtnl.ErrOverrun) {
		t.Errorf("%v: nothing was lost, and this test shows nothing", err)
	}
	run(t, ns, "for i in $(seq 500); do echo delete chain ip more c$i; done | nft -f -")
	start(t, f)
	awaitNews(t, f)
	ensure(t, ns, f, testRules())
	run(t, ns, "nft delete table inet vxlan-cni")
	awaitNews(t, f)
}

// sortedText is the lines of a text in order: chains and tables that were made
// anew stand elsewhere in the kernel's list. Marks of what was made for us are
// left out: who removes one, by iptables -X, keeps what it marked.
func sortedText(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && line != "}" && !strings.Contains(line, made) {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
