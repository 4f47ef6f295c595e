package node

import (
	"fmt"
	"slices"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// warn looks at what makes pods fail although every table is right, and tells what is
// new of it.
func (l *loop) warn() {
	var all []string
	for _, found := range []struct {
		reason string // empty: told otherwise, or by the nodes that it is about
		texts  []string
	}{
		{reportSettings, l.checkSettings()}, {"", l.otherMTUs()}, {"", l.strangers()},
		{reportUnfit, l.unfit}, {reportBlocked, l.blockers()},
	} {
		for _, w := range found.texts {
			if !slices.Contains(l.warnings, w) {
				l.log.Warn(w)
				l.journal.event("warning", w)
				if found.reason != "" {
					l.report(true, found.reason, w)
				}
			}
		}
		all = append(all, found.texts...)
	}
	l.warnings = all
}

// blockers names the rules of others that drop pods' packets.
func (l *loop) blockers() (all []string) {
	for _, b := range l.firewall.Blocked() {
		all = append(all, "rules that are not ours drop what pods send through this node: "+b)
	}
	return all
}

// otherMTUs names the peers whose pods send packets of another size: what is too
// large for the smaller end depends on path MTU discovery. It is worth a report if
// it is this node that differs, from most of them.
func (l *loop) otherMTUs() []string {
	others := slices.DeleteFunc(slices.Clone(l.leases), func(p subnet.Lease) bool { return p.MTU == 0 || p.MTU == l.mtu })
	if len(others) == 0 {
		l.differs = false
		return nil
	}
	before := l.differs
	if l.differs = 2*len(others) > len(l.leases); l.differs && !before {
		l.report(true, reportOtherMTU, fmt.Sprintf("MTU of pods is %d here and another one on most nodes: large packets to them depend on path MTU discovery", l.mtu))
	}
	who := fmt.Sprintf("%d on %s", others[0].MTU, nodeName(others[0]))
	if n := len(others) - 1; n > 0 {
		who += fmt.Sprintf(", and another one on %d more nodes", n)
	}
	return []string{fmt.Sprintf("MTU of pods is %d here and %s: large packets between them depend on path MTU discovery", l.mtu, who)}
}
