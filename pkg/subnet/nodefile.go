package subnet

import "net/netip"

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
}

// NodeFileSchema is the version of the format that this code reads and writes.
const NodeFileSchema = 1

// NodeFileName is the file's name inside the run folder.
const NodeFileName = "node.json"

// RunDir is the run folder unless configured otherwise. It must not survive a
// reboot.
const RunDir = "/run/vxlan-cni"
