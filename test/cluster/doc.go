// Package cluster is a lab with everything in it: nodes from netlab, a real
// etcd, overlayd on each node, and pods that libcni attaches with the real
// vxlan-cni.
//
// The demo, the end-to-end tests and the benchmarks stand on it. It is in the
// module of the tests because etcd's server and libcni bring more than the
// product may link.
package cluster
