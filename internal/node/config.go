package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// Resolve is how neighbour and FDB entries come into the kernel.
type Resolve string

// The ways to resolve.
const (
	Eager  Resolve = "eager"   // all entries at once; misses are answered all the same
	OnMiss Resolve = "on-miss" // routes at once, the rest when the kernel asks for it
)

// Config is what a node's daemon is told at its start.
type Config struct {
	Node       string        // stable node id
	RunDir     string        // node file, socket, lock, slot files
	Device     string        // name of the VXLAN device
	Bridge     string        // name of the bridge that pods hang on
	Resolve    Resolve       // eager or on-miss
	Grace      time.Duration // how long a peer outlives its lease
	Sweep      time.Duration // between two looks for pods that are gone
	Metrics    string        // TCP address of the API besides the socket; empty: none
	FixSysctls bool          // set kernel settings that are wrong, instead of only saying so
	Firewall   firewall.Mode // which back ends
	Masquerade bool          // pod traffic that leaves the cluster's networks has the node's address
	PeerFilter bool          // VXLAN is taken from leased peers only
	PathMTU    bool          // ask the routers on the way to peers how large packets may be

	CNIConfDir      string // the runtime's network configuration; empty: we write none
	CNIConfTemplate string // file of what is written there; empty: deploy.Conflist

	Version string
	Store   string // kind of store, for the status

	// How the underlay is chosen; at most one of the first three. None: the
	// interface of the default route.
	Ifaces       []string         // names or addresses; the first that is there counts
	IfaceRegexes []*regexp.Regexp // that a name or address matches
	CanReach     netip.Addr       // the interface that leads there
	Public       netip.Addr       // address that others send to; invalid: the interface's
	Public6      netip.Addr       // the same, of IPv6 beside an IPv4 one
}

// Default returns the configuration that flags change.
func Default() Config {
	host, _ := os.Hostname()
	return Config{
		Node:    host,
		RunDir:  subnet.RunDir,
		Device:  "overlay.1",
		Bridge:  "overlay-br0",
		Resolve: Eager,
		Grace:   10 * time.Minute,
		Sweep:   time.Minute,

		Firewall: firewall.Auto, Masquerade: true, PeerFilter: true,
	}
}

// A FlagError is a configuration value that cannot be.
type FlagError struct {
	Flag, Value, Want string
}

func (e *FlagError) Error() string {
	return fmt.Sprintf("--%s %q: want %s", e.Flag, e.Value, e.Want)
}

// Check returns a *FlagError for the first value that cannot be.
func (c Config) Check() error {
	switch {
	case !nodeID(c.Node):
		return &FlagError{"node-id", c.Node, "1 to 253 bytes without spaces that stay the same over reboots, such as the host name"}
	case !filepath.IsAbs(c.RunDir) || len(c.RunDir) > maxRunDir:
		return &FlagError{"run-dir", c.RunDir, fmt.Sprintf("an absolute path of at most %d bytes to a folder that does not survive a reboot, such as %s", maxRunDir, subnet.RunDir)}
	case c.Public.IsValid() && !reachable(c.Public):
		return &FlagError{"public-ip", c.Public.String(), "a unicast address that other nodes reach"}
	case c.Public6.IsValid() && (!reachable(c.Public6) || c.Public6.Is4()):
		return &FlagError{"public-ipv6", c.Public6.String(), "a unicast IPv6 address that other nodes reach"}
	case c.Public6.IsValid() && c.Public.Is6():
		return &FlagError{"public-ipv6", c.Public6.String(), "none beside an IPv6 --public-ip"}
	case c.CanReach.IsValid() && !reachable(c.CanReach):
		return &FlagError{"iface-can-reach", c.CanReach.String(), "a unicast address outside this node"}
	case slices.Contains(c.Ifaces, ""):
		return &FlagError{"iface", "", "the name or an address of an interface"}
	case len(c.IfaceRegexes) > 0 && len(c.Ifaces) > 0:
		return &FlagError{"iface-regex", c.IfaceRegexes[0].String(), "none beside --iface"}
	case c.CanReach.IsValid() && len(c.Ifaces)+len(c.IfaceRegexes) > 0:
		return &FlagError{"iface-can-reach", c.CanReach.String(), "none beside --iface or --iface-regex"}
	case !linkName(c.Device) || len(c.Device) > 15-len(v6Mark):
		return &FlagError{"device", c.Device, "a link name of 1 to 12 bytes without '/', ':' or white space; the device over IPv6 has " + v6Mark + " in it"}
	case !linkName(c.Bridge):
		return &FlagError{"bridge", c.Bridge, "a link name of 1 to 15 bytes without '/', ':' or white space"}
	case c.Bridge == c.Device:
		return &FlagError{"bridge", c.Bridge, "another name than the device's"}
	case c.Resolve != Eager && c.Resolve != OnMiss:
		return &FlagError{"resolve", string(c.Resolve), "eager or on-miss"}
	case c.Grace < 0:
		return &FlagError{"grace", c.Grace.String(), "0 or longer"}
	case c.Sweep < minSweep:
		return &FlagError{"sweep-interval", c.Sweep.String(), minSweep.String() + " or longer"}
	case c.Metrics != "" && !hostPort(c.Metrics):
		return &FlagError{"metrics-address", c.Metrics, "an address and a port, such as 127.0.0.1:9472 or :9472"}
	case c.CNIConfDir != "" && !filepath.IsAbs(c.CNIConfDir):
		return &FlagError{"cni-conf-dir", c.CNIConfDir, "an absolute path to the runtime's network configuration, such as /etc/cni/net.d"}
	case c.CNIConfTemplate != "" && c.CNIConfDir == "":
		return &FlagError{"cni-conf-template", c.CNIConfTemplate, "--cni-conf-dir too, where it is to be written"}
	}
	if _, err := c.conflist(); err != nil {
		return err
	}
	return nil
}

// hostPort reports whether s can be listened on: an IP address, a host name or
// nothing, and a port number.
func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// maxRunDir leaves room for the socket's name in the 107 bytes that the kernel
// has for a socket's path.
const maxRunDir = 107 - 1 - len(api.SocketName)

// nodeID and linkName are as strict as the readers of the lease and the node
// file, so that what passes here is not refused there.
func nodeID(s string) bool { return s != "" && len(s) <= 253 && plain(s) }

func linkName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/:") && plain(s)
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) })
}

func reachable(a netip.Addr) bool {
	return !a.Is4In6() && a.IsGlobalUnicast() && a.Zone() == ""
}
