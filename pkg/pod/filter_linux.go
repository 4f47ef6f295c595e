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
// nftables' bridge family. What comes from a link of GuardedGroup is dropped, unless
// port, MAC and address are an element of a set together. Rules are the same whatever
// pods there are. Whoever attaches the first pod makes the table, in one transaction
// with that pod's elements, so that there is never half of it.
//
// So what fails leaves a pod mute and not open: a link that was renamed, elements that
// somebody deleted, a DEL that was killed half-way.

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
func (f filter) change(generation uint32, reqs []*nl.NetlinkRequest) error {
	_, err := f.c.Transaction(unix.NFNL_SUBSYS_NFTABLES, generation, reqs)
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

// A filter is the table, by a socket. To close that waits for what other changes
// have left the kernel to do, which is some 10 ms after a removal.
type filter struct{ c *rtnl.Conn }

func dialFilter() (filter, error) {
	c, err := rtnl.DialNetfilter()
	return filter{c}, err
}

func (f filter) close() { _ = f.c.Close() }

// guard lets a port send by that MAC and those addresses. It comes before the port.
func (f filter) guard(port string, mac net.HardwareAddr, addrs []netip.Addr) error {
	elements := portElements(port, mac, addrs)
	for attempt := 0; ; attempt++ {
		err := f.change(0, elementRequests(unix.NFT_MSG_NEWSETELEM, elements))
		if errors.Is(err, unix.ENOENT) { // no table yet, unless somebody is quicker
			err = f.change(0, append(createTable(), elementRequests(unix.NFT_MSG_NEWSETELEM, elements)...))
		}
		if err == nil || !again(attempt, err) {
			return wrap("filter what "+port+" sends", err)
		}
	}
}

// unguard is filter.unguard for who has no other use for the filter.
func unguard(port string) error {
	f, err := dialFilter()
	if err != nil {
		return err
	}
	defer f.close()
	return f.unguard([]string{port})
}

// unguard removes all elements of ports. What is not there is a success.
func (f filter) unguard(ports []string) error {
	for attempt := 0; ; attempt++ {
		err := f.unguardOnce(ports)
		if err == nil || !again(attempt, err) {
			return wrap(fmt.Sprintf("remove %v from the source filter", ports), err)
		}
	}
}

func (f filter) unguardOnce(ports []string) error {
	others := func(e element) bool { return !slices.Contains(ports, e.port()) }
	// All elements of a port come and go together, so one set tells of it.
	found, err := f.elements(setMACs)
	if isAny(err, absent) {
		return nil
	}
	if found = slices.DeleteFunc(found, others); err != nil || len(found) == 0 {
		return err
	}
	rest, err := f.elements(setIPv4, setIPv6)
	if err != nil {
		return err
	}
	found = append(found, slices.DeleteFunc(rest, others)...)
	return f.change(0, elementRequests(unix.NFT_MSG_DELSETELEM, found))
}

// CheckFilter returns the first difference between the filter and what an
// attachment needs of it to send. The rules are for EnsureFilter to compare.
func CheckFilter(g Guarded) error {
	f, err := dialFilter()
	if err != nil {
		return err
	}
	defer f.close()
	name := HostName(g.Container, g.IfName)
	elements := portElements(name, g.mac(), g.Addrs)
	requests := make([]*nl.NetlinkRequest, 0, len(elements))
	for _, e := range elements {
		requests = append(requests, elementRequests(unix.NFT_MSG_GETSETELEM, []element{e})...)
	}
	for i, err := range f.c.Batch(requests) {
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

// RemoveFilter removes the table with all that is in it: nobody looks then at what
// pods send. A table that is not there is a success, and found is false.
func RemoveFilter() (found bool, err error) {
	f, err := dialFilter()
	if err != nil {
		return false, err
	}
	defer f.close()
	err = f.change(0, []*nl.NetlinkRequest{deleteTable()})
	if isAny(err, absent) {
		return false, nil
	}
	return err == nil, wrap("remove table bridge "+FilterTable, err)
}

func deleteTable() *nl.NetlinkRequest {
	return nftRequest(unix.NFT_MSG_DELTABLE, 0, textAttr(unix.NFTA_TABLE_NAME, FilterTable))
}
