package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

const (
	config4  = `{"Network":"10.244.0.0/16"}`
	config46 = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`
	configGW = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}`
)

var notes = annotations{DefaultAnnotationPrefix + "/"}

func parse(t testing.TB, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// aNode is a Node with podCIDRs and annotations less their prefix.
func aNode(podCIDRs []string, annotated map[string]string) *node {
	n := &node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", ResourceVersion: "42", Annotations: map[string]string{}}}
	n.Spec.PodCIDRs = podCIDRs
	for name, value := range annotated {
		n.Annotations[notes.prefix+name] = value
	}
	return n
}

// flannelNode is what flannel 0.28 leaves on a Node.
func flannelNode() map[string]string {
	return map[string]string{
		managed: "true", backendType: "vxlan", publicIP: "192.0.2.7",
		backendData: `{"VNI":1,"VtepMAC":"8a:11:22:33:44:55"}`,
	}
}

func with(base map[string]string, pairs ...string) map[string]string {
	m := maps.Clone(base)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestFlannelsNodeIsUnderstood(t *testing.T) {
	r, ok := notes.decode(parse(t, config4), aNode([]string{"10.244.7.0/24"}, flannelNode()))
	if !ok || r.Err != nil {
		t.Fatalf("%v %+v", ok, r)
	}
	l := r.Lease
	if l.Node != "node-1" || l.MTU != 0 || l.Backend != "vxlan" || l.Revision != 42 || l.Subnets[0].String() != "10.244.7.0/24" ||
		len(l.VTEPs) != 1 || l.VTEPs[0].Underlay.String() != "192.0.2.7" || l.VTEPs[0].MAC.String() != "8a:11:22:33:44:55" || l.VTEPs[0].VNI != 1 {
		t.Errorf("got %+v", l)
	}
	dual := with(flannelNode(), publicIPv6, "2001:db8::7", backendV6Data, `{"VNI":1,"VtepMAC":"8a:11:22:33:44:66"}`)
	r, ok = notes.decode(parse(t, config46), aNode([]string{"fd00:244:0:7::/64", "10.244.7.0/24"}, dual))
	if !ok || r.Err != nil || len(r.Lease.VTEPs) != 2 || len(r.Lease.Subnets) != 2 || !r.Lease.Subnets[0].Addr().Is4() {
		t.Errorf("dual stack: %v %+v", ok, r)
	}
	// A network of one family leaves the other's subnet alone.
	r, _ = notes.decode(parse(t, config4), aNode([]string{"10.244.7.0/24", "fd00:244:0:7::/64"}, dual))
	if r.Err != nil || len(r.Lease.Subnets) != 1 {
		t.Errorf("dual-stack Node, IPv4 network: %+v", r)
	}
}

func TestNodesWithoutLease(t *testing.T) {
	for name, annotated := range map[string]map[string]string{
		"none":        nil,
		"not managed": with(flannelNode(), managed, "false"),
		"only more":   {overwriteIP: "192.0.2.1"},
	} {
		if r, ok := notes.decode(parse(t, config4), aNode([]string{"10.244.7.0/24"}, annotated)); ok {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestHostileNodesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		podCIDRs  []string
		annotated map[string]string
		want      string
	}{
		{nil, flannelNode(), "spec.podCIDRs"},
		{[]string{"fd00:244::/64"}, flannelNode(), "spec.podCIDRs"},
		{[]string{"10.244.7.1/24"}, flannelNode(), "10.244.7.1/24"},
		{[]string{"x"}, flannelNode(), `"x"`},
		{[]string{"10.244.7.0/24", "10.244.8.0/24"}, flannelNode(), "one per address family"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), backendData, "{"), "backend-data"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), backendData, `{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}`), "group"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), publicIP, `"},{`), "PublicIP"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), publicIP, ""), "PublicIP"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), mtuAnnotation, `"1450"`), "MTU"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), mtuAnnotation, `many`), "mtu"},
		{[]string{"10.244.7.0/24"}, with(flannelNode(), schemaVersion, `99`), "schema 99"},
	} {
		r, ok := notes.decode(parse(t, config4), aNode(tt.podCIDRs, tt.annotated))
		if !ok || r.Err == nil || !strings.Contains(r.Err.Error(), tt.want) || r.Key != "nodes/node-1" {
			t.Errorf("%q %q: %v %+v, want an error with %q", tt.podCIDRs, tt.annotated, ok, r, tt.want)
		}
	}
}

func lease(vteps ...subnet.VTEP) subnet.Lease {
	return subnet.Lease{Node: "node-1", Backend: "vxlan", MTU: 1450, VTEPs: vteps}
}

// gateways is a lease of host-gw.
func gateways(addresses ...string) subnet.Lease {
	l := subnet.Lease{Node: "node-1", Backend: "host-gw", MTU: 1500}
	for _, a := range addresses {
		l.VTEPs = append(l.VTEPs, subnet.VTEP{Underlay: netip.MustParseAddr(a)})
	}
	return l
}

var (
	vtep4 = subnet.VTEP{Underlay: netip.MustParseAddr("192.0.2.7"), MAC: subnet.MAC{0x8a, 1, 2, 3, 4, 5}, VNI: 1}
	vtep6 = subnet.VTEP{Underlay: netip.MustParseAddr("2001:db8::7"), MAC: subnet.MAC{0x8a, 1, 2, 3, 4, 6}, VNI: 1}
)

// TestEncodedIsFlannels: byte for byte what flannel writes and compares.
func TestEncodedIsFlannels(t *testing.T) {
	for name, tt := range map[string]struct {
		lease subnet.Lease
		want  map[string]string
	}{
		"IPv4": {lease(vtep4), map[string]string{managed: "true", backendType: "vxlan", publicIP: "192.0.2.7",
			backendData: `{"VNI":1,"VtepMAC":"8a:01:02:03:04:05"}`, mtuAnnotation: "1450", schemaVersion: "1"}},
		"IPv6": {lease(vtep6), map[string]string{managed: "true", backendType: "vxlan", publicIPv6: "2001:db8::7",
			backendV6Data: `{"VNI":1,"VtepMAC":"8a:01:02:03:04:06"}`, mtuAnnotation: "1450", schemaVersion: "1"}},
		"both": {lease(vtep4, vtep6), map[string]string{managed: "true", backendType: "vxlan", publicIP: "192.0.2.7", publicIPv6: "2001:db8::7",
			backendData: `{"VNI":1,"VtepMAC":"8a:01:02:03:04:05"}`, backendV6Data: `{"VNI":1,"VtepMAC":"8a:01:02:03:04:06"}`,
			mtuAnnotation: "1450", schemaVersion: "1"}},
		"host-gw, IPv4": {gateways("192.0.2.7"), map[string]string{managed: "true", backendType: "host-gw", publicIP: "192.0.2.7",
			backendData: "null", mtuAnnotation: "1500", schemaVersion: "1"}},
		"host-gw, both": {gateways("192.0.2.7", "2001:db8::7"), map[string]string{managed: "true", backendType: "host-gw",
			publicIP: "192.0.2.7", backendData: "null", publicIPv6: "2001:db8::7", backendV6Data: "null",
			mtuAnnotation: "1500", schemaVersion: "1"}},
		"host-gw, IPv6": {gateways("2001:db8::7"), map[string]string{managed: "true", backendType: "host-gw",
			publicIPv6: "2001:db8::7", backendV6Data: "null", mtuAnnotation: "1500", schemaVersion: "1"}},
	} {
		got, err := notes.encode(tt.lease)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range written() {
			w, ok := tt.want[n]
			if g := got[notes.prefix+n]; (g != nil) != ok || g != nil && *g != w {
				t.Errorf("%s: %s is %v, want %q", name, n, g, w)
			}
		}
		if len(got) != len(written()) {
			t.Errorf("%s: %d annotations, want %d", name, len(got), len(written()))
		}
	}
}

func TestEncodedReadsBack(t *testing.T) {
	for _, l := range []subnet.Lease{
		lease(vtep4), lease(vtep6), lease(vtep4, vtep6),
		gateways("192.0.2.7"), gateways("2001:db8::7"), gateways("192.0.2.7", "2001:db8::7"),
	} {
		want, err := notes.encode(l)
		if err != nil {
			t.Fatal(err)
		}
		n := aNode([]string{"10.244.7.0/24"}, nil)
		for key, v := range want {
			if v != nil {
				n.Annotations[key] = *v
			}
		}
		if len(changes(n.Annotations, want)) != 0 {
			t.Errorf("changes after all was written: %v", changes(n.Annotations, want))
		}
		r, ok := notes.decode(parse(t, config4), n)
		if !ok || r.Err != nil || r.Lease.Backend != l.Backend || !slices.Equal(r.Lease.VTEPs, l.VTEPs) || r.Lease.MTU != l.MTU || r.Lease.Node != l.Node {
			t.Errorf("%+v reads back %+v", l, r)
		}
	}
}

func TestChangesNameOnlyWhatDiffers(t *testing.T) {
	want, err := notes.encode(lease(vtep4))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for key, v := range want {
		if v != nil {
			have[key] = *v
		}
	}
	have["other"] = "kept"
	have[notes.prefix+publicIPv6] = "2001:db8::dead" // left by a dual-stack flannel
	have[notes.prefix+publicIP] = "192.0.2.99"
	delete(have, notes.prefix+managed)
	diff := changes(have, want)
	data, err := json.Marshal(diff)
	if err != nil {
		t.Fatal(err)
	}
	const p = `"flannel.alpha.coreos.com/`
	if got, w := string(data), `{`+p+`kube-subnet-manager":"true",`+p+`public-ip":"192.0.2.7",`+p+`public-ipv6":null}`; got != w {
		t.Errorf("got %s\nwant %s", got, w)
	}
}

func TestOverwrite(t *testing.T) {
	both := []subnet.VTEP{vtep4, vtep6}
	n := aNode(nil, map[string]string{overwriteIP: "198.51.100.9", overwriteIPv6: "2001:db8:1::9"})
	got, err := notes.overwrite(n, both)
	if err != nil || got[0].Underlay.String() != "198.51.100.9" || got[1].Underlay.String() != "2001:db8:1::9" || got[0].MAC != vtep4.MAC {
		t.Errorf("%+v, %v", got, err)
	}
	if both[0] != vtep4 {
		t.Error("the argument was changed")
	}
	for name, value := range map[string]string{overwriteIP: "2001:db8::1", overwriteIPv6: "192.0.2.1"} {
		if _, err := notes.overwrite(aNode(nil, map[string]string{name: value}), both); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s %s: %v", name, value, err)
		}
	}
}

func TestAssigned(t *testing.T) {
	for _, tt := range []struct {
		config   string
		podCIDRs []string
		want     string // subnets, or a part of the error
		bad      bool
	}{
		{config4, []string{"10.244.3.0/24"}, "[10.244.3.0/24]", false},
		{config4, []string{"10.244.3.0/24", "fd00::/64"}, "[10.244.3.0/24]", false},
		{config46, []string{"fd00:244:0:3::/64", "10.244.3.0/24"}, "[10.244.3.0/24 fd00:244:0:3::/64]", false},
		{config46, []string{"10.244.3.0/24"}, "fd00:244::/48", true},
		{config4, []string{"10.99.3.0/24"}, "10.99.3.0/24", true},
		{config4, []string{"10.0.0.0/8"}, "10.244.0.0/16", true},
		{config4, []string{"fd00::/64"}, "10.244.0.0/16", true},
	} {
		got, err := assigned(parse(t, tt.config), aNode(tt.podCIDRs, nil))
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
		}
		if (err != nil) != tt.bad || !strings.Contains(text, tt.want) {
			t.Errorf("%s %q: %s, want %s", tt.config, tt.podCIDRs, text, tt.want)
		}
	}
	old := &node{Spec: nodeSpec{PodCIDR: "10.244.9.0/24"}}
	if got, err := podCIDRs(old); err != nil || len(got) != 1 {
		t.Errorf("podCIDR alone: %s, %v", got, err)
	}
}

func TestStripKeepsWhatMatters(t *testing.T) {
	full := func(name string) *node {
		n := aNode([]string{"10.244.7.0/24"}, flannelNode())
		n.Name = name
		n.Annotations["other/annotation"] = "x"
		n.Labels = map[string]string{"a": "b"}
		n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		n.Spec.Taints = []taint{{"k"}}
		n.Status.Conditions = []condition{{Type: "Ready"}, {Type: networkUnavailable, Status: "True"}}
		n.strip("node-1", notes.wanted)
		return n
	}
	own, other := full("node-1"), full("node-2")
	for _, n := range []*node{own, other} {
		if n.Labels != nil || n.ManagedFields != nil || len(n.Annotations) != 4 || n.ResourceVersion != "42" || len(n.Spec.PodCIDRs) != 1 {
			t.Errorf("got %+v", n)
		}
	}
	if len(own.Spec.Taints) != 1 || own.condition().Status != "True" || len(own.Status.Conditions) != 1 {
		t.Errorf("own: %+v", own)
	}
	if other.Spec.Taints != nil || other.Status.Conditions != nil {
		t.Errorf("other: %+v", other)
	}
	bookmark := &node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
	bookmark.strip("node-1", notes.wanted)
	if len(bookmark.Annotations) != 1 {
		t.Error("the end of the first stream would go unseen")
	}
}

// FuzzDecode: whatever stands in a Node, reading it ends in a lease that can be
// written again, or in an error.
func FuzzDecode(f *testing.F) {
	f.Add("10.244.7.0/24", "true", "vxlan", `{"VNI":1,"VtepMAC":"8a:11:22:33:44:55"}`, "192.0.2.7", "1450")
	f.Add("fd00::/64", "true", "host-gw", "null", "::", "-1")
	f.Add("10.244.7.0/24", "true", "host-gw", "null", "192.0.2.7", "1500")
	f.Add("", "true", "", `{"a":`, `"`, "{}")
	cfg := parse(f, config46)
	networks := map[string]subnet.Config{"vxlan": cfg, "host-gw": parse(f, configGW)}
	f.Fuzz(func(t *testing.T, cidr, m, kind, data, ip, mtu string) {
		r, ok := notes.decode(cfg, aNode([]string{cidr}, map[string]string{
			managed: m, backendType: kind, backendData: data, publicIP: ip, mtuAnnotation: mtu,
		}))
		if ok != (m == "true") {
			t.Fatalf("a lease: %v, though %s is %q", ok, managed, m)
		}
		network, known := networks[r.Lease.Backend]
		if !ok || r.Err != nil || !known || network.Check(r.Lease) != nil {
			return
		}
		if _, err := notes.encode(r.Lease); err != nil {
			t.Errorf("%+v cannot be written: %v", r.Lease, err)
		}
	})
}
