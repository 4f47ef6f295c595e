// Package firewall keeps the node's packet filter as the overlay needs it.
//
// Rules say what should be; chains turns them into one list of rules, which two
// back ends carry out: nftables by netlink, in one table of our own, and
// iptables, in chains of our own. A Firewall compares with what the kernel holds
// and changes what differs; it tells when somebody else changed ours.
package firewall
