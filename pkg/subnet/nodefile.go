package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/atomicfile"
)

// NodeFile is what overlayd tells vxlan-cni: the part of the node's lease that
// attaching a pod needs. It stands as JSON in <run folder>/node.json and is
// replaced whole.
type NodeFile struct {
	Schema   int            `json:"schema"`   // NodeFileSchema
	Node     string         `json:"node"`     // node id
	Networks []netip.Prefix `json:"networks"` // the cluster's pod networks, IPv4 first
	Subnets  []netip.Prefix `json:"subnets"`  // this node's pod subnets, IPv4 first
	MTU      int            `json:"mtu"`      // bytes, for bridge and pods
	Bridge   string         `json:"bridge"`   // name of the bridge that pods hang on

	// BridgeMAC is that of a bridge which was there before us; zero: it follows
	// from the gateway's address.
	BridgeMAC MAC `json:"bridgeMAC,omitzero"`
}

// NodeFileSchema is the version of the format that this code reads and writes.
const NodeFileSchema = 1

// NodeFileName is the file's name inside the run folder.
const NodeFileName = "node.json"

// RunDir is the run folder unless configured otherwise. It must not survive a
// reboot.
const RunDir = "/run/vxlan-cni"

// Write replaces the node file in dir, at once and whole: a reader sees the old
// one or the new one. A file that says the same already is left alone.
func (f NodeFile) Write(dir string) error {
	path := filepath.Join(dir, NodeFileName)
	if err := f.check(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	data, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	data = append(data, '\n')
	if have, err := readRegular(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return atomicfile.Write(path, 0o644, bytes.NewReader(data))
}

// ReadNodeFile reads the node file in dir. If there is none the error is
// fs.ErrNotExist; if it is torn, or not ours, the error names path and offset.
func ReadNodeFile(dir string) (NodeFile, error) {
	path := filepath.Join(dir, NodeFileName)
	data, err := readRegular(path)
	if err != nil {
		return NodeFile{}, err
	}
	f, err := ParseNodeFile(data)
	if err != nil {
		return NodeFile{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// maxNodeFile bounds a node file, in bytes; one has some 300.
const maxNodeFile = 1 << 20

// readRegular reads a regular file. Anything else that lies there is an error: to
// open a pipe, say, would wait for its writer, for ever.
func readRegular(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is a %s, want a regular file", path, info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(file, maxNodeFile+1))
	if err == nil && len(data) > maxNodeFile {
		err = fmt.Errorf("%s: has more than %d bytes", path, maxNodeFile)
	}
	return data, err
}

// ParseNodeFile reads a node file's content and believes no field unchecked.
// Keys that it does not know are left alone: a newer overlayd may write some.
// Errors name the byte offset.
func ParseNodeFile(data []byte) (NodeFile, error) {
	members, err := parseObject(data)
	if err != nil {
		return NodeFile{}, err
	}
	f, err := fillNodeFile(members)
	if err == nil {
		return f, nil
	}
	offset := int64(len(data)) // of a key that is missing
	var wrong *keyError
	for _, m := range members {
		if errors.As(err, &wrong) && strings.EqualFold(m.key, wrong.key) {
			offset = m.offset
		}
	}
	return NodeFile{}, fmt.Errorf("byte %d: %w", offset, err)
}

func fillNodeFile(members []member) (NodeFile, error) {
	var schema, mtu *int64
	var node, bridge, bridgeMAC *string
	var networks, subnets *[]string
	if err := fill(members, []field{
		{"schema", &schema}, {"node", &node}, {"networks", &networks},
		{"subnets", &subnets}, {"mtu", &mtu}, {"bridge", &bridge}, {"bridgeMAC", &bridgeMAC},
	}, "", false); err != nil {
		return NodeFile{}, err
	}
	// The schema before all else: in another version the rest may mean something else.
	if err := checkSchema(or(schema, 0)); err != nil {
		return NodeFile{}, err
	}
	f := NodeFile{Schema: NodeFileSchema, Node: or(node, ""), MTU: int(or(mtu, 0)), Bridge: or(bridge, "")}
	var err error
	if bridgeMAC != nil {
		if f.BridgeMAC, err = ParseMAC(*bridgeMAC); err != nil {
			return NodeFile{}, &keyError{"bridgeMAC", fmt.Errorf("bridgeMAC: %w", err)}
		}
	}
	if f.Networks, err = parsePrefixes("networks", or(networks, nil)); err != nil {
		return NodeFile{}, err
	}
	if f.Subnets, err = parsePrefixes("subnets", or(subnets, nil)); err != nil {
		return NodeFile{}, err
	}
	return f, f.check()
}

func parsePrefixes(key string, texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, &keyError{key, fmt.Errorf("%s: %s: want a network such as %s", key, quote(text), family4.example())}
		}
		list = append(list, p)
	}
	return list, nil
}

func checkSchema(schema int64) error {
	if schema != NodeFileSchema {
		return &keyError{"schema", fmt.Errorf("schema %d: want %d; is this a node file of overlayd?", schema, NodeFileSchema)}
	}
	return nil
}

// check says what vxlan-cni could not work with. Errors are keyErrors.
func (f NodeFile) check() error {
	if err := checkSchema(int64(f.Schema)); err != nil {
		return err
	}
	if f.Node == "" {
		return &keyError{"node", errors.New("node: missing, want the node id")}
	}
	if err := checkNode(f.Node); err != nil {
		return &keyError{"node", err}
	}
	if err := checkFamilies("networks", f.Networks); err != nil {
		return err
	}
	if err := checkFamilies("subnets", f.Subnets); err != nil {
		return err
	}
	ipv6 := false
	for _, s := range f.Subnets {
		fam := familyOf(s.Addr())
		ipv6 = ipv6 || !fam.is4
		inside := func(n netip.Prefix) bool {
			return n.Addr().Is4() == fam.is4 && n.Bits() <= s.Bits() && n.Contains(s.Addr())
		}
		if !slices.ContainsFunc(f.Networks, inside) {
			return &keyError{"subnets", fmt.Errorf("subnets: %s: want one inside one of networks %s", s, f.Networks)}
		}
		if s.Bits() > fam.maxLen {
			return &keyError{"subnets", fmt.Errorf("subnets: %s: too small for a bridge and a pod, want /%d or shorter", s, fam.maxLen)}
		}
	}
	if err := checkMTU(int64(f.MTU), ipv6); err != nil {
		return &keyError{"mtu", fmt.Errorf("mtu %w", err)}
	}
	if err := checkLinkName(f.Bridge); err != nil {
		return &keyError{"bridge", fmt.Errorf("bridge %w", err)}
	}
	if f.BridgeMAC[0]&1 != 0 {
		return &keyError{"bridgeMAC", fmt.Errorf("bridgeMAC: %s: is a group address, want a unicast one", f.BridgeMAC)}
	}
	return nil
}

// checkFamilies wants one masked prefix, or two: IPv4, then IPv6.
func checkFamilies(key string, list []netip.Prefix) error {
	wrong := func(format string, args ...any) error {
		return &keyError{key, fmt.Errorf(key+": "+format, args...)}
	}
	if len(list) == 0 {
		return wrong("none, want one per address family")
	}
	for i, p := range list {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return wrong("%s: want an IPv4 or IPv6 network", p)
		case p != p.Masked():
			return wrong("%s: has host bits set, want %s", p, p.Masked())
		case i > 0 && (i > 1 || !list[0].Addr().Is4() || p.Addr().Is4()):
			return wrong("%s: want at most one IPv4 network, then at most one IPv6 network", list)
		}
	}
	return nil
}

// checkLinkName is the kernel's dev_valid_name: 1 to 15 bytes that can be a file
// name in /sys and a key in /proc.
func checkLinkName(name string) error {
	bad := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%s: want the name of a link, 1 to 15 bytes without '/', ':' and spaces", quote(name))
	}
	return nil
}
