package firewall

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// What the legacy flavour of iptables keeps in the kernel is one block of bytes
// a table (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h,
// linux/netfilter/x_tables.h; the sizes are those of 64 bits).

// legacyHooks are the builtin chains in the order of the hooks' numbers.
var legacyHooks = [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

const (
	xtNameSize      = 32 // XT_TABLE_MAXNAMELEN
	xtInfoSize      = xtNameSize + 4 + 4*5 + 4*5 + 4 + 4
	xtEntriesOffset = 40 // where entries begin in struct ipt_get_entries
	xtHeadSize      = 32 // of a match or target: u16 size, name, revision
	xtStandardSize  = 40 // of a target with a verdict
	xtNames         = 29 // bytes of a match's or target's name

	verdictDrop   = -1 // -NF_DROP - 1
	verdictAccept = -2 // -NF_ACCEPT - 1
	verdictReturn = -5 // XT_RETURN
)

// An xtLayout is where the fields of struct ipt_entry and ip6t_entry are.
type xtLayout struct {
	match  int  // size of the addresses, interfaces and flags to compare with
	flags  int  // where the flags are
	leaves byte // the one of -g: IPT_F_GOTO, IP6T_F_GOTO
	target int  // where the offset of the target is; behind it that of the next entry
	size   int
}

var (
	layout4 = xtLayout{match: 84, flags: 82, leaves: 0x02, target: 88, size: 112}
	layout6 = xtLayout{match: 136, flags: 131, leaves: 0x04, target: 140, size: 168}
)

func (f family) layout() xtLayout {
	if f.six {
		return layout6
	}
	return layout4
}

// An xtInfo is struct ipt_getinfo.
type xtInfo struct {
	valid     uint32
	hooks     [5]uint32
	underflow [5]uint32
	size      uint32
}

var errTorn = errors.New("iptables table cut short")

func parseInfo(b []byte) (i xtInfo, err error) {
	if len(b) < xtInfoSize {
		return i, errTorn
	}
	word := func(n int) uint32 { return binary.NativeEndian.Uint32(b[xtNameSize+4*n:]) }
	i.valid, i.size = word(0), word(12)
	for h := range 5 {
		i.hooks[h], i.underflow[h] = word(1+h), word(6+h)
	}
	return i, nil
}

// A legacyEntry is one rule, or the head of a chain.
type legacyEntry struct {
	offset  int
	rule    xrule
	head    string // name of the chain that begins here
	verdict int32  // of a standard target
	plain   bool   // it has a standard target
}

// parseLegacy reads the entries of a table.
func parseLegacy(info xtInfo, b []byte, l xtLayout) (xtable, error) {
	var entries []legacyEntry
	for offset := 0; offset < len(b); {
		e, next, err := parseEntry(b[offset:], l)
		if err != nil {
			return nil, fmt.Errorf("entry at %d: %w", offset, err)
		}
		e.offset = offset
		entries = append(entries, e)
		offset += next
	}
	names := map[int]string{} // offset of a chain's first rule → its name
	for i, e := range entries {
		if e.head != "" && i+1 < len(entries) {
			names[entries[i+1].offset] = e.head
		}
	}
	t := xtable{}
	var c *xchain
	for _, e := range entries {
		for h, name := range legacyHooks {
			if info.valid&(1<<h) != 0 && int(info.hooks[h]) == e.offset {
				c = &xchain{builtin: true}
				t[name] = c
			}
		}
		if e.head != "" {
			c = &xchain{}
			t[e.head] = c
			continue
		}
		if c == nil {
			return nil, fmt.Errorf("entry at %d: it is in no chain", e.offset)
		}
		for h := range legacyHooks {
			if c.builtin && info.valid&(1<<h) != 0 && int(info.underflow[h]) == e.offset {
				c.drop = e.verdict == verdictDrop
			}
		}
		c.rules = append(c.rules, e.resolve(names))
	}
	// The last rule of a chain is its policy, or its end.
	for name, c := range t {
		if len(c.rules) > 0 {
			c.rules = c.rules[:len(c.rules)-1]
		} else if name == "ERROR" {
			delete(t, name) // the end of the table
		}
	}
	return t, nil
}

// resolve names the target of a rule.
func (e legacyEntry) resolve(names map[int]string) xrule {
	r := e.rule
	if !e.plain {
		return r
	}
	switch {
	case e.verdict == verdictDrop:
		r.target = "DROP"
	case e.verdict == verdictAccept:
		r.target = "ACCEPT"
	case e.verdict == verdictReturn:
		r.target = "RETURN"
	case e.verdict >= 0:
		r.target = names[int(e.verdict)] // "" for a rule that only counts
	}
	return r
}

// parseEntry reads one entry and returns the distance to the next one.
func parseEntry(b []byte, l xtLayout) (e legacyEntry, next int, err error) {
	if len(b) < l.size {
		return e, 0, errTorn
	}
	target := int(binary.NativeEndian.Uint16(b[l.target:]))
	next = int(binary.NativeEndian.Uint16(b[l.target+2:]))
	if target < l.size || next < target+xtHeadSize || next > len(b) {
		return e, 0, errTorn
	}
	e.rule.leaves = b[l.flags]&l.leaves != 0
	asked := bytes.Clone(b[:l.match])
	asked[l.flags] &^= l.leaves
	e.rule.conditional = len(bytes.Trim(asked, "\x00")) > 0
	for m := l.size; m < target; {
		if m+xtHeadSize > target {
			return e, 0, errTorn
		}
		size := int(binary.NativeEndian.Uint16(b[m:]))
		if size < xtHeadSize || m+size > target {
			return e, 0, errTorn
		}
		e.rule.conditional = e.rule.conditional || text(b[m+2:m+2+xtNames]) != "comment"
		m += size
	}
	e.rule.packets = binary.NativeEndian.Uint64(b[l.size-16:])
	body := b[target:next]
	name := text(body[2 : 2+xtNames])
	sum := bytes.Clone(b[l.size:target])
	switch {
	case name == "" && len(body) >= xtStandardSize:
		e.plain = true
		e.verdict = int32(binary.NativeEndian.Uint32(body[xtHeadSize:]))
	case name == "ERROR":
		e.head = text(body[xtHeadSize:])
	default:
		e.rule.target = name
		sum = append(sum, body...)
	}
	// Not what it has counted, and no offsets, which move with other chains.
	e.rule.text = hex.EncodeToString(b[:l.match]) + hex.EncodeToString(sum)
	return e, next, nil
}

// text is a string that ends at the first zero.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
