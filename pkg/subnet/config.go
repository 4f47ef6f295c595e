package subnet

import "net/netip"

// Config is the network's configuration, the same on every node.
//
// Its JSON form has flannel's keys: Network, IPv6Network, EnableIPv4 (true),
// EnableIPv6, SubnetLen (24, or two more than the network's if that is longer
// than /22), SubnetMin, SubnetMax, IPv6SubnetLen (64), IPv6SubnetMin,
// IPv6SubnetMax, EnableNFTables, Backend {Type, VNI, Port, MTU, DirectRouting,
// Learning, GBP}.
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
	Type          string // "vxlan"
	VNI           uint32 // 1 if not given; 24 bits
	Port          uint16 // 8472 if not given
	MTU           int    // bytes; 0: the underlay's less the overhead
	DirectRouting bool
	Learning      bool
	GBP           bool
}
