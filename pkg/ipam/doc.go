// Package ipam says which pod holds which address of the node's subnet.
//
// All of it is one preallocated file of fixed-size slots for each subnet that
// the node leases, <run folder>/slots-10.244.1.0-24. Slot i is the address
// base+i of every family, so that one record gives a pod all its addresses.
// The file lies in a run folder: a reboot ends it together with the pods.
//
// # Who may do what at the same time
//
// Any number of processes and goroutines. An operation takes the file's flock,
// reads the whole file, chooses, writes one record with one pwrite and lets
// go. No record crosses a page, so a kill -9 leaves it either old or new, and
// the kernel drops a dead process's lock. Nothing is synced to disk: the page
// cache outlives every process, and only that is needed.
//
// A new file is built under another name, complete, and renamed; creators
// take turns by a flock on the folder. A file is removed under its own lock,
// and whoever gets a lock looks whether the path still leads to the file that
// it locked.
//
// # Which address
//
// Slots never used come first, then the one released longest ago; a released
// slot rests for [Rest] before it is given again, so that nobody's caches
// still mean the last pod. A slot is written before the pod has a link:
// whatever kills the plugin, what it took can be found again (see [Retain]).
//
// Where the lease of only one family moved, or its length changed, an old file
// and the new one share addresses; what the old one's pods have, the new does
// not give.
//
// # Taking over
//
// [Pool.Import] enters addresses that another plugin gave out before, all of
// them or none. Such a slot is held like any other, and marked: whoever frees
// slots without a link of ours has to know that it never had one. A slot of which
// two pods have an address each is entered under a key of its own ([Key.Owners]).
//
// # Damage
//
// Every record bears a CRC32C. Whatever is wrong with a file (torn, truncated
// or foreign), each operation on it ends with a [CorruptError] before anything
// is written, also one that could do without the bad record: that may hold the
// very key or address which is asked for, and what made it may have spoilt
// more. The other files of the folder are still listed, released from and, if it
// is that of the node's subnets, acquired from: an address that the bad file
// shares with it, because the lease of one family stayed, may then be given
// twice, so [Pool.Warn] says it. Import, which can wait, refuses. The remedy is to drain the node and delete the file.
package ipam
