package migrate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A subnetEnv is flannel's /run/flannel/subnet.env.
type subnetEnv struct {
	networks []netip.Prefix // one per family, IPv4 first
	gateways []netip.Prefix // the bridge's address in each of the node's subnets
	mtu      int
	masq     bool
}

// parseSubnetEnv reads lines KEY=value; keys that it does not know are left
// alone. Source: flannel 0.28, pkg/subnet/subnet.go, WriteSubnetFile: the subnet
// stands there with its first usable address, 10.244.7.1/24.
func parseSubnetEnv(text string) (e subnetEnv, problems []Problem) {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = value
		}
	}
	for _, family := range []struct {
		network, subnet, example string
		is4                      bool
	}{
		{"FLANNEL_NETWORK", "FLANNEL_SUBNET", "10.244.7.1/24", true},
		{"FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET", "fd00:244:0:7::1/64", false},
	} {
		value, ok := values[family.subnet]
		if !ok {
			continue
		}
		g, gerr := netip.ParsePrefix(value)
		n, nerr := networkOf(values[family.network], g)
		switch {
		case gerr != nil || g.Addr().Is4() != family.is4 || g.Addr() != g.Masked().Addr().Next():
			problems = append(problems, Problem{family.subnet, value, "the subnet with its first address, such as " + family.example})
		case nerr != nil || n.Addr().Is4() != family.is4:
			problems = append(problems, Problem{family.network, values[family.network], "the pod network that has " + value})
		case !n.Contains(g.Addr()) || n.Bits() > g.Bits():
			problems = append(problems, Problem{family.subnet, value, fmt.Sprintf("a subnet of %s %s", family.network, n)})
		default:
			e.networks, e.gateways = append(e.networks, n.Masked()), append(e.gateways, g)
		}
	}
	if len(e.gateways) == 0 && len(problems) == 0 {
		problems = append(problems, Problem{"FLANNEL_SUBNET", "", "the subnet with its first address, such as 10.244.7.1/24"})
	}
	var err error
	if e.mtu, err = strconv.Atoi(values["FLANNEL_MTU"]); err != nil || e.mtu < 576 || e.mtu > 65535 {
		problems = append(problems, Problem{"FLANNEL_MTU", values["FLANNEL_MTU"], "576 to 65535"})
	}
	e.masq = values["FLANNEL_IPMASQ"] == "true"
	return e, problems
}

// networkOf picks, of networks separated by commas, the one that has the subnet,
// or else the first.
func networkOf(list string, subnet netip.Prefix) (first netip.Prefix, err error) {
	for i, text := range strings.Split(list, ",") {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		if i == 0 || n.Contains(subnet.Addr()) {
			first = n
		}
	}
	return first, nil
}

// subnets are the node's, without the host part.
func (e subnetEnv) subnets() (list []netip.Prefix) {
	for _, g := range e.gateways {
		list = append(list, g.Masked())
	}
	return list
}
