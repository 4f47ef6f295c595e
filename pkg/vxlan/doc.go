// Package vxlan keeps one VXLAN device in step with the peers of an overlay.
//
// Peers say who is reachable and where; Desired turns them into the State that
// the kernel should hold; Diff compares that with the State that it does hold;
// Reconcile makes the one into the other. A Device is the kernel's side of it,
// a Monitor tells what others changed and what the kernel asks for (misses).
package vxlan
