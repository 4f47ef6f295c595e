package subnet

import (
	"context"
	"errors"
	"net/netip"
)

// What stands in the way of ending another node's lease.
var (
	ErrNoLease  = errors.New("the node holds no lease")
	ErrChanged  = errors.New("the lease has changed meanwhile")
	ErrReserved = errors.New("the lease is a reservation, held without end")
)

// A Manager keeps leases in a store. One Manager serves one node.
//
// Every write is a compare-and-swap on revision and owner, so no Manager ever
// overwrites the lease of another node.
type Manager interface {
	// Config reads the network's configuration. While the store cannot be
	// reached or holds none, it waits, until ctx ends.
	Config(ctx context.Context) (Config, error)

	// Acquire leases subnets to the node, or updates the lease that it has.
	// It is idempotent: the same node gets the same subnets again whenever
	// nobody else holds them. It waits while the store cannot be reached,
	// until ctx ends.
	Acquire(ctx context.Context, want Request) (Lease, error)

	// Run keeps the acquired lease alive and calls fn with the whole picture
	// now and after each change, never concurrently; newest wins, so several
	// changes may come as one. A lease that the store lost is acquired again,
	// the same subnets first. It returns nil when ctx ends, and the leases stay.
	Run(ctx context.Context, fn func(Snapshot)) error
}

// A Request is what a node wants leased.
type Request struct {
	Node  string         // stable node id, required
	Want  []netip.Prefix // subnets to prefer, such as those held before; may be empty
	VTEPs []VTEP         // one per underlay family, IPv4 first; at least one
	MTU   int            // bytes; what the node's pods may send in one packet
}

// A Snapshot is everything that the store says at one revision.
type Snapshot struct {
	Own      Lease     // the node's own lease
	Peers    []Lease   // all others that passed Config.Check, sorted by first subnet
	Ignored  []Ignored // records that must not reach the kernel, and why
	Revision int64     // store revision
}

// Ignored is a record that was read but not believed.
type Ignored struct {
	Key      string // where it is stored
	Reason   string // field, value and what was expected
	Conflict bool   // it makes sense by itself, but somebody else holds what it names
}
