package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

const (
	// netlinkTimeout bounds the wait for an answer of the kernel.
	netlinkTimeout = 10 * time.Second

	// sendBytes is the send buffer: a transaction is one message to the kernel,
	// and 10,000 peers are 360 kB.
	sendBytes = 4 << 20

	// listed bounds the elements in one message: the kernel's length field of
	// their list has 16 bits, and an IPv6 address takes 28 bytes.
	listed = 1024

	// attempts bounds the readings of a rule set that others change meanwhile,
	// and the rounds until the kernel holds what it should.
	attempts = 4
)

// A nft is one netlink socket to nftables.
type nft struct {
	conn *nftables.Conn
	sock *netlink.Conn
}

// dialNFT opens a socket in the calling thread's network namespace.
func dialNFT() (*nft, error) {
	n := &nft{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		n.sock = c
		return c.SetWriteBuffer(sendBytes)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	n.conn = conn
	return n, nil
}

func (n *nft) close() error { return n.conn.CloseLasting() }

// limit starts the clock for what follows.
func (n *nft) limit() error { return n.sock.SetDeadline(time.Now().Add(netlinkTimeout)) }

// generation is the number of the last change of anything in nftables.
func (n *nft) generation() (uint32, error) {
	if err := n.limit(); err != nil {
		return 0, err
	}
	answers, err := n.sock.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, sizeofGenmsg),
	})
	if err == nil && len(answers) != 1 {
		err = fmt.Errorf("%d answers, want 1", len(answers))
	}
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	g, ok := parseGeneration(answers[0].Data)
	if !ok {
		return 0, errors.New("read nftables generation: the answer names none")
	}
	return g, nil
}

// sizeofGenmsg is the size of a struct nfgenmsg, which every message of
// nftables begins with.
const sizeofGenmsg = 4

func parseGeneration(data []byte) (g uint32, ok bool) {
	if len(data) < sizeofGenmsg {
		return 0, false
	}
	rtnl.EachAttr(data[sizeofGenmsg:], func(kind uint16, v []byte) {
		if kind == unix.NFTA_GEN_ID && len(v) == 4 {
			g, ok = binary.BigEndian.Uint32(v), true
		}
	})
	return g, ok
}

// A step is something that the kernel needs to hold what it should. It returns
// what it changed, in words.
type step func() ([]string, error)

// tableStep makes our table what it should be; nil: it should not be there. The
// step is nil if there is nothing to do.
func (n *nft) tableStep(want *nftTable) (step, error) {
	d, err := n.compare(want)
	if err != nil || d.none() {
		return nil, err
	}
	return func() ([]string, error) { return d.words(), n.apply(want, d) }, nil
}

// A difference is what the kernel's table has wrong.
type difference struct {
	remove  bool   // it should not be there
	rebuild string // why it has to be made anew
	sets    []setDifference
}

type setDifference struct {
	set         *nftables.Set
	add, remove []netip.Addr
}

func (d difference) none() bool { return !d.remove && d.rebuild == "" && len(d.sets) == 0 }

func (d difference) words() (words []string) {
	switch {
	case d.remove:
		return []string{"removed nftables table inet " + Table}
	case d.rebuild != "":
		return []string{"made nftables table inet " + Table + ": " + d.rebuild}
	}
	for _, s := range d.sets {
		words = append(words, fmt.Sprintf("nftables set %s: %d added, %d removed", s.set.Name, len(s.add), len(s.remove)))
	}
	return words
}

// compare reads our table. It is read again where somebody changed something
// meanwhile, for what is read piece by piece may not fit together.
func (n *nft) compare(want *nftTable) (d difference, err error) {
	for range attempts {
		before, err := n.generation()
		if err != nil {
			return d, err
		}
		d, err = n.compareOnce(want)
		if err == nil && d.none() {
			return d, nil
		}
		after, gerr := n.generation()
		if gerr != nil || before == after {
			return d, errors.Join(err, gerr)
		}
	}
	return d, nil
}

func (n *nft) compareOnce(want *nftTable) (d difference, err error) {
	if err := n.limit(); err != nil {
		return d, err
	}
	have, err := n.conn.ListTableOfFamily(Table, nftables.TableFamilyINet)
	switch {
	case errors.Is(err, unix.ENOENT):
		if want != nil {
			d.rebuild = "it was not there"
		}
		return d, nil
	case err != nil:
		return d, fmt.Errorf("read nftables table %s: %w", Table, err)
	case want == nil:
		d.remove = true
		return d, nil
	case have.Flags != 0:
		d.rebuild = "it had flags (dormant?)"
		return d, nil
	}
	if d.rebuild, err = n.compareChains(want); err != nil || d.rebuild != "" {
		return d, err
	}
	return n.compareSets(want)
}

// compareChains says what is wrong with the chains, "" if nothing.
func (n *nft) compareChains(want *nftTable) (wrong string, err error) {
	all, err := n.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("read nftables chains: %w", err)
	}
	have := slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table == nil || c.Table.Name != Table })
	if len(have) != len(want.chains) {
		return fmt.Sprintf("it had %d chains, want %d", len(have), len(want.chains)), nil
	}
	for _, c := range want.chains {
		i := slices.IndexFunc(have, func(h *nftables.Chain) bool { return h.Name == c.Name })
		if i < 0 || !sameChain(have[i], c.Chain) {
			return "chain " + c.Name + " differed", nil
		}
		rules, err := n.conn.GetRules(want.table, c.Chain)
		if err != nil {
			return "", fmt.Errorf("read nftables chain %s: %w", c.Name, err)
		}
		if !slices.EqualFunc(rules, c.rules, sameRule) {
			return "rules of chain " + c.Name + " differed", nil
		}
	}
	return "", nil
}

func (n *nft) compareSets(want *nftTable) (d difference, err error) {
	have, err := n.conn.GetSets(want.table)
	if err != nil {
		return d, fmt.Errorf("read nftables sets: %w", err)
	}
	if len(have) != len(want.sets) {
		d.rebuild = fmt.Sprintf("it had %d sets, want %d", len(have), len(want.sets))
		return d, nil
	}
	for _, s := range want.sets {
		i := slices.IndexFunc(have, func(h *nftables.Set) bool { return h.Name == s.Name })
		if i < 0 || !sameSet(have[i], s.Set) {
			return difference{rebuild: "set " + s.Name + " differed"}, nil
		}
		elements, err := n.conn.GetSetElements(s.Set)
		if err != nil {
			return d, fmt.Errorf("read nftables set %s: %w", s.Name, err)
		}
		add, remove := s.diff(elements)
		switch {
		case len(add)+len(remove) == 0:
		case s.Interval:
			// The ends of ranges make no sense one by one. It is rare, too.
			return difference{rebuild: "set " + s.Name + " differed"}, nil
		default:
			d.sets = append(d.sets, setDifference{s.Set, add, remove})
		}
	}
	return d, nil
}

// apply carries a difference out, in one transaction.
func (n *nft) apply(want *nftTable, d difference) error {
	if err := n.limit(); err != nil {
		return err
	}
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	switch {
	case d.remove:
		n.conn.DelTable(table)
	case d.rebuild != "":
		// To delete what is absent would fail; to add what is there does not.
		n.conn.AddTable(table)
		n.conn.DelTable(table)
		if err := n.add(want); err != nil {
			return err
		}
	}
	for _, s := range d.sets {
		if err := n.update(s); err != nil {
			return err
		}
	}
	if err := n.conn.Flush(); err != nil && (!d.remove || !errors.Is(err, unix.ENOENT)) {
		return fmt.Errorf("change nftables table %s: %w", Table, err)
	}
	return nil
}

func (n *nft) add(t *nftTable) error {
	n.conn.AddTable(t.table)
	for _, s := range t.sets {
		s.ID = 0 // of an earlier transaction
		if err := n.conn.AddSet(s.Set, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
		for part := range slices.Chunk(s.elements(), listed) {
			if err := n.conn.SetAddElements(s.Set, part); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	for _, c := range t.chains {
		n.conn.AddChain(c.Chain)
	}
	for _, c := range t.chains {
		for _, r := range c.rules {
			n.conn.AddRule(r)
		}
	}
	return nil
}

func (n *nft) update(d setDifference) error {
	for part := range slices.Chunk(singles(d.remove), listed) {
		if err := n.conn.SetDeleteElements(d.set, part); err != nil {
			return fmt.Errorf("set %s: %w", d.set.Name, err)
		}
	}
	for part := range slices.Chunk(singles(d.add), listed) {
		if err := n.conn.SetAddElements(d.set, part); err != nil {
			return fmt.Errorf("set %s: %w", d.set.Name, err)
		}
	}
	return nil
}

func singles(list []netip.Addr) (elements []nftables.SetElement) {
	for _, a := range list {
		elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
	}
	return elements
}
