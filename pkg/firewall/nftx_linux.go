package firewall

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The tables of iptables' nft flavour are tables of nftables; here they are read
// and written without iptables.

func (f family) nft() nftables.TableFamily {
	if f.six {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// readX returns those of the named tables that there are: the builtin chains
// that concern us, our own, and those that every packet of FORWARD comes to.
func (n *nft) readX(f family, names ...string) (map[string]xtable, error) {
	if err := n.limit(); err != nil {
		return nil, err
	}
	all, err := n.conn.ListChainsOfTableFamily(f.nft())
	if err != nil {
		return nil, fmt.Errorf("read nftables chains of %s: %w", f.name, err)
	}
	there, err := n.conn.ListTablesOfFamily(f.nft())
	if err != nil {
		return nil, fmt.Errorf("read nftables tables of %s: %w", f.name, err)
	}
	out := map[string]xtable{}
	for _, table := range there {
		if !slices.Contains(names, table.Name) {
			continue
		}
		var begin []string
		for _, c := range all {
			if c.Table.Name == table.Name && (slices.Contains(builtins, c.Name) || strings.HasPrefix(c.Name, prefix)) {
				begin = append(begin, c.Name)
			}
		}
		if out[table.Name], err = n.follow(all, table, begin); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// follow reads chains of a table, and those that filtering ones call without a
// condition.
func (n *nft) follow(all []*nftables.Chain, table *nftables.Table, todo []string) (xtable, error) {
	t := xtable{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		i := slices.IndexFunc(all, func(c *nftables.Chain) bool {
			return c.Name == name && c.Table.Name == table.Name && c.Table.Family == table.Family
		})
		if i < 0 || t[name] != nil {
			continue
		}
		c, err := n.readChain(all[i])
		if err != nil {
			return nil, err
		}
		t[name] = c
		if all[i].Hooknum != nil && *all[i].Hooknum != *nftables.ChainHookForward {
			continue
		}
		for _, r := range c.rules {
			if !r.conditional {
				todo = append(todo, r.target)
			}
		}
	}
	return t, nil
}

// strangers names the chains of others that drop what is forwarded and not known
// to them, and that we do not write to: an accept elsewhere does not overrule
// them. FORWARD of iptables counts among them if that is asked for.
func (n *nft) strangers(iptables bool) (names []string, err error) {
	if err := n.limit(); err != nil {
		return nil, err
	}
	var all []*nftables.Chain
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet} {
		list, err := n.conn.ListChainsOfTableFamily(f)
		if err != nil {
			return nil, fmt.Errorf("read nftables chains: %w", err)
		}
		all = append(all, list...)
	}
	for _, c := range all {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		ipt := c.Table.Family != nftables.TableFamilyINet && c.Table.Name == "filter" && c.Name == "FORWARD"
		if ipt && !iptables {
			continue
		}
		t, err := n.follow(all, c.Table, []string{c.Name})
		if err != nil {
			return nil, err
		}
		if t.blocker(c.Name) >= 0 {
			names = append(names, fmt.Sprintf("nftables %s %s %s", familyWord(c.Table.Family), c.Table.Name, c.Name))
		}
	}
	return names, nil
}

func familyWord(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

func (n *nft) readChain(c *nftables.Chain) (*xchain, error) {
	if err := n.limit(); err != nil {
		return nil, err
	}
	rules, err := n.conn.GetRules(c.Table, c)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("read nftables chain %s of table %s: %w", c.Name, c.Table.Name, err)
	}
	x := &xchain{builtin: c.Hooknum != nil, drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
	for _, r := range rules {
		x.rules = append(x.rules, xruleOf(c.Table.Family, r))
	}
	return x, nil
}

// xruleOf judges a rule that iptables or anybody else wrote.
func xruleOf(f nftables.TableFamily, r *nftables.Rule) xrule {
	x := xrule{handle: r.Handle}
	var b strings.Builder
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
			x.packets = e.Packets
			continue
		case *expr.Verdict:
			x.target, x.leaves = verdictName(e), e.Kind == expr.VerdictGoto
		case *expr.Target:
			x.target = e.Name
		case *expr.Reject:
			x.target = "REJECT"
		case *expr.Match:
			x.conditional = x.conditional || e.Name != "comment"
		case *expr.Masq, *expr.Notrack, *expr.Log:
		default:
			x.conditional = true
		}
		raw, err := expr.Marshal(byte(f), e)
		b.WriteString(hex.EncodeToString(raw))
		if err != nil {
			fmt.Fprint(&b, err)
		}
	}
	x.text = b.String() + hex.EncodeToString(r.UserData)
	return x
}

func verdictName(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictAccept:
		return "ACCEPT"
	case expr.VerdictDrop:
		return "DROP"
	case expr.VerdictReturn:
		return "RETURN"
	case expr.VerdictJump, expr.VerdictGoto:
		return v.Chain
	}
	return ""
}

// forwardStep has the FORWARD of iptables' nft flavour call our accept where
// something there would drop, and nowhere else. The rules are made as iptables
// makes them, so that it lists them.
func (n *nft) forwardStep(r Rules, f family, t xtable) step {
	if !r.Forward || len(r.members(pods, f)) == 0 || t.blocker(forwardChain) < 0 {
		return n.removeStep(f, "filter", t)
	}
	table := &nftables.Table{Name: "filter", Family: f.nft()}
	ours := &nftables.Chain{Table: table, Name: prefix + "FORWARD"}
	rules := acceptRules(r, f, ours)
	want := &xchain{}
	for _, rule := range rules {
		want.rules = append(want.rules, xruleOf(f.nft(), rule))
	}
	w := xwant{calls: "FORWARD", chain: ours.Name}
	index, right := t.place(w)
	if right && t.content(ours.Name) == (xtable{ours.Name: want}).content(ours.Name) {
		return nil
	}
	words := fmt.Sprintf("accepted the pod networks in iptables FORWARD (%s, nft)", f.name)
	return n.change(words, func() error {
		n.conn.AddChain(ours)
		n.conn.FlushChain(ours)
		for _, rule := range rules {
			n.conn.AddRule(rule)
		}
		if !right {
			forward := &nftables.Chain{Table: table, Name: "FORWARD"}
			for _, i := range t.calls("FORWARD", ours.Name) {
				if err := n.conn.DelRule(&nftables.Rule{Table: table, Chain: forward, Handle: t["FORWARD"].rules[i].handle}); err != nil {
					return err
				}
			}
			n.call(forward, ours, t["FORWARD"], index)
		}
		return n.conn.Flush()
	})
}

// change is a step that is one transaction.
func (n *nft) change(words string, do func() error) step {
	return func() ([]string, error) {
		err := n.limit()
		if err == nil {
			err = do()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", words, err)
		}
		return []string{words}, nil
	}
}

// call inserts a rule that calls ours before the rule at index.
func (n *nft) call(chain, ours *nftables.Chain, have *xchain, index int) {
	r := &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: []expr.Any{
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: ours.Name},
	}}
	if index < len(have.rules) {
		r.Position = have.rules[index].handle
		n.conn.InsertRule(r)
		return
	}
	n.conn.AddRule(r)
}

// acceptRules are the rules of our chain in FORWARD.
func acceptRules(r Rules, f family, c *nftables.Chain) (rules []*nftables.Rule) {
	for _, rule := range r.acceptOnly().accept().rules {
		for _, s := range []struct {
			set set
			to  bool
		}{{rule.from, false}, {rule.to, true}} {
			for _, p := range r.members(s.set, f) {
				rules = append(rules, &nftables.Rule{
					Table: c.Table, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, rule.why),
					Exprs: append(within(f, s.to, p), act(rule.do)...),
				})
			}
		}
	}
	return rules
}

// removeStep removes our chains from a table of iptables' nft flavour, and what
// was made for them.
func (n *nft) removeStep(f family, name string, t xtable) step {
	if len(t.ours())+len(t.marks()) == 0 {
		return nil
	}
	table := &nftables.Table{Name: name, Family: f.nft()}
	words := fmt.Sprintf("removed our chains from iptables table %s (%s, nft)", name, f.name)
	return n.change(words, func() error {
		if t[made+"TABLE"] != nil {
			empty, err := n.emptyBut(table, t.ours())
			if err != nil {
				return err
			}
			if empty {
				n.conn.DelTable(table)
				return n.conn.Flush()
			}
		}
		if err := n.removeChains(table, t); err != nil {
			return err
		}
		return n.conn.Flush()
	})
}

// removeChains asks for the removal of our chains, of the calls to them, and of
// builtin chains that were made for us and that nobody else uses.
func (n *nft) removeChains(table *nftables.Table, t xtable) error {
	chain := func(name string) *nftables.Chain { return &nftables.Chain{Table: table, Name: name} }
	gone := t.ours()
	for name, c := range t {
		for _, r := range c.rules {
			if slices.Contains(gone, r.target) && !slices.Contains(gone, name) {
				if err := n.conn.DelRule(&nftables.Rule{Table: table, Chain: chain(name), Handle: r.handle}); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range gone {
		n.conn.FlushChain(chain(name))
	}
	for _, name := range append(gone, t.marks()...) {
		n.conn.DelChain(chain(name))
	}
	for _, name := range builtins {
		c, ok := t[name]
		if ok && (t[made+name] != nil || t[made+"TABLE"] != nil) && c.builtin && !c.drop && c.only(gone) {
			n.conn.DelChain(chain(name))
		}
	}
	return nil
}

// emptyBut reports whether nobody has a use for the table but our chains.
func (n *nft) emptyBut(table *nftables.Table, ours []string) (bool, error) {
	all, err := n.conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Table.Name != table.Name || strings.HasPrefix(c.Name, prefix) {
			continue
		}
		x, err := n.readChain(c)
		if err != nil || !x.builtin || x.drop || !x.only(ours) {
			return false, err
		}
	}
	return true, nil
}
