package pod

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A Port is the node's end of a pod's link.
type Port struct {
	Container string // empty if the link bears our group but not our alias: an Attach was killed half-way
	IfName    string // in the pod
	Network   string
	Pod       string // namespace/name; may be cut short or empty

	HostName  string
	HostIndex int
	Bridge    int // index of the link's master, 0 if it has none
	Up        bool
}

// List returns the links of all pods on the node, in the order of their indices.
func List() ([]Port, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	links, err := veths(c)
	if err != nil {
		return nil, fmt.Errorf("list pods' links: %w", err)
	}
	ports := make([]Port, 0, len(links))
	for _, l := range links {
		ports = append(ports, port(l))
	}
	return ports, nil
}

// port reads a link's alias. It is believed only if the link's name follows
// from it: anybody may write any alias.
func port(l link) Port {
	p, ok := parseAlias(l.Alias)
	if !ok || HostName(p.Container, p.IfName) != l.Name {
		p = Port{}
	}
	p.HostName, p.HostIndex, p.Bridge, p.Up = l.Name, l.Index, l.Master, l.Up
	return p
}

// Attached says whether there is a link for that attachment.
func Attached(container, ifname string) (bool, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	_, found, err := findLink(c, HostName(container, ifname))
	return found, err
}

// Detach removes the pair of which ifname is the pod's end, wherever the pod's
// namespace is or was. One that is not there is a success, and found is false.
func Detach(container, ifname string) (found bool, err error) {
	return Remove(HostName(container, ifname))
}

// Remove is Detach by the name of the node's end. A link of that name without
// our group is somebody else's, and an error.
func Remove(hostName string) (found bool, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	l, found, err := findLink(c, hostName)
	switch {
	case err != nil:
		return false, fmt.Errorf("look for link %s: %w", hostName, err)
	case !found:
		return false, nil
	case l.Kind != "veth" || l.Group != Group:
		return false, fmt.Errorf("link %s is of kind %q and group %#x, want veth and %#x: not ours to remove",
			hostName, l.Kind, l.Group, Group)
	}
	err = run(c, []step{{
		what: "remove link " + hostName,
		req:  newLink(unix.RTM_DELLINK, 0, l.Index),
		fine: []error{unix.ENODEV},
	}})
	return err == nil, err
}
