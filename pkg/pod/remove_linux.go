package pod

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// RemoveAll takes away what is ours on this node: the pods' links, by their group, the
// source filter, and the bridges that we made, by their alias. Of a bridge that was
// there before us it takes nothing. It returns what it did, in words.
func RemoveAll() (did []string, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	ports, err := veths(c)
	if err != nil {
		return nil, fmt.Errorf("list pods' links: %w", err)
	}
	bridges, err := ourBridges(c)
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	var errs []error
	for _, l := range append(ports, bridges...) {
		err := run(c, []step{{what: "remove " + l.Name, req: newLink(unix.RTM_DELLINK, 0, l.Index), fine: []error{unix.ENODEV}}})
		if err == nil {
			did = append(did, "removed "+describe(l))
		}
		errs = append(errs, err)
	}
	found, err := RemoveFilter()
	if found && err == nil {
		did = append(did, "removed the source filter")
	}
	return did, errors.Join(append(errs, err)...)
}

func describe(l link) string {
	p := port(l)
	switch {
	case l.Kind == "bridge":
		return "bridge " + l.Name
	case p.Container == "":
		return l.Name
	case p.Pod == "":
		return fmt.Sprintf("%s of container %s", l.Name, p.Container)
	}
	return fmt.Sprintf("%s of pod %s", l.Name, p.Pod)
}

func ourBridges(c *rtnl.Conn) (found []link, err error) {
	req := newLink(unix.RTM_GETLINK, 0, 0)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	req.AddData(info)
	err = c.Dump(req, func() { found = nil }, func(body []byte) {
		if l := parseLink(body); l.Kind == "bridge" && l.Alias == bridgeAlias {
			found = append(found, l)
		}
	})
	return found, err
}
