package vxlan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// RemoveDevices removes our VXLAN devices, by their mark, but for those to keep,
// by name. It returns what it did, in words. The tables go with them.
func RemoveDevices(keep ...string) ([]string, error) {
	return remove(func(c *rtnl.Conn) ([]removal, error) { return ourDevices(c, keep) })
}

// RemoveRoutes removes our routes, by their protocol number, from the main table.
func RemoveRoutes() ([]string, error) { return remove(ourRoutes) }

// A removal is a request, and the words for it.
type removal struct {
	what string
	req  *nl.NetlinkRequest
}

func remove(list func(*rtnl.Conn) ([]removal, error)) (did []string, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	all, err := list(c)
	if err != nil {
		return nil, err
	}
	reqs := make([]*nl.NetlinkRequest, len(all))
	for i, r := range all {
		reqs[i] = r.req
	}
	var errs []error
	for i, err := range c.Batch(reqs) {
		switch {
		case err == nil:
			did = append(did, all[i].what)
		case !absent(err) && !errors.Is(err, unix.ENODEV): // somebody else was quicker
			errs = append(errs, fmt.Errorf("%s: %w", all[i].what, err))
		}
	}
	return did, errors.Join(errs...)
}

func ourDevices(c *rtnl.Conn, keep []string) (all []removal, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	err = c.Dump(req, func() { all = nil }, func(body []byte) {
		if l, ok := parseLink(body); ok && l.kind == "vxlan" && l.alias == alias && !slices.Contains(keep, l.name) {
			all = append(all, removal{"removed " + l.name, deleteLink(l.Index)})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	return all, nil
}

func ourRoutes(c *rtnl.Conn) (all []removal, err error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		var found []removal
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(fam)}})
		err := c.Dump(req, func() { found = nil }, func(body []byte) {
			if r, ok := parseRoute(body); ok && r.table == unix.RT_TABLE_MAIN && r.protocol == Protocol {
				e := Subnet{r.dst, Route{Via: r.via, Direct: true}}
				found = append(found, removal{"removed route " + r.dst.String(), routeRequest(true, e, 0)})
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}
