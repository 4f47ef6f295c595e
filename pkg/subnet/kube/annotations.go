package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// Names of the annotations, after the prefix. All but the last two are
// flannel 0.28's (pkg/subnet/kube/annotations.go).
const (
	managed        = "kube-subnet-manager"
	backendType    = "backend-type"
	backendData    = "backend-data"
	backendV6Data  = "backend-v6-data"
	publicIP       = "public-ip"
	publicIPv6     = "public-ipv6"
	overwriteIP    = "public-ip-overwrite" // the operator's
	overwriteIPv6  = "public-ipv6-overwrite"
	mtuAnnotation  = "mtu"
	schemaVersion  = "schema"
	managedByAgent = "true" // value of managed
)

// annotations knows the full names.
type annotations struct{ prefix string }

// written are the names that Acquire may write.
func written() []string {
	return []string{managed, backendType, backendData, backendV6Data, publicIP, publicIPv6, mtuAnnotation, schemaVersion}
}

// wanted says whether an annotation means anything here.
func (a annotations) wanted(key string) bool {
	if key == metav1.InitialEventsAnnotationKey {
		return true
	}
	name, ok := strings.CutPrefix(key, a.prefix)
	return ok && (slices.Contains(written(), name) || name == overwriteIP || name == overwriteIPv6)
}

// recordJSON is a record as subnet.EncodeRecord writes it.
type recordJSON struct {
	PublicIP      string          `json:",omitempty"`
	PublicIPv6    string          `json:",omitempty"`
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	Node          string          `json:",omitempty"`
	Schema        json.RawMessage `json:",omitempty"`
	MTU           json.RawMessage `json:",omitempty"`
}

// encode returns what the annotations must be, by full name: nil for those that
// must not be there.
func (a annotations) encode(l subnet.Lease) (map[string]*string, error) {
	data, err := subnet.EncodeRecord(l)
	if err != nil {
		return nil, err
	}
	var r recordJSON
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	if r.PublicIP == netip.IPv4Unspecified().String() {
		r.PublicIP = "" // only etcd's form needs it
	}
	want := map[string]*string{}
	for name, value := range map[string]string{
		managed: managedByAgent, backendType: r.BackendType,
		backendData: string(r.BackendData), publicIP: r.PublicIP,
		backendV6Data: string(r.BackendV6Data), publicIPv6: r.PublicIPv6,
		mtuAnnotation: string(r.MTU), schemaVersion: string(r.Schema),
	} {
		want[a.prefix+name] = nil
		if value != "" {
			want[a.prefix+name] = &value
		}
	}
	if l.Backend == subnet.TypeHostGW { // etcd's form leaves it out
		none := "null"
		for address, data := range map[string]string{publicIP: backendData, publicIPv6: backendV6Data} {
			if want[a.prefix+address] != nil {
				want[a.prefix+data] = &none
			}
		}
	}
	return want, nil
}

// changes returns the part of want that a Node does not have.
func changes(have map[string]string, want map[string]*string) map[string]*string {
	diff := map[string]*string{}
	for key, w := range want {
		if h, ok := have[key]; (w == nil) == ok || w != nil && h != *w {
			diff[key] = w
		}
	}
	return diff
}

// decode reads a Node's lease. It reports false if the Node has none: no
// flannel and none of us has been there.
func (a annotations) decode(cfg subnet.Config, n *node) (subnet.Record, bool) {
	if n.Annotations[a.prefix+managed] != managedByAgent {
		return subnet.Record{}, false
	}
	r := subnet.Record{Key: key(n.Name)}
	subnets, err := podCIDRs(n)
	if err == nil {
		r.Lease, err = a.decodeLease(n)
	}
	r.Lease.Subnets, r.Err = enabled(cfg, subnets), err
	if err == nil && len(r.Lease.Subnets) == 0 {
		r.Err = fmt.Errorf("spec.podCIDRs %q: want one inside the pod network", n.Spec.PodCIDRs)
	}
	r.Lease.Revision, r.Lease.Created = revision(n.ResourceVersion), n.CreationTimestamp.Unix()
	r.Lease.Since = since(n)
	return r, true
}

// since is when a Node was registered: it gets its subnets then, and for good.
func since(n *node) time.Time { return n.CreationTimestamp.UTC() }

func (a annotations) decodeLease(n *node) (subnet.Lease, error) {
	get := func(name string) string { return n.Annotations[a.prefix+name] }
	for _, name := range []string{backendData, backendV6Data, mtuAnnotation, schemaVersion} {
		if v := get(name); v != "" && !json.Valid([]byte(v)) {
			return subnet.Lease{}, fmt.Errorf("annotation %s%s %s: want JSON", a.prefix, name, quote(v))
		}
	}
	data, err := json.Marshal(recordJSON{
		PublicIP: get(publicIP), PublicIPv6: get(publicIPv6), BackendType: get(backendType),
		BackendData: raw(get(backendData)), BackendV6Data: raw(get(backendV6Data)),
		Node: n.Name, Schema: raw(get(schemaVersion)), MTU: raw(get(mtuAnnotation)),
	})
	if err != nil {
		return subnet.Lease{}, err
	}
	return subnet.DecodeRecord(data)
}

func raw(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// key is how a Node is named where people read of records.
func key(name string) string { return "nodes/" + name }

// revision reads a resourceVersion, which is a number that grows: Kubernetes
// 1.35 and later promise it, and the older ones on etcd do it.
func revision(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// podCIDRs reads a Node's subnets, one per family, IPv4 first. None is no error.
func podCIDRs(n *node) ([]netip.Prefix, error) {
	texts := n.Spec.PodCIDRs
	if len(texts) == 0 && n.Spec.PodCIDR != "" {
		texts = []string{n.Spec.PodCIDR}
	}
	var list []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("spec.podCIDRs %s: want a subnet such as 10.244.1.0/24", quote(t))
		}
		list = append(list, p)
	}
	if len(list) > 2 || len(list) == 2 && list[0].Addr().Is4() == list[1].Addr().Is4() {
		return nil, fmt.Errorf("spec.podCIDRs %s: want one per address family", list)
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return list, nil
}

// enabled leaves out families that the network does not use: a cluster may be
// dual-stack and its pod network not.
func enabled(cfg subnet.Config, subnets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(subnets), func(s netip.Prefix) bool {
		return !slices.ContainsFunc(cfg.Ranges, func(r subnet.Range) bool {
			return r.Network.Addr().Is4() == s.Addr().Is4()
		})
	})
}

// assigned returns the subnets that the own Node has for every enabled family.
func assigned(cfg subnet.Config, n *node) ([]netip.Prefix, error) {
	all, err := podCIDRs(n)
	if err != nil {
		return nil, err
	}
	list := enabled(cfg, all)
	for _, r := range cfg.Ranges {
		i := slices.IndexFunc(list, func(s netip.Prefix) bool { return s.Addr().Is4() == r.Network.Addr().Is4() })
		switch {
		case i < 0:
			return nil, fmt.Errorf("spec.podCIDRs %s: want one inside %s too, as the network configuration has it", all, r.Network)
		case list[i].Bits() < r.Network.Bits() || !r.Network.Contains(list[i].Addr()):
			return nil, fmt.Errorf("spec.podCIDRs %s: %s is outside the pod network, want it inside %s", all, list[i], r.Network)
		}
	}
	return list, nil
}

// overwrite puts the addresses in that the operator asks for by annotation.
func (a annotations) overwrite(n *node, vteps []subnet.VTEP) ([]subnet.VTEP, error) {
	vteps = slices.Clone(vteps)
	for name, is4 := range map[string]bool{overwriteIP: true, overwriteIPv6: false} {
		text := n.Annotations[a.prefix+name]
		if text == "" {
			continue
		}
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Is4() != is4 || addr.Is4In6() {
			return nil, fmt.Errorf("annotation %s%s %s: want an address of its family", a.prefix, name, quote(text))
		}
		for i := range vteps {
			if vteps[i].Underlay.Is4() == is4 {
				vteps[i].Underlay = addr
			}
		}
	}
	return vteps, nil
}

// quote quotes foreign text for an error, cut so that a log line stays one.
func quote(s string) string {
	const longest = 64
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return strconv.Quote(s)
}
