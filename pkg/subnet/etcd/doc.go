// Package etcd is a subnet.Manager on etcd v3.
//
// Keys and values are flannel's, see subnet.Key and subnet.EncodeRecord:
//
//	/coreos.com/network/config                 the network's configuration
//	/coreos.com/network/subnets/10.5.52.0-24   one record per node
//
// A record hangs on an etcd lease, which the Manager keeps alive; one that
// hangs on none is a reservation and stays one. A Manager writes only by
// transactions that compare revisions, so it never overwrites another node's
// record.
//
// While etcd cannot be reached, or refuses, every method waits: it says so at
// once and every 30 s, and comes back by itself. That etcd was restarted,
// compacted, wiped, or that somebody deleted the record, never ends Run.
package etcd
