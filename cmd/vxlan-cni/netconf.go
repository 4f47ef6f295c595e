package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A netConf is the network configuration that the runtime sends, checked.
type netConf struct {
	Version string // cniVersion, in which results are written
	Name    string // of the network
	RunDir  string // folder of node file and slots
	Hairpin bool
	Filter  bool // a pod may send by its own MAC and addresses only
	DNS     types.DNS

	// What the attachment is to have, of falling rank; parseStrict only.
	Runtime, Annotated, Args wanted

	raw rawConf // for what one verb alone needs
}

// wanted is what a runtime may ask for in an attachment.
type wanted struct {
	MAC   net.HardwareAddr
	Addrs []netip.Addr
}

// or fills what is not asked for from a source of lower rank.
func (w wanted) or(lower wanted) wanted {
	if w.MAC == nil {
		w.MAC = lower.MAC
	}
	if len(w.Addrs) == 0 {
		w.Addrs = lower.Addrs
	}
	return w
}

// rawConf is the JSON form. Keys match without regard to case, as containerd
// needs it.
type rawConf struct {
	CNIVersion string     `json:"cniVersion"`
	Name       string     `json:"name"`
	RunDir     *string    `json:"runDir"`
	Hairpin    *bool      `json:"hairpin"`
	Filter     *bool      `json:"sourceFilter"`
	DNS        types.DNS  `json:"dns"`
	IPMasq     bool       `json:"ipMasq"`
	IPAM       types.IPAM `json:"ipam"`

	RuntimeConfig rawWanted `json:"runtimeConfig"`
	Args          struct {
		CNI rawWanted `json:"cni"`
	} `json:"args"`
	PrevResult json.RawMessage `json:"prevResult"`

	Valid    json.RawMessage `json:"cni.dev/valid-attachments"`
	ValidOld json.RawMessage `json:"cni.dev/attachments"` // as versions of the specification before 1.1.0 was final had it
}

type rawWanted struct {
	MAC string   `json:"mac"`
	IPs []string `json:"ips"`

	Annotations json.RawMessage `json:"io.kubernetes.cri.pod-annotations"` // of runtimeConfig only
}

const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// ownKeys are ours, specKeys the specification's and libcni's for a plugin. A key with a dot or
// slash is somebody's name space, such as cni.dev/valid-attachments.
var (
	ownKeys  = []string{"hairpin", "runDir", "sourceFilter"}
	specKeys = []string{
		"args", "capabilities", "cniVersion", "cniVersions", "disableCheck", "disableGC", "dns", "ipMasq", "ipam",
		"loadOnlyInlinedPlugins", "name", "prevResult", "runtimeConfig", "type",
	}
)

// parseStrict reads a configuration that new attachments are made by: an
// unknown key is an error, for what it asks for would silently not happen.
func parseStrict(data []byte) (netConf, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return netConf{}, fail(types.ErrDecodingFailure, "network configuration: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		known := func(k string) bool { return strings.EqualFold(k, key) }
		if !strings.ContainsAny(key, "./") && !slices.ContainsFunc(ownKeys, known) && !slices.ContainsFunc(specKeys, known) {
			return netConf{}, fail(types.ErrInvalidNetworkConfig,
				"network configuration: key %q: unknown; want one of the specification's or %s", key, strings.Join(ownKeys, ", "))
		}
	}
	c, err := parse(data)
	if err != nil {
		return netConf{}, err
	}
	if len(c.Name) > pod.MaxNetwork {
		return netConf{}, fail(types.ErrInvalidNetworkConfig, "name: %q: want at most %d bytes", c.Name, pod.MaxNetwork)
	}
	raw := c.raw
	if raw.IPMasq {
		return netConf{}, fail(types.ErrUnsupportedField, "ipMasq: true: overlayd masquerades (--ip-masq), want no such key here")
	}
	if !raw.IPAM.IsEmpty() {
		return netConf{}, fail(types.ErrUnsupportedField, "ipam.type: %q: addresses come from the node's lease, want no such key", raw.IPAM.Type)
	}
	if c.Runtime, err = raw.RuntimeConfig.parse("runtimeConfig"); err != nil {
		return netConf{}, err
	}
	if c.Annotated, err = parseAnnotations(raw.RuntimeConfig.Annotations); err != nil {
		return netConf{}, err
	}
	c.Args, err = raw.Args.CNI.parse("args.cni")
	return c, err
}

// want is what an interface is to have; env is of the lowest rank.
func (c netConf) want(ifname string, env wanted) wanted {
	w := c.Runtime
	if ifname == annotated {
		w = w.or(c.Annotated)
	}
	return w.or(c.Args).or(env)
}

// parse reads a configuration that attachments were made by, maybe long ago and
// with another version: what is not needed to find them again is ignored.
func parse(data []byte) (netConf, error) {
	var raw rawConf
	if err := json.Unmarshal(data, &raw); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return netConf{}, fail(types.ErrInvalidNetworkConfig, "network configuration: %s: is a JSON %s, want %s", wrong.Field, wrong.Value, wrong.Type)
		}
		return netConf{}, fail(types.ErrDecodingFailure, "network configuration: %w", err)
	}
	c := netConf{Version: raw.CNIVersion, Name: raw.Name, RunDir: subnet.RunDir, Hairpin: true, Filter: true, DNS: raw.DNS, raw: raw}
	if raw.RunDir != nil {
		c.RunDir = filepath.Clean(*raw.RunDir)
		if !filepath.IsAbs(c.RunDir) {
			return netConf{}, fail(types.ErrInvalidNetworkConfig, "runDir: %q: want an absolute path", *raw.RunDir)
		}
	}
	if raw.Hairpin != nil {
		c.Hairpin = *raw.Hairpin
	}
	if raw.Filter != nil {
		c.Filter = *raw.Filter
	}
	return c, nil
}

// prevResult reads the result of the plugin before us (ADD) or of the whole
// chain (CHECK); nil if there is none.
func (c netConf) prevResult() (*current.Result, error) {
	data := c.raw.PrevResult
	if len(data) == 0 || string(data) == "null" {
		return nil, nil
	}
	result, err := create.Create(c.Version, data)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult: %w", err)
	}
	prev, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult: %w", err)
	}
	return prev, nil
}

// attachments reads the lists of attachments to keep that GC comes with; ok is
// false if there is none. libcni writes an empty list as null. Of two lists
// that differ each counts: better to keep too much.
func (c netConf) attachments() (valid []types.GCAttachment, ok bool, err error) {
	for _, data := range []json.RawMessage{c.raw.Valid, c.raw.ValidOld} {
		if len(data) == 0 {
			continue
		}
		var list []types.GCAttachment
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, false, fail(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments: %w", err)
		}
		for i, a := range list {
			if a.ContainerID == "" || a.IfName == "" {
				return nil, false, fail(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments: entry %d: want containerID and ifname", i)
			}
		}
		valid, ok = append(valid, list...), true
	}
	return valid, ok, nil
}

func (r rawWanted) parse(where string) (w wanted, err error) {
	if r.MAC != "" {
		if w.MAC, err = parseMAC(r.MAC); err != nil {
			return wanted{}, fail(types.ErrInvalidNetworkConfig, "%s.mac: %w", where, err)
		}
	}
	for _, text := range r.IPs {
		a, err := parseAddr(text)
		if err != nil {
			return wanted{}, fail(types.ErrInvalidNetworkConfig, "%s.ips: %w", where, err)
		}
		w.Addrs = append(w.Addrs, a)
	}
	return w, nil
}

func parseMAC(text string) (net.HardwareAddr, error) {
	m, err := subnet.ParseMAC(text)
	if err != nil {
		return nil, err
	}
	return m[:], nil
}

// parseAddr reads an address that may have a prefix length, which is not
// looked at: the subnet's counts.
func parseAddr(text string) (netip.Addr, error) {
	bare, _, _ := strings.Cut(text, "/")
	a, err := netip.ParseAddr(bare)
	if bare != text && err == nil {
		_, err = netip.ParsePrefix(text)
	}
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %q: want one such as 10.244.1.7 or fd00::7", text)
	}
	return a, nil
}
