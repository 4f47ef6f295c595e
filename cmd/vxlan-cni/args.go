package main

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// envArgs is what CNI_ARGS says.
type envArgs struct {
	Pod  string // namespace/name; empty if not given
	Want wanted
}

// parseArgs reads CNI_ARGS: pairs KEY=value, separated by semicolons, in any
// order. A key that is unknown is an error unless IgnoreUnknown=1 is among them.
func parseArgs(text string) (a envArgs, err error) {
	var namespace, name string
	var unknown []string
	ignore := types.UnmarshallableBool(false)
	for pair := range strings.SplitSeq(text, ";") {
		key, value, ok := strings.Cut(pair, "=")
		switch {
		case pair == "":
			continue
		case !ok || key == "":
			return envArgs{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %q: want KEY=value", pair)
		}
		switch key {
		case "IgnoreUnknown":
			err = ignore.UnmarshalText([]byte(value))
		case "K8S_POD_NAMESPACE":
			namespace, err = value, checkName(value)
		case "K8S_POD_NAME":
			name, err = value, checkName(value)
		case "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID":
		case "MAC":
			if value != "" {
				a.Want.MAC, err = parseMAC(value)
			}
		case "IP":
			err = a.Want.parseAddrs(value)
		default:
			unknown = append(unknown, key)
		}
		if err != nil {
			return envArgs{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %s: %w", key, err)
		}
	}
	if len(unknown) > 0 && !bool(ignore) {
		return envArgs{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: unknown keys %q; want IP, MAC, K8S_POD_… or IgnoreUnknown=1", unknown)
	}
	if namespace != "" && name != "" {
		a.Pod = namespace + "/" + name
	}
	return a, nil
}

// checkName refuses what does not fit into a link's alias, before there is anything
// to take back. No name of Kubernetes has it.
func checkName(name string) error {
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("%q: want a name without white space", name)
	}
	return nil
}

// parseAddrs reads addresses, separated by commas.
func (w *wanted) parseAddrs(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		a, err := parseAddr(part)
		if err != nil {
			return err
		}
		w.Addrs = append(w.Addrs, a)
	}
	return nil
}
