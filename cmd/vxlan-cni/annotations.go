package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// annotationPrefix begins the keys of a pod's annotations that are ours.
	annotationPrefix = "overlay.vxlan-cni.io/"

	annotationIPs = annotationPrefix + "ips" // addresses, separated by commas
	annotationMAC = annotationPrefix + "mac"

	// annotated is the interface that a pod's annotations are about: that of the
	// cluster's network. Another one of the pod could not have the same addresses.
	annotated = "eth0"
)

// parseAnnotations reads the pod's annotations, which runtimes hand over where the
// list has their capability. A key of ours that is unknown is an error, for what
// it asks for would silently not happen. Who writes a pod chooses them: they ask
// for what a pod may have, and never switch off what holds it back.
func parseAnnotations(data json.RawMessage) (w wanted, err error) {
	var all map[string]string
	if len(data) == 0 {
		return wanted{}, nil
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return wanted{}, fail(types.ErrInvalidNetworkConfig, "runtimeConfig.%s: %w", annotationsCapability, err)
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		value := all[key]
		if !strings.HasPrefix(key, annotationPrefix) {
			continue
		}
		switch key {
		case annotationIPs:
			err = w.parseAddrs(strings.ReplaceAll(value, " ", ""))
		case annotationMAC:
			if value != "" {
				w.MAC, err = parseMAC(value)
			}
		default:
			return wanted{}, fail(types.ErrUnsupportedField, "annotation %s: %q: unknown; want %s or %s", key, value, annotationIPs, annotationMAC)
		}
		if err != nil {
			return wanted{}, fail(types.ErrInvalidNetworkConfig, "annotation %s: %w", key, err)
		}
	}
	return w, nil
}
