package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// The filter lets a pod send by its own MAC and addresses only. It is one table of
// nftables' bridge family. Every guarded port is an element of a set, and so is
// each combination of port, MAC and address that may be sent by; rules are the same
// whatever pods there are. Whoever attaches the first pod makes the table, in one
// transaction with that pod's elements, so that there is never half of it.

// filterAttempts bounds how often a change is tried that somebody else's change
// came between.
const filterAttempts = 20

// filterPause is how long the second attempt waits; each later one waits longer.
const filterPause = 200 * time.Microsecond

// unsupported is what a kernel says that has no such tables, absent what all say
// where there is none.
var (
	unsupported = []error{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT}
	absent      = append([]error{unix.ENOENT}, unsupported...)
)

// errNoFilter words it.
func errNoFilter(err error) error {
	if isAny(err, unsupported) {
		return fmt.Errorf("%w: the kernel has no nftables of the bridge family (CONFIG_NF_TABLES_BRIDGE); \"sourceFilter\": false does without", err)
	}
	return err
}

// change carries out a transaction; one that somebody else's change came between
// is for the caller to repeat.
func change(c *rtnl.Conn, generation uint32, reqs []*nl.NetlinkRequest) error {
	_, err := c.Transaction(unix.NFNL_SUBSYS_NFTABLES, generation, reqs)
	return errNoFilter(err)
}

// again says whether to try anew, after a pause, what failed by a change of others.
func again(attempt int, err error) bool {
	if attempt+1 >= filterAttempts || !isAny(err, []error{unix.ERESTART, unix.EBUSY, unix.EAGAIN, unix.EEXIST, unix.ENOENT, unix.EINTR}) {
		return false
	}
	if attempt > 0 {
		pause := filterPause * time.Duration(attempt)
		_ = unix.Nanosleep(&unix.Timespec{Nsec: pause.Nanoseconds()}, nil)
	}
	return true
}

// guard lets a port send by that MAC and those addresses, and by nothing else. It
// comes before the port, which so never sends without.
func guard(port string, mac net.HardwareAddr, addrs []netip.Addr) error {
	c, err := rtnl.DialNetfilter()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	elements := portElements(port, mac, addrs)
	for attempt := 0; ; attempt++ {
		err := change(c, 0, elementRequests(unix.NFT_MSG_NEWSETELEM, elements))
		if errors.Is(err, unix.ENOENT) { // no table yet, unless somebody is quicker
			err = change(c, 0, append(createTable(), elementRequests(unix.NFT_MSG_NEWSETELEM, elements)...))
		}
		if err == nil || !again(attempt, err) {
			return wrap("filter what "+port+" sends", err)
		}
	}
}

// unguard removes all elements of ports. What is not there is a success.
func unguard(ports ...string) error {
	c, err := rtnl.DialNetfilter()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for attempt := 0; ; attempt++ {
		err := unguardOnce(c, ports)
		if err == nil || !again(attempt, err) {
			return wrap(fmt.Sprintf("remove %v from the source filter", ports), err)
		}
	}
}

func unguardOnce(c *rtnl.Conn, ports []string) error {
	// All elements of a port come and go together, so one tells.
	ports = slices.DeleteFunc(slices.Clone(ports), func(p string) bool { return isAny(missing(c, portElement(p)), absent) })
	if len(ports) == 0 {
		return nil
	}
	have, err := readElements(c)
	if err != nil {
		return err
	}
	have = slices.DeleteFunc(have, func(e element) bool { return !slices.Contains(ports, e.port()) })
	return change(c, 0, elementRequests(unix.NFT_MSG_DELSETELEM, have))
}

// missing asks for elements: ENOENT if one is not there.
func missing(c *rtnl.Conn, elements ...element) error {
	return errors.Join(c.Batch(elementRequests(unix.NFT_MSG_GETSETELEM, elements))...)
}

// CheckFilter returns the first difference between the filter and what an
// attachment needs of it to send. The rules are for EnsureFilter to compare.
func CheckFilter(g Guarded) error {
	c, err := rtnl.DialNetfilter()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	name := HostName(g.Container, g.IfName)
	elements := portElements(name, g.mac(), g.Addrs)
	requests := make([]*nl.NetlinkRequest, 0, len(elements))
	for _, e := range elements {
		requests = append(requests, elementRequests(unix.NFT_MSG_GETSETELEM, []element{e})...)
	}
	for i, err := range c.Batch(requests) {
		switch {
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("source filter (table bridge %s): set %s lacks link %s with MAC %s and addresses %v",
				FilterTable, elements[i].set, name, g.mac(), g.Addrs)
		case err != nil:
			return fmt.Errorf("read source filter: %w", errNoFilter(err))
		}
	}
	return nil
}

func wrap(act string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", act, err)
}

func addrsOf(list []netip.Prefix) (addrs []netip.Addr) {
	for _, p := range list {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// RemoveFilter removes the table with all that is in it: what pods send is then
// not looked at. A table that is not there is a success, and found is false.
func RemoveFilter() (found bool, err error) {
	c, err := rtnl.DialNetfilter()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	err = change(c, 0, []*nl.NetlinkRequest{deleteTable()})
	if isAny(err, absent) {
		return false, nil
	}
	return err == nil, wrap("remove table bridge "+FilterTable, err)
}

func deleteTable() *nl.NetlinkRequest {
	return nftRequest(unix.NFT_MSG_DELTABLE, 0, textAttr(unix.NFTA_TABLE_NAME, FilterTable))
}
