package kubelab

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Machine is what a lab could change of the machine and must not: its network,
// its rules, and the settings of the whole kernel. It is text to compare.
func Machine() (string, error) {
	var b strings.Builder
	paths := append(slices.Sorted(maps.Keys(settings)), "net/netfilter/nf_conntrack_max",
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet")
	for _, path := range paths {
		value, err := os.ReadFile("/proc/sys/" + path)
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		fmt.Fprintf(&b, "%s = %s\n", path, strings.TrimSpace(string(value)))
	}
	for _, argv := range [][]string{
		{"ip", "-o", "-br", "link"}, {"ip", "-4", "route"}, {"ip", "-6", "route"}, {"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
		fmt.Fprintf(&b, "%s:\n%s", strings.Join(argv, " "), out)
	}
	return b.String(), nil
}
