package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// procSys is where the kernel's settings are. Below net they are those of the
// namespace of whoever opens the file.
const procSys = "/proc/sys"

// A setting is something that the kernel must have set for pods to be reached,
// and that netlink cannot set.
type setting struct {
	path string // below /proc/sys
	good func(value int) bool
	set  string // the value to set
	why  string // what does not work without it
	// with are settings to make before this one, as pairs of path and value.
	with [][2]string
}

// settings are those that matter on this node.
func (l *loop) settings() []setting {
	var all []setting
	on := func(v int) bool { return v != 0 }
	for _, n := range l.networks() {
		if n.Addr().Is4() {
			all = append(all, setting{path: "net/ipv4/ip_forward", good: on, set: "1", why: "pods do not reach what is outside of the overlay"})
			continue
		}
		all = append(all, setting{
			path: "net/ipv6/conf/all/forwarding", good: on, set: "1", why: "no IPv6 packet is forwarded",
			// A host that forwards forgets what routers advertise, unless told that it may not.
			with: l.keepAdvertisements(),
		})
	}
	for _, name := range l.deviceNames() {
		all = append(all, l.reversePath(name))
	}
	for i, name := range []string{"iptables", "ip6tables"} {
		if l.hasPods(i == 0) {
			all = append(all, setting{path: "net/bridge/bridge-nf-call-" + name, good: on, set: "1", why: "a Service's answers from a pod on the same node come from the wrong address"})
		}
	}
	// Entries of ours are permanent and do not count; those for the node's own pods do.
	for i, table := range []string{"ipv4", "ipv6"} {
		if l.hasPods(i == 0) {
			all = append(all, setting{
				path: "net/" + table + "/neigh/default/gc_thresh3", good: func(v int) bool { return v >= neighbours }, set: strconv.Itoa(neighbours),
				why: "the neighbour table can overflow",
			})
		}
	}
	return all
}

// hasPods says whether pods have addresses of the family.
func (l *loop) hasPods(v4 bool) bool {
	return slices.ContainsFunc(l.networks(), func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// neighbours is the kernel's default size of the neighbour table, and more than a
// node with 250 pods needs.
const neighbours = 1024

// reversePath wants no strict reverse path filter on a device of ours: with direct
// routing an answer may come back another way. The kernel takes the larger of
// the device's and the general setting, and 2 is loose.
func (l *loop) reversePath(device string) setting {
	general, _ := readSetting("net/ipv4/conf/all/rp_filter")
	const strict = 1
	return setting{
		path: "net/ipv4/conf/" + device + "/rp_filter", good: func(v int) bool { return max(v, general) != strict }, set: "2",
		why: "packets that come back another way are dropped",
	}
}

// keepAdvertisements makes the underlay interface heed router advertisements although
// the node forwards, if it heeds them now.
func (l *loop) keepAdvertisements() [][2]string {
	path := "net/ipv6/conf/" + l.underlay.Interface + "/accept_ra"
	if v, err := readSetting(path); err != nil || v != 1 {
		return nil
	}
	return [][2]string{{path, "2"}}
}

func readSetting(path string) (int, error) {
	b, err := os.ReadFile(filepath.Join(procSys, path))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// checkSettings returns what is not as it should be, in words, after setting it if
// that was asked for. A setting that this kernel or namespace has not is no
// fault.
func (l *loop) checkSettings() (wrong []string) {
	for _, s := range l.settings() {
		value, err := readSetting(s.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("%s cannot be read: %v", dotted(s.path), err))
			continue
		case s.good(value):
			continue
		}
		text := fmt.Sprintf("%s is %d: %s", dotted(s.path), value, s.why)
		remedy := fmt.Sprintf("; set it to %s (sysctl -w), or start overlayd with --fix-sysctls", s.set)
		if l.cfg.FixSysctls {
			if err := s.write(); err == nil {
				l.log.Info("kernel setting changed", "name", dotted(s.path), "was", value, "is", s.set)
				l.journal.event("setting", fmt.Sprintf("set %s to %s (was %d)", dotted(s.path), s.set, value))
				continue
			} else {
				remedy = fmt.Sprintf("; it cannot be set from here: %v", err)
			}
		}
		wrong = append(wrong, text+remedy)
	}
	return wrong
}

func (s setting) write() error {
	var errs []error
	for _, pair := range append(s.with, [2]string{s.path, s.set}) {
		errs = append(errs, os.WriteFile(filepath.Join(procSys, pair[0]), []byte(pair[1]), 0))
	}
	return errors.Join(errs...)
}

// dotted is a setting's name as sysctl writes it, which swaps dots and slashes.
func dotted(path string) string {
	return strings.NewReplacer("/", ".", ".", "/").Replace(path)
}
