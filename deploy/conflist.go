// Package deploy is what a node needs besides the binaries. What programs need of
// it is embedded here; the rest of this folder is for people and clusters.
package deploy

import _ "embed"

// ConflistName is the file's name in the runtime's configuration folder. The
// first one there by name counts, so it stands before what distributions ship.
const ConflistName = "05-vxlan-cni.conflist"

// Conflist is the CNI network configuration list that overlayd writes unless it
// is given another: our plugin, then portmap and bandwidth.
//
//go:embed 05-vxlan-cni.conflist
var Conflist []byte
