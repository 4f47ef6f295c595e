package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// sharedIfName is the interface name in the Key of a slot with several owners.
const sharedIfName = "+"

// Owners returns whose slot it is: the key itself, or, of a slot that several
// imported pods share, those. Such a slot has a key of its own, which no runtime
// can name: container ids have neither slash nor plus. So no release by one owner
// frees it.
func (k Key) Owners() []Key {
	if k.IfName != sharedIfName {
		return []Key{k}
	}
	var list []Key
	for text := range strings.SplitSeq(k.Container, "+") {
		container, ifName, _ := strings.Cut(text, "/")
		list = append(list, Key{container, ifName})
	}
	return list
}

// OwnedBy says whether the slot is owner's, alone or with others.
func (k Key) OwnedBy(owner Key) bool { return slices.Contains(k.Owners(), owner) }

// with returns the key of a slot that is k's and another's.
func (k Key) with(other Key) Key {
	var texts []string
	for _, o := range append(k.Owners(), other) {
		texts = append(texts, o.Container+"/"+o.IfName)
	}
	slices.Sort(texts)
	return Key{strings.Join(texts, "+"), sharedIfName}
}

// checkImports checks requests by themselves, and returns the slots that they
// want.
func (l layout) checkImports(list []Request) (wanted []int, errs []error) {
	wanted = make([]int, len(list))
	holders := map[netip.Addr]Key{}
	for i, req := range list {
		if len(req.Addrs) == 0 {
			errs = append(errs, &RequestError{"address", "", fmt.Sprintf("none of %s, want those that it has", req.Key)})
			continue
		}
		if strings.ContainsAny(req.Key.Container, "/+") || req.Key.IfName == sharedIfName {
			errs = append(errs, &RequestError{"container id", req.Key.Container, "want one without slash and plus"})
			continue
		}
		slot, err := l.wanted(req)
		if err != nil {
			errs = append(errs, err)
		}
		wanted[i] = slot
		for _, a := range req.Addrs {
			if holder, ok := holders[a]; ok && holder != req.Key {
				errs = append(errs, &RequestError{"address", a.String(), fmt.Sprintf("of %s: its slot was given to %s", req.Key, holder)})
			}
			holders[a] = req.Key
		}
	}
	return wanted, errs
}
