package pod

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// An element is a key of one of the sets.
type element struct {
	set string
	key string // its bytes
}

// port is the name that the key begins with.
func (e element) port() string {
	return text([]byte(e.key[:min(len(e.key), sizeIfName)]))
}

// portElements is all that lets a port send by its MAC and addresses, and the
// link-local one that the kernel makes of the MAC.
func portElements(port string, mac net.HardwareAddr, addrs []netip.Addr) []element {
	key := make([]byte, sizeIfName+sizeMAC)
	copy(key, port)
	copy(key[sizeIfName:], mac)
	list := []element{{setMACs, string(key)}, {setIPv6, string(key) + string(linkLocal(mac).Addr().AsSlice())}}
	for _, a := range addrs {
		s := setIPv6
		if a.Is4() {
			s = setIPv4
		}
		list = append(list, element{s, string(key) + string(a.AsSlice())})
	}
	return list
}

// elementsPerMessage bounds a message: the length of an attribute has 16 bits.
const elementsPerMessage = 512

// elementRequests adds elements (NFT_MSG_NEWSETELEM) or removes them.
func elementRequests(kind int, elements []element) (reqs []*nl.NetlinkRequest) {
	flags := 0
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	for _, s := range filterSets {
		var keys []attr
		flush := func() {
			if len(keys) > 0 {
				reqs = append(reqs, nftRequest(kind, flags, textAttr(unix.NFTA_SET_ELEM_LIST_TABLE, FilterTable),
					textAttr(unix.NFTA_SET_ELEM_LIST_SET, s.name), nestAttr(unix.NFTA_SET_ELEM_LIST_ELEMENTS, keys...)))
			}
			keys = nil
		}
		for _, e := range elements {
			if e.set != s.name {
				continue
			}
			keys = append(keys, nestAttr(unix.NFTA_LIST_ELEM, dataAttr(unix.NFTA_SET_ELEM_KEY, []byte(e.key))))
			if len(keys) == elementsPerMessage {
				flush()
			}
		}
		flush()
	}
	return reqs
}

// parseElements reads the body of an NFT_MSG_NEWSETELEM.
func parseElements(attrs []byte, fn func(key []byte)) {
	eachNested(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) {
		eachNested(list, unix.NFTA_LIST_ELEM, func(elem []byte) {
			eachNested(elem, unix.NFTA_SET_ELEM_KEY, func(key []byte) {
				eachNested(key, unix.NFTA_DATA_VALUE, fn)
			})
		})
	})
}

// eachNested calls fn with each attribute of that kind.
func eachNested(attrs []byte, kind uint16, fn func(value []byte)) {
	rtnl.EachAttr(attrs, func(k uint16, v []byte) {
		if k == kind {
			fn(v)
		}
	})
}
