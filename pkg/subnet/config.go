package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Config is the network's configuration, the same on every node.
//
// Its JSON form has flannel's keys: Network, IPv6Network, EnableIPv4 (true),
// EnableIPv6, SubnetLen (24, or two more than the network's if that is longer
// than /22), SubnetMin, SubnetMax, IPv6SubnetLen (64, or two more than the
// network's if that is longer than /62), IPv6SubnetMin, IPv6SubnetMax,
// EnableNFTables, Backend {Type, VNI, Port, MTU, DirectRouting, Learning, GBP}.
type Config struct {
	Ranges   []Range // one per enabled family, IPv4 first
	NFTables bool    // EnableNFTables
	Backend  Backend
}

// A Range is what one address family has to lease: subnets of SubnetLen bits
// from Min to Max, both inclusive network addresses of such subnets.
type Range struct {
	Network   netip.Prefix
	SubnetLen int
	Min, Max  netip.Addr
}

// Backend says how packets reach other nodes.
type Backend struct {
	Type          string // TypeVXLAN or TypeHostGW; of the latter there is MTU alone
	VNI           uint32 // 1 if not given; 24 bits
	Port          uint16 // 8472 if not given
	MTU           int    // bytes; 0: the underlay's, less the overhead of a tunnel
	DirectRouting bool
	Learning      bool
	GBP           bool
}

// The types of Backend: how packets reach other nodes.
const (
	TypeVXLAN  = "vxlan"   // encapsulated
	TypeHostGW = "host-gw" // by plain routes via the other node, which is on the same link
)

const (
	defaultVNI  = 1
	defaultPort = 8472      // the Linux kernel's, and flannel's; not IANA's 4789
	maxVNI      = 1<<24 - 1 // RFC 7348, section 5

	minMTU4 = 576  // RFC 791: what every host must accept
	minMTU6 = 1280 // RFC 8200, section 5
	maxMTU  = 65535
)

// rawConfig is a configuration as written: nil is a key that was not given, or
// null.
type rawConfig struct {
	enableIPv4, enableIPv6, nftables *bool
	v4, v6                           rawRange
	backend                          *json.RawMessage
}

// rawRange is one family's keys as written.
type rawRange struct {
	network, min, max *string
	length            *int64
}

// ParseConfig reads the network's configuration from JSON, strictly: an unknown
// key or a value that makes no sense is an error that names the key, the value
// and what was expected. Keys match without regard to case, as flannel's do.
// What is said of a family that is not enabled is ignored. The first subnet of
// a network is not leased unless SubnetMin says so, as in flannel: its first
// address is the network's own. A Backend that names no Type is "vxlan".
func ParseConfig(data []byte) (Config, error) {
	cfg, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("network configuration: %w", err)
	}
	return cfg, nil
}

func parseConfig(data []byte) (Config, error) {
	members, err := parseObject(data)
	if err != nil {
		return Config{}, err
	}
	var raw rawConfig
	if err := fill(members, []field{
		{"Network", &raw.v4.network}, {"IPv6Network", &raw.v6.network},
		{"EnableIPv4", &raw.enableIPv4}, {"EnableIPv6", &raw.enableIPv6},
		{"SubnetLen", &raw.v4.length}, {"SubnetMin", &raw.v4.min}, {"SubnetMax", &raw.v4.max},
		{"IPv6SubnetLen", &raw.v6.length}, {"IPv6SubnetMin", &raw.v6.min}, {"IPv6SubnetMax", &raw.v6.max},
		{"EnableNFTables", &raw.nftables}, {"Backend", &raw.backend},
	}, "", true); err != nil {
		return Config{}, err
	}

	cfg := Config{NFTables: or(raw.nftables, false)}
	enable4, enable6 := or(raw.enableIPv4, true), or(raw.enableIPv6, false)
	if !enable4 && !enable6 {
		return Config{}, fmt.Errorf("EnableIPv4 false and EnableIPv6 false: want at least one true")
	}
	if enable4 {
		r, err := family4.parse(raw.v4)
		if err != nil {
			return Config{}, err
		}
		cfg.Ranges = append(cfg.Ranges, r)
	}
	if enable6 {
		r, err := family6.parse(raw.v6)
		if err != nil {
			return Config{}, err
		}
		cfg.Ranges = append(cfg.Ranges, r)
	}
	if cfg.Backend, err = parseBackend(raw.backend, enable6); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// or returns what p points to, or def if the key was not given.
func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

func parseBackend(raw *json.RawMessage, ipv6 bool) (Backend, error) {
	var members []member
	if raw != nil {
		var err error
		if members, err = parseObject(*raw); err != nil {
			return Backend{}, fmt.Errorf("Backend: %w", err)
		}
	}
	var kind *string
	var vni, port, mtu *int64
	var direct, learning, gbp *bool
	if err := fill(members, []field{
		{"Type", &kind}, {"VNI", &vni}, {"Port", &port}, {"MTU", &mtu},
		{"DirectRouting", &direct}, {"Learning", &learning}, {"GBP", &gbp},
	}, "Backend.", true); err != nil {
		return Backend{}, err
	}

	bytes := or(mtu, 0)
	if err := checkMTU(bytes, ipv6); bytes != 0 && err != nil {
		return Backend{}, fmt.Errorf("Backend.MTU %w, or 0 to follow the underlay", err)
	}
	switch t := or(kind, TypeVXLAN); {
	case strings.EqualFold(t, TypeHostGW):
		if err := noTunnel(members); err != nil {
			return Backend{}, err
		}
		return Backend{Type: TypeHostGW, MTU: int(bytes)}, nil
	case !strings.EqualFold(t, TypeVXLAN):
		return Backend{}, fmt.Errorf("Backend.Type %s: want %q or %q", quote(t), TypeVXLAN, TypeHostGW)
	}
	id := or(vni, defaultVNI)
	if id == 0 {
		id = defaultVNI // flannel's way to say "not given"
	}
	if id < 1 || id > maxVNI {
		return Backend{}, fmt.Errorf("Backend.VNI %d: want 1 to %d", id, maxVNI)
	}
	udp := or(port, defaultPort)
	if udp < 1 || udp > 65535 {
		return Backend{}, fmt.Errorf("Backend.Port %d: want 1 to 65535", udp)
	}
	return Backend{
		Type: TypeVXLAN, VNI: uint32(id), Port: uint16(udp), MTU: int(bytes),
		DirectRouting: or(direct, false), Learning: or(learning, false), GBP: or(gbp, false),
	}, nil
}

// noTunnel wants none of the keys of Backend that only a tunnel has.
func noTunnel(members []member) error {
	for _, m := range members {
		if !strings.EqualFold(m.key, "Type") && !strings.EqualFold(m.key, "MTU") && string(m.value) != "null" {
			return fmt.Errorf("%s: %q has no such thing, want it left out", "Backend."+m.key, TypeHostGW)
		}
	}
	return nil
}

// checkMTU says whether pods of the enabled families can work with an MTU.
func checkMTU(mtu int64, ipv6 bool) error {
	switch {
	case ipv6 && (mtu < minMTU6 || mtu > maxMTU):
		return fmt.Errorf("%d: want %d to %d bytes with IPv6", mtu, minMTU6, maxMTU)
	case mtu < minMTU4 || mtu > maxMTU:
		return fmt.Errorf("%d: want %d to %d bytes", mtu, minMTU4, maxMTU)
	}
	return nil
}

// configJSON is the written form of a Config, with every default spelt out.
type configJSON struct {
	Network        string      `json:",omitempty"`
	IPv6Network    string      `json:",omitempty"`
	EnableIPv4     bool        // flannel's default is true, so it must be said
	EnableIPv6     bool        `json:",omitempty"`
	SubnetLen      int         `json:",omitempty"`
	SubnetMin      string      `json:",omitempty"`
	SubnetMax      string      `json:",omitempty"`
	IPv6SubnetLen  int         `json:",omitempty"`
	IPv6SubnetMin  string      `json:",omitempty"`
	IPv6SubnetMax  string      `json:",omitempty"`
	EnableNFTables bool        `json:",omitempty"`
	Backend        backendJSON // as Backend, less what is not said
}

type backendJSON struct {
	Type          string
	VNI           uint32 `json:",omitempty"` // never 0 of a tunnel
	Port          uint16 `json:",omitempty"`
	MTU           int    `json:",omitempty"`
	DirectRouting bool   `json:",omitempty"`
	Learning      bool   `json:",omitempty"`
	GBP           bool   `json:",omitempty"`
}

// MarshalJSON writes flannel's keys, which ParseConfig and flannel read.
func (c Config) MarshalJSON() ([]byte, error) {
	out := configJSON{EnableNFTables: c.NFTables, Backend: backendJSON(c.Backend)}
	for _, r := range c.Ranges {
		network, low, high := r.Network.String(), r.Min.String(), r.Max.String()
		if r.Network.Addr().Is4() {
			out.EnableIPv4, out.Network, out.SubnetLen, out.SubnetMin, out.SubnetMax = true, network, r.SubnetLen, low, high
		} else {
			out.EnableIPv6, out.IPv6Network, out.IPv6SubnetLen, out.IPv6SubnetMin, out.IPv6SubnetMax = true, network, r.SubnetLen, low, high
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON is ParseConfig.
func (c *Config) UnmarshalJSON(data []byte) (err error) {
	*c, err = ParseConfig(data)
	return err
}

// network returns the pod network of a family and whether it is enabled.
func (c Config) network(is4 bool) (netip.Prefix, bool) {
	for _, r := range c.Ranges {
		if r.Network.Addr().Is4() == is4 {
			return r.Network, true
		}
	}
	return netip.Prefix{}, false
}
