// Package rtnl is one rtnetlink socket that sends changes in batches.
//
// A batch is one sendmsg: the kernel carries out every message in turn, and
// only failures and the last message are answered. A thousand routes so cost a
// dozen system calls instead of two thousand. pkg/vxlan and pkg/pod, which may
// not know of each other, both write to the kernel through it.
package rtnl
