package firewall

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// prefix is what the names of our chains in iptables begin with.
const prefix = "VXLAN-CNI-"

// made is the name, with a builtin chain's or TABLE behind it, of an empty chain
// that marks what was made for us and goes with us.
const made = prefix + "MADE-"

// An xtable is one table of iptables in one flavour and family, as the kernel
// holds it: chains by name, those that were worth reading.
type xtable map[string]*xchain

// An xchain is one chain of iptables.
type xchain struct {
	builtin bool
	drop    bool // its policy
	rules   []xrule
}

// An xrule is what matters of a rule that may be anybody's.
type xrule struct {
	target      string // ACCEPT, DROP, RETURN, REJECT, a chain, …; "": it only counts
	conditional bool   // it takes some packets only
	leaves      bool   // the target's end is this chain's, too
	text        string // equal for rules that do the same; never shown
	handle      uint64 // nftables' name of it
	packets     uint64 // that it has counted
}

// An xwant is one chain of ours in iptables.
type xwant struct {
	table string
	calls string // the builtin chain that calls it, "" if another one of ours does
	chain string
	lines []string // rules, as iptables-restore reads them, without -A and the chain
}

func (w xwant) key() string { return w.table + " " + w.chain + "\n" + strings.Join(w.lines, "\n") }

// forwardChain is where iptables filters what is forwarded.
const forwardChain = "FORWARD"

// blocker returns where a chain drops whatever it was not told of: the index of
// the first rule that ends in a DROP or REJECT without any condition, the number
// of rules where that is the policy, -1 where nothing is dropped. A DROP with a
// condition is somebody's will about certain packets, and stays in force.
func (t xtable) blocker(chain string) int {
	c, ok := t[chain]
	if !ok {
		return -1
	}
	fates := map[string]string{}
	for i, r := range c.rules {
		switch t.fate(r, fates) {
		case "DROP":
			return i
		case "ACCEPT":
			return -1
		case "RETURN":
			return c.blockedByPolicy()
		}
	}
	return c.blockedByPolicy()
}

func (c *xchain) blockedByPolicy() int {
	if c.drop {
		return len(c.rules)
	}
	return -1
}

// fate says what becomes of every packet that meets a rule: DROP, ACCEPT,
// RETURN, or "" where that depends or the next rule decides. fates remembers
// those of chains, each of which is walked once.
func (t xtable) fate(r xrule, fates map[string]string) string {
	if r.conditional {
		return ""
	}
	switch r.target {
	case "DROP", "REJECT":
		return "DROP"
	case "ACCEPT", "RETURN":
		return r.target
	}
	c, ok := t[r.target]
	if !ok || strings.HasPrefix(r.target, prefix) {
		return ""
	}
	if f, ok := fates[r.target]; ok {
		return cmp.Or(f, r.end())
	}
	fates[r.target] = "" // for a loop, which no kernel takes
	for _, next := range c.rules {
		f := t.fate(next, fates)
		if f == "RETURN" {
			break
		}
		if f != "" {
			fates[r.target] = f
			break
		}
	}
	return cmp.Or(fates[r.target], r.end())
}

// end says what becomes of a packet for which the target decides nothing.
func (r xrule) end() string {
	if r.leaves {
		return "RETURN"
	}
	return ""
}

// calls lists where a builtin chain calls ours. A call for some packets only is
// somebody else's.
func (t xtable) calls(builtin, chain string) (at []int) {
	if c, ok := t[builtin]; ok {
		for i, r := range c.rules {
			if r.target == chain && !r.conditional {
				at = append(at, i)
			}
		}
	}
	return at
}

// place returns the index that a call of w should have in its builtin chain as
// it is, and whether the calls that there are will do.
func (t xtable) place(w xwant) (index int, right bool) {
	at := t.calls(w.calls, w.chain)
	once := len(at) == 1
	n := 0
	if c, ok := t[w.calls]; ok {
		n = len(c.rules)
	}
	switch w.calls {
	case forwardChain:
		// As far behind as will do: rules before it, such as those of
		// kube-proxy and of network policies, are meant for pods too.
		index = n
		if b := t.blocker(forwardChain); b >= 0 {
			index = b
		}
		return index, once && at[0] <= index
	case "POSTROUTING":
		return n, once // what translates before us has decided
	}
	return 0, once && at[0] == 0 // before whatever accepts
}

// only reports whether every rule calls one of the chains.
func (c *xchain) only(chains []string) bool {
	return !slices.ContainsFunc(c.rules, func(r xrule) bool { return !slices.Contains(chains, r.target) })
}

// content is what our chains do, in a form that is good for comparing only.
func (t xtable) content(chain string) string {
	c, ok := t[chain]
	if !ok {
		return "absent"
	}
	var b strings.Builder
	for _, r := range c.rules {
		fmt.Fprintf(&b, "%s %t %s\n", r.target, r.conditional, r.text)
	}
	return b.String()
}

// dropped counts the packets that our chains have dropped.
func (t xtable) dropped() (packets uint64) {
	for _, name := range t.ours() {
		for _, r := range t[name].rules {
			if r.target == "DROP" {
				packets += r.packets
			}
		}
	}
	return packets
}

// marks lists the chains that say what was made for us.
func (t xtable) marks() (names []string) {
	for name := range t {
		if strings.HasPrefix(name, made) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ours lists our chains, without the marks.
func (t xtable) ours() (names []string) {
	for name := range t {
		if strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, made) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// xchains puts r into iptables' terms, for one family.
func (r Rules) xchains(f family) (wants []xwant) {
	list := r.chains()
	if r.Forward {
		list = slices.DeleteFunc(list, func(c chain) bool { return c.hook == forward })
		list = append(list, r.accept())
	}
	for _, c := range list {
		w := xwant{table: "raw", chain: prefix + strings.ToUpper(c.name)}
		switch c.hook {
		case prerouting:
			w.calls = "PREROUTING"
		case output:
			w.calls = "OUTPUT"
		case forward:
			w.table, w.calls = "filter", forwardChain
		case postrouting:
			w.table, w.calls = "nat", "POSTROUTING"
		}
		for _, rule := range c.rules {
			w.lines = append(w.lines, rule.lines(r, f)...)
		}
		wants = append(wants, w)
	}
	slices.SortStableFunc(wants, func(a, b xwant) int { return strings.Compare(a.table, b.table) })
	return wants
}

// xaccept puts what FORWARD needs, where nftables does the rest, into iptables'
// terms.
func (r Rules) xaccept(f family) []xwant {
	if !r.Forward || len(r.members(pods, f)) == 0 {
		return nil
	}
	return r.acceptOnly().xchains(f)
}

// lines is a rule for iptables-restore: there are no sets, so one for each pair
// of members.
func (r rule) lines(rules Rules, f family) (lines []string) {
	var tail []string
	if r.loopback {
		tail = append(tail, "-i lo")
	}
	if r.mark {
		tail = append(tail, fmt.Sprintf("-m mark --mark %#x/%#x", KubeProxyMark, KubeProxyMark))
	}
	if r.port != 0 {
		tail = append(tail, fmt.Sprintf("-p udp -m udp --dport %d", r.port))
	}
	if r.why != "" {
		tail = append(tail, fmt.Sprintf("-m comment --comment %q", r.why))
	}
	tail = append(tail, map[verdict]string{
		doReturn: "-j RETURN", doAccept: "-j ACCEPT", doDrop: "-j DROP", doMasquerade: "-j MASQUERADE --random-fully",
		doNotrack: "-j CT --notrack", doVXLAN: "-j " + prefix + "VXLAN",
	}[r.do])
	to := addresses("-d", r.to, rules, f)
	if r.multicast {
		to = []string{"-d " + f.multicast.String()}
	}
	if r.here {
		to = []string{"-m addrtype --dst-type LOCAL,BROADCAST,MULTICAST"}
		if f.six { // where the kernel wants all of the types at once, and a local address is unicast
			to = []string{"-m addrtype --dst-type LOCAL", "-m addrtype --dst-type ANYCAST", "-m addrtype --dst-type MULTICAST"}
		}
	}
	for _, from := range addresses("-s", r.from, rules, f) {
		for _, to := range to {
			words := slices.DeleteFunc([]string{from, to}, func(s string) bool { return s == "" })
			lines = append(lines, strings.Join(append(words, tail...), " "))
		}
	}
	return lines
}

// addresses is the condition that an address is in the set; one that says
// nothing for no set.
func addresses(flag string, s set, rules Rules, f family) (words []string) {
	if s == "" {
		return []string{""}
	}
	for _, p := range rules.members(s, f) {
		words = append(words, flag+" "+p.String())
	}
	return words
}

// restore writes what iptables-restore --noflush has to read so that the wanted
// chains, and none of ours besides, are called from where they should be. tables
// is what the kernel holds; mark says that what is made is to be marked.
func restore(wants []xwant, tables map[string]xtable, mark bool) string {
	var b strings.Builder
	for _, name := range xtableNames {
		t := tables[name]
		mine := slices.DeleteFunc(slices.Clone(wants), func(w xwant) bool { return w.table != name })
		leftover := slices.DeleteFunc(t.ours(), func(chain string) bool {
			return slices.ContainsFunc(mine, func(w xwant) bool { return w.chain == chain })
		})
		if len(mine)+len(leftover) > 0 {
			fmt.Fprintf(&b, "*%s\n", name)
			t.write(&b, mine, leftover, mark)
			b.WriteString("COMMIT\n")
		}
	}
	return b.String()
}

// xtableNames are the tables that we have chains in.
var xtableNames = []string{"raw", "nat", "filter"}

func (t xtable) write(b *strings.Builder, mine []xwant, leftover []string, mark bool) {
	for _, w := range mine {
		fmt.Fprintf(b, ":%s - [0:0]\n", w.chain)
		if mark && t == nil {
			fmt.Fprintf(b, ":%sTABLE - [0:0]\n", made)
		} else if mark && w.calls != "" && t[w.calls] == nil {
			fmt.Fprintf(b, ":%s%s - [0:0]\n", made, w.calls)
		}
	}
	for _, chain := range leftover {
		fmt.Fprintf(b, ":%s - [0:0]\n", chain)
	}
	for _, w := range mine {
		for _, l := range w.lines {
			fmt.Fprintf(b, "-A %s %s\n", w.chain, l)
		}
	}
	t.writeCalls(b, mine, leftover)
	for _, chain := range leftover {
		fmt.Fprintf(b, "-X %s\n", chain)
	}
}

// builtins are the chains that ours are called from.
var builtins = []string{"PREROUTING", "OUTPUT", "FORWARD", "POSTROUTING"}

// writeCalls has each wanted chain called from the right place, once, and no
// other chain of ours.
func (t xtable) writeCalls(b *strings.Builder, mine []xwant, leftover []string) {
	for _, builtin := range builtins {
		var gone []int // indices of rules, in the chain as it is
		insert, index := "", 0
		remove := func(chain string) {
			// Not by number: it may be another rule's by then.
			for _, i := range t.calls(builtin, chain) {
				gone = append(gone, i)
				fmt.Fprintf(b, "-D %s -j %s\n", builtin, chain)
			}
		}
		for _, chain := range leftover {
			remove(chain)
		}
		for _, w := range mine {
			if w.calls != builtin {
				remove(w.chain)
				continue
			}
			if i, right := t.place(w); !right {
				remove(w.chain)
				insert, index = w.chain, i
			}
		}
		before := index
		for _, i := range gone {
			if i < before {
				index--
			}
		}
		if insert != "" {
			fmt.Fprintf(b, "-I %s %d -j %s\n", builtin, index+1, insert)
		}
	}
}
