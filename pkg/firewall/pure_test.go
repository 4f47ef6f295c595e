package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestParseMode(t *testing.T) {
	for _, s := range []string{"auto", "nftables", "iptables", "none"} {
		if m, err := ParseMode(s); err != nil || string(m) != s {
			t.Errorf("%q is %q, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "AUTO", "nft"} {
		if m, err := ParseMode(s); err == nil {
			t.Errorf("%q is %q, want an error", s, m)
		}
	}
}

func TestNormal(t *testing.T) {
	p := netip.MustParsePrefix
	r, bad, err := Rules{
		Networks: []netip.Prefix{p("fd00::1/48"), p("10.244.7.0/24"), p("10.244.9.9/16"), p("10.244.0.0/16"), p("10.245.0.0/16")},
		Port:     8472, Filter: true,
		Peers: []netip.Addr{netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("::ffff:192.0.2.2")},
	}.normal()
	if bad != nil || err != nil {
		t.Fatal(bad, err)
	}
	if got, want := fmt.Sprint(r.Networks, r.Peers), "[10.244.0.0/16 10.245.0.0/16 fd00::/48] [192.0.2.2 fe80::1]"; got != want {
		t.Errorf("it is %s, want %s", got, want)
	}
	for _, r := range []Rules{{Networks: []netip.Prefix{{}}}, {Subnets: []netip.Prefix{p("::ffff:10.0.0.0/104")}}} {
		if _, _, err := r.normal(); err == nil {
			t.Errorf("%+v is taken, want an error", r)
		}
	}
	good := netip.MustParseAddr("192.0.2.2")
	for _, a := range []netip.Addr{{}, netip.IPv4Unspecified(), netip.MustParseAddr("ff02::1")} {
		r, bad, err := Rules{Port: 8472, Filter: true, Peers: []netip.Addr{a, good}}.normal()
		if bad == nil || err != nil || len(r.Peers) != 1 || r.Peers[0] != good {
			t.Errorf("with peer %v it is %v, %v, %v, want the good one and a complaint", a, r.Peers, bad, err)
		}
	}
}

// table makes a table of lines such as "FORWARD drop: ?jump A, REJECT"; a
// question mark is a condition, "FORWARD accept: >A" goes to A for good.
func table(lines ...string) xtable {
	t := xtable{}
	for _, l := range lines {
		head, rules, _ := strings.Cut(l, ":")
		name, policy, _ := strings.Cut(head, " ")
		c := &xchain{builtin: policy != "", drop: policy == "drop"}
		for r := range strings.SplitSeq(rules, ",") {
			if r = strings.TrimSpace(r); r != "" {
				target, conditional := strings.CutPrefix(r, "?")
				target, leaves := strings.CutPrefix(target, ">")
				c.rules = append(c.rules, xrule{target: target, conditional: conditional, leaves: leaves, text: target})
			}
		}
		t[name] = c
	}
	return t
}

func TestBlocker(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  int
	}{
		{nil, -1},
		{[]string{"FORWARD accept:"}, -1},
		{[]string{"FORWARD drop:"}, 0},
		{[]string{"FORWARD drop: A, ?ACCEPT", "A: ?DROP"}, 2},
		{[]string{"FORWARD accept: ?DROP, REJECT, DROP"}, 1},
		{[]string{"FORWARD drop: ACCEPT, DROP"}, -1},
		{[]string{"FORWARD drop: ?ACCEPT, RETURN, DROP"}, 3}, // the policy; what is behind RETURN is never met
		{[]string{"FORWARD accept: RETURN, DROP"}, -1},
		{[]string{"FORWARD accept: A, B", "A: ?REJECT", "B: C", "C: LOG, REJECT"}, 1},
		{[]string{"FORWARD accept: ?A", "A: DROP"}, -1},
		{[]string{"FORWARD drop: >A, ACCEPT", "A: ?DROP"}, 2},
		{[]string{"FORWARD accept: >A, DROP", "A: ?DROP"}, -1},
		{[]string{"FORWARD accept: B, >A", "A: B, DROP", "B: LOG"}, 1},
		{[]string{"FORWARD accept: A, DROP", "A: RETURN, DROP"}, 1},
		{[]string{"FORWARD accept: A, DROP", "A: ACCEPT"}, -1},
		{[]string{"FORWARD accept: A", "A: A"}, -1},                        // no kernel has it
		{[]string{"FORWARD drop: A", "A:" + strings.Repeat(" A,", 50)}, 1}, // nor this; it must end
		{[]string{"FORWARD drop: VXLAN-CNI-FORWARD", "VXLAN-CNI-FORWARD: DROP"}, 1},
		{[]string{"FORWARD accept: A"}, -1}, // A was not read
	} {
		if got := table(c.lines...).blocker(forwardChain); got != c.want {
			t.Errorf("%q is blocked at %d, want %d", c.lines, got, c.want)
		}
	}
}

// Where the calls of our chains go: the text is played on the table, and then
// all calls must be right.
func TestCallsComeRight(t *testing.T) {
	const ours, left = prefix + "FORWARD", prefix + "OLD"
	want := xwant{table: "filter", calls: forwardChain, chain: ours}
	for _, c := range []struct{ have, want string }{
		{"", ours},
		{"DROP", ours + " DROP"},
		{"A ?DROP REJECT", "A ?DROP " + ours + " REJECT"},
		{"REJECT " + ours, ours + " REJECT"},
		{ours + " A REJECT", ours + " A REJECT"},
		{ours + " A " + ours + " REJECT " + ours, "A " + ours + " REJECT"},
		{left + " A " + left + " REJECT", "A " + ours + " REJECT"},
		{"?" + ours + " A", "?" + ours + " A " + ours},
		{ours + " ?" + ours, ours + " ?" + ours},
	} {
		for _, policy := range []string{"accept", "drop"} {
			have := table("FORWARD "+policy+": "+strings.Join(strings.Fields(c.have), ", "), left+":")
			text := restore([]xwant{want}, map[string]xtable{"filter": have}, false)
			got := play(t, strings.Fields(c.have), text)
			if strings.Join(got, " ") != c.want {
				t.Errorf("%q becomes %q, want %q, by\n%s", c.have, got, c.want, text)
			}
			after := table("FORWARD " + policy + ": " + strings.Join(got, ", "))
			if _, right := after.place(want); !right {
				t.Errorf("%q is not right in its own eyes", got)
			}
		}
	}
}

// play carries out what a text for iptables-restore does to FORWARD.
func play(t *testing.T, rules []string, text string) []string {
	t.Helper()
	for line := range strings.Lines(text) {
		var n int
		var chain string
		switch {
		case strings.HasPrefix(line, "-D FORWARD"):
			if _, err := fmt.Sscanf(line, "-D FORWARD -j %s", &chain); err != nil {
				t.Fatal(err)
			}
			for i, r := range rules {
				if r == chain {
					rules = append(rules[:i:i], rules[i+1:]...)
					break
				}
			}
		case strings.HasPrefix(line, "-I FORWARD"):
			if _, err := fmt.Sscanf(line, "-I FORWARD %d -j %s", &n, &chain); err != nil {
				t.Fatal(err)
			}
			rules = append(rules[:n-1:n-1], append([]string{chain}, rules[n-1:]...)...)
		}
	}
	return rules
}

func TestParseLegacyRefusesWhatIsTorn(t *testing.T) {
	for _, b := range [][]byte{make([]byte, 1), make([]byte, layout4.size), make([]byte, layout4.size+xtStandardSize)} {
		if _, err := parseLegacy(xtInfo{}, b, layout4); err == nil {
			t.Errorf("%d bytes of nothing are taken for a table", len(b))
		}
	}
	if _, err := parseInfo(make([]byte, xtInfoSize-1)); err == nil {
		t.Error("a short answer is taken")
	}
}
