package pod

import (
	"fmt"
	"strings"

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
	Guarded   bool // what it sends is filtered
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

// port reads the alias of a link of our group. It is believed also where the name
// does not follow from it: people rename links, and the pod behind one lives on.
func port(l link) Port {
	p, _ := parseAlias(l.Alias)
	p.HostName, p.HostIndex, p.Bridge, p.Up, p.Guarded = l.Name, l.Index, l.Master, l.Up, l.Group == GuardedGroup
	return p
}

// Attached says whether there is a link for that attachment.
func Attached(container, ifname string) (bool, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	_, found, err := findPort(c, container, ifname)
	return found, err
}

// findPort reads the link of an attachment: that of its name, or else one of our
// group that was renamed and bears its alias.
func findPort(c *rtnl.Conn, container, ifname string) (l link, found bool, err error) {
	l, found, err = findLink(c, HostName(container, ifname))
	if found || err != nil {
		return l, found, err
	}
	links, err := veths(c)
	for _, l := range links {
		if p := port(l); p.Container == container && p.IfName == ifname {
			return l, true, err
		}
	}
	return link{}, false, err
}

// Tells says whether the link tells whose it is: by its alias, or where an Attach
// was killed half-way by a name that HostName may have made.
func (p Port) Tells() bool {
	hash, ok := strings.CutPrefix(p.HostName, hostPrefix)
	return p.Container != "" || ok && len(hash) == hostDigits && strings.Trim(hash, "0123456789abcdef") == ""
}

// Detach removes the pair of which ifname is the pod's end, wherever the pod's
// namespace is or was, and also if the node's end was renamed, and then what the
// filter has of it. One that is not there is a success, and found is false.
func Detach(container, ifname string) (found bool, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	l, found, err := findPort(c, container, ifname)
	if err != nil {
		return false, fmt.Errorf("look for link %s: %w", HostName(container, ifname), err)
	}
	return remove(c, l, found, HostName(container, ifname))
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
	if err != nil {
		return false, fmt.Errorf("look for link %s: %w", hostName, err)
	}
	return remove(c, l, found, hostName)
}

// remove removes a link that was found, and what the filter has of it under either
// name. The latter goes first: the port is muted then, not opened, and what the
// kernel does behind that change (10 to 20 ms until a processor's readers are done)
// it does while it removes the link.
func remove(c *rtnl.Conn, l link, found bool, name string) (removed bool, err error) {
	names := []string{name}
	if found && l.Name != name {
		names = append(names, l.Name)
	}
	if found && (l.Kind != "veth" || !l.ours()) {
		return false, fmt.Errorf("link %s is of kind %q and group %#x, want veth and %#x or %#x: not ours to remove",
			l.Name, l.Kind, l.Group, Group, GuardedGroup)
	}
	f, err := dialFilter()
	if err != nil {
		return false, err
	}
	defer f.close()
	if err := f.unguard(names); err != nil || !found {
		return false, err
	}
	err = run(c, []step{{
		what: "remove link " + l.Name,
		req:  newLink(unix.RTM_DELLINK, 0, l.Index),
		fine: []error{unix.ENODEV},
	}})
	return err == nil, err
}
