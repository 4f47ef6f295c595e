package pod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// NetnsFolders are where container runtimes and `ip netns` keep network namespaces.
var NetnsFolders = []string{"/run/netns", "/var/run/netns", "/var/run/docker/netns"}

// ErrMTULeft says that a pod's link kept its MTU, at both ends, for the pod's
// end could not be reached. The pod's larger packets are then answered with the
// ICMP error that names the right size, where the node routes them.
var ErrMTULeft = errors.New("its MTU stays")

// SetMTU gives the links of all pods that MTU: ours, and the veth ports of the
// bridge that another plugin made. The bridge itself is for Bridge.Ensure.
//
// A pod's end is inside its namespace, which is looked for in folders, and entered
// (CAP_SYS_ADMIN). Where that cannot be, both ends keep what they have: a node's
// end that is smaller than the pod's drops without a word what the pod sends.
//
// It attempts all, and returns what it changed; the error joins the rest.
func SetMTU(mtu int, bridge string, folders ...string) (changed []string, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	b, found, err := findLink(c, bridge)
	if err != nil {
		return nil, fmt.Errorf("look for bridge %s: %w", bridge, err)
	}
	links, err := vethsOf(c, 0, func(l link) bool { return l.ours() || found && l.Master == b.Index })
	if err != nil {
		return nil, fmt.Errorf("list pods' links: %w", err)
	}
	var errs []error
	spaces := namespaces{c: c, folders: folders}
	for _, l := range links {
		done, err := spaces.setMTU(l, mtu)
		if err != nil {
			errs = append(errs, fmt.Errorf("link %s%s: %w", l.Name, ofPod(l), err))
		}
		if done {
			changed = append(changed, fmt.Sprintf("set MTU %d of %s%s", mtu, l.Name, ofPod(l)))
		}
	}
	return changed, errors.Join(errs...)
}

// ofPod names the pod that a link leads to, if the link does.
func ofPod(l link) string {
	if p := port(l); p.Pod != "" {
		return " of pod " + p.Pod
	}
	return ""
}

// namespaces finds network namespaces by the ids that ours has for them.
type namespaces struct {
	c       *rtnl.Conn
	folders []string
	paths   map[int32]string // nil: not read yet
}

// setMTU sets both ends of a pair; done is false if they are right already.
func (n *namespaces) setMTU(l link, mtu int) (done bool, err error) {
	peer, err := n.peer(l)
	switch {
	case errors.Is(err, unix.ENODEV):
		return false, nil // the pod has just gone
	case err != nil:
		return false, fmt.Errorf("read the pod's end: %w: %w", err, ErrMTULeft)
	case l.MTU == mtu && peer.MTU == mtu:
		return false, nil
	}
	inside, err := n.enter(l)
	if err != nil {
		return false, fmt.Errorf("%w: %w", err, ErrMTULeft)
	}
	defer func() { _ = inside.Close() }()
	ours := func() error {
		return run(n.c, []step{{what: "set MTU", req: setMTU(l.Index, mtu), fine: []error{unix.ENODEV}}})
	}
	theirs := func() error {
		return run(inside, []step{{what: "set MTU in the pod", req: setMTU(l.Peer, mtu), fine: []error{unix.ENODEV}}})
	}
	// The end that receives is never the smaller one.
	first, second := ours, theirs
	if mtu < l.MTU {
		first, second = theirs, ours
	}
	if err := first(); err != nil {
		return false, err
	}
	return true, second()
}

func setMTU(index, mtu int) *nl.NetlinkRequest {
	req := newLink(unix.RTM_NEWLINK, 0, index)
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	return req
}

// peer reads the other end of a pair without entering its namespace.
func (n *namespaces) peer(l link) (p link, err error) {
	req := newLink(unix.RTM_GETLINK, 0, l.Peer)
	if l.PeerNetns != noNetns {
		req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.PeerNetns))))
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMaskSkipStats)))
	err = n.c.Get(req, func(body []byte) { p = parseLink(body) })
	return p, err
}

// enter opens a socket in the namespace that a pair's other end is in.
func (n *namespaces) enter(l link) (*rtnl.Conn, error) {
	if l.PeerNetns == noNetns {
		return rtnl.Dial()
	}
	if n.paths == nil {
		n.read()
	}
	path, ok := n.paths[l.PeerNetns]
	if !ok {
		return nil, fmt.Errorf("network namespace %d is not in %v", l.PeerNetns, n.folders)
	}
	ns, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(ns) }()
	return rtnl.DialIn(ns)
}

// read asks for the id of each namespace in the folders. What is no namespace, and a
// folder that is not there, has none.
func (n *namespaces) read() {
	n.paths = map[int32]string{}
	for _, dir := range n.folders {
		names, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, name := range names {
			path := filepath.Join(dir, name.Name())
			if id, ok := n.id(path); ok {
				n.paths[id] = path
			}
		}
	}
}

// id asks for the number by which our namespace knows another.
func (n *namespaces) id(path string) (id int32, ok bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer func() { _ = unix.Close(fd) }()
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
	req.AddRawData(slices.Concat([]byte{unix.AF_UNSPEC, 0, 0, 0}, nl.NewRtAttr(netnsaFD, nl.Uint32Attr(uint32(fd))).Serialize()))
	id = noNetns
	err = n.c.Get(req, func(body []byte) {
		if len(body) < 4 {
			return
		}
		rtnl.EachAttr(body[4:], func(kind uint16, v []byte) {
			if kind == netnsaNSID && len(v) >= 4 {
				id = int32(binary.NativeEndian.Uint32(v))
			}
		})
	})
	return id, err == nil && id != noNetns
}

// netnsaNSID and netnsaFD are NETNSA_NSID and NETNSA_FD (linux/net_namespace.h).
const (
	netnsaNSID = 1
	netnsaFD   = 3
)
