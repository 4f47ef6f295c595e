// Package migrate takes a node over from another pod network while its pods run.
//
// A Flannel says where flannel and its chain of plugins (bridge, host-local) keep
// their state. Plan reads all of it, and compares its parts with each other: what
// does not fit is a Problem, and then nothing is done. Apply enters the addresses
// that host-local gave out into our slot file, so that none is given twice.
// The lease, the device and the bridge are taken over by overlayd, when it is
// started with the flags that the Plan names.
//
// Nothing of flannel's is written or removed: it can be started again.
package migrate
