// Package node joins the rooms to a daemon: leases become peers, peers become
// the kernel's state, and one loop owns that kernel.
//
// Run wires the tasks; loop.go is the one goroutine that writes to the kernel;
// everything else asks it (loop.do) or reads files.
package node
