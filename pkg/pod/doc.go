// Package pod attaches pods to a node's bridge: the bridge itself, a veth pair
// for each pod, its addresses, routes and the gateway's neighbour entry, all by
// netlink and without a process of its own.
//
// Nothing is remembered outside the kernel. The node's end of a pair has a name
// that follows from container id and interface name, our link group, and an
// alias that says whose it is; so a pair can be found and removed with no state
// at all, and List tells the pods of a node from its links.
//
// The interface of a pod that is attached needs no daemon: its gateway's
// neighbour entry is permanent, and the bridge's MAC follows from its address.
package pod
