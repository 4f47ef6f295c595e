package node

import (
	"fmt"
	"net/netip"

	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
)

// ParseFirewall reads the value of --firewall.
func ParseFirewall(s string) (firewall.Mode, error) { return firewall.ParseMode(s) }

// rules are what the firewall should do.
func (l *loop) rules() firewall.Rules {
	r := firewall.Rules{
		Networks: l.networks(), Subnets: l.snapshot.Own.Subnets,
		Masquerade: l.cfg.Masquerade, Forward: true,
	}
	if l.tunnels() {
		r.Port, r.Filter, r.Peers = l.network.Backend.Port, l.cfg.PeerFilter, l.underlaysOfPeers()
	}
	return r
}

// underlaysOfPeers are the addresses that VXLAN may come from: also those of peers
// whose lease vanished, as long as they are kept.
func (l *loop) underlaysOfPeers() (all []netip.Addr) {
	for _, lease := range l.leases {
		for _, v := range lease.VTEPs {
			all = append(all, v.Underlay)
		}
	}
	return all
}

// ensureFirewall makes the rules right, and returns what was changed, in words.
func (l *loop) ensureFirewall() ([]string, error) {
	did, err := l.firewall.Ensure(l.rules())
	if err != nil {
		return did, fmt.Errorf("firewall: %w", err)
	}
	return did, nil
}
