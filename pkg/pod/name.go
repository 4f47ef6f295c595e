package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Group and GuardedGroup are the link groups (IFLA_GROUP) of the node's ends of all
// pairs: our mark, by which links are found. `ip link show group 0x7643` lists
// them. What comes from a link of GuardedGroup is filtered, whatever its name.
const (
	Group        = 0x7643
	GuardedGroup = 0x7644
)

// MaxNetwork is how long the name of a CNI network may be, in bytes.
const MaxNetwork = 47

const (
	hostPrefix = "veth" // of HostName, which hostDigits of a hash follow
	hostDigits = 11

	// aliasMark begins the alias (IFLA_IFALIAS) of every link of ours.
	aliasMark = "vxlan-cni"

	// noHairpinMark begins it where hairpin mode is off: a port that loses its
	// bridge loses the mode too. One byte more is all that an alias has room for.
	noHairpinMark = aliasMark + "-"

	// maxAlias is the kernel's IFALIASZ less the final zero (linux/if.h).
	maxAlias = 255

	// maxContainer bounds a container id, in bytes. Together with MaxNetwork it
	// lets both stand whole in an alias, with an interface name of 15 bytes.
	maxContainer = 180
)

// HostName is the name of the node's end of the pair that is ifname in the pod:
// "veth" and 44 bits of a hash, 15 bytes in all, which is the longest that
// the kernel takes. Half of a million attachments would have to exist on one
// node before two names meet with a chance of 1 %.
func HostName(container, ifname string) string {
	sum := sha256.Sum256([]byte(container + "/" + ifname))
	return hostPrefix + hex.EncodeToString(sum[:6])[:hostDigits]
}

// MACFor derives an interface's MAC from its addresses: 0a:58 and the IPv4
// address, or without one the last four bytes of the IPv6 address. An address
// that is used again so has the same MAC again, and no ARP table is stale.
func MACFor(addrs []netip.Prefix) net.HardwareAddr {
	var low [4]byte
	for _, a := range addrs {
		if a.Addr().Is4() {
			low = a.Addr().As4()
			break
		}
		wide := a.Addr().As16()
		copy(low[:], wide[12:])
	}
	return net.HardwareAddr{0x0a, 0x58, low[0], low[1], low[2], low[3]}
}

// alias is what a link's alias says of its owner:
//
//	vxlan-cni <container>/<ifname> <network> <namespace>/<pod>
//
// or vxlan-cni- for one without hairpin mode.
// Container, interface and network stand in full; the pod's name, which is
// for people, is cut where the kernel's limit is reached.
func (a Attachment) alias() string {
	mark := aliasMark
	if !a.Hairpin {
		mark = noHairpinMark
	}
	text := fmt.Sprintf("%s %s/%s %s", mark, a.Container, a.IfName, a.Network)
	if a.Pod == "" || len(text)+1 >= maxAlias {
		return text
	}
	text += " " + a.Pod
	if len(text) > maxAlias {
		text = text[:maxAlias]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	return text
}

// wantsHairpin says whether a link with that alias is to have hairpin mode.
func wantsHairpin(alias string) bool { return !strings.HasPrefix(alias, noHairpinMark+" ") }

// parseAlias reads what alias wrote. ok is false for any other text.
func parseAlias(text string) (p Port, ok bool) {
	words := strings.Split(text, " ")
	if len(words) < 3 || len(words) > 4 || words[0] != aliasMark && words[0] != noHairpinMark {
		return Port{}, false
	}
	container, ifname, ok := strings.Cut(words[1], "/")
	if !ok || container == "" || ifname == "" || strings.Contains(ifname, "/") || words[2] == "" {
		return Port{}, false
	}
	p = Port{Container: container, IfName: ifname, Network: words[2]}
	if len(words) == 4 {
		p.Pod = words[3]
	}
	return p, true
}
