// Package kube is a subnet.Manager on Kubernetes Nodes.
//
// Who holds which subnet is not decided here: the controller-manager writes
// spec.podCIDRs, and Acquire takes what is there. The rest of a lease stands in
// annotations of the Node, in flannel's format:
//
//	flannel.alpha.coreos.com/kube-subnet-manager: "true"
//	flannel.alpha.coreos.com/backend-type: vxlan
//	flannel.alpha.coreos.com/backend-data: {"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}
//	flannel.alpha.coreos.com/public-ip: 192.0.2.7
//	flannel.alpha.coreos.com/mtu: "1450"     (ours; flannel ignores it)
//	flannel.alpha.coreos.com/schema: "1"     (ours)
//
// and backend-v6-data and public-ipv6 for an IPv6 underlay. The operator's
// public-ip-overwrite and public-ipv6-overwrite are honoured, as by flannel.
//
// Of a Node only name, age, podCIDRs and these annotations are kept in memory,
// and only if it has a lease. Nodes are read as a stream where the API server
// can do that (1.32 and later do by default), so that never all of them are in
// memory as the server sends them. A Manager writes by patches that name only
// what changes and the revision that it was seen at. A Node's lease has no end:
// it goes with the Node.
//
// While the API server cannot be reached, or refuses, every method waits: it
// says so at once and every 30 s, and comes back by itself. That the server was
// restarted, wiped, has forgotten revisions, lost the Node, or that somebody changed
// the annotations, never ends Run.
//
// # Rights
//
// These are all that is needed; flannel's manifests give the first two as well:
//
//	nodes         get, list, watch
//	nodes/status  patch             (annotations, and the condition NetworkUnavailable)
//	events        create, patch     (flannel's manifests lack it; without it nothing is reported)
//
// With Options.StartupTaint also nodes patch, for a taint is no status.
package kube
