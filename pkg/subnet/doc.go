// Package subnet says who owns which subnet.
//
// A node holds a Lease: one pod subnet per address family and the tunnel
// endpoints (VTEPs) that serve them. Leases live in a store behind a Manager
// (see the packages etcd and subnettest); the network's Config lives beside
// them. What a node's CNI plugin has to know of its lease is in the NodeFile.
//
// Nothing here touches the kernel or the network: parsing, choosing and
// checking are pure, so that every rule is tested without a store.
package subnet
