package subnet

import (
	"slices"
	"testing"
)

func TestInheritance(t *testing.T) {
	v4, v6 := addr("192.0.2.7"), addr("2001:db8::7")
	want := Request{Node: "node-1", VTEPs: []VTEP{{v4, mac("0e:00:00:00:00:01"), 1}, {v6, mac("0e:00:00:00:00:02"), 1}}}
	flannel := func(text string) []byte { return []byte(text) }
	here := flannel(`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`)
	for _, c := range []struct {
		name    string
		want    []string // subnets to prefer
		records map[string][]byte
		keys    []string
	}{
		{"nothing", nil, nil, nil},
		{"by IPv4", nil, map[string][]byte{"10.5.52.0-24": here}, []string{"10.5.52.0-24"}},
		{"by IPv6", nil, map[string][]byte{
			"0.0.0.0-0&fd00::-64": flannel(`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`),
		}, []string{"0.0.0.0-0&fd00::-64"}},
		{"of another backend", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"192.0.2.7","BackendType":"host-gw"}`)}, []string{"10.5.52.0-24"}},
		{"a reservation", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"192.0.2.7"}`)}, []string{"10.5.52.0-24"}},
		{"of another node", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"192.0.2.8","BackendType":"host-gw"}`)}, nil},
		{"no address at all", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"0.0.0.0","BackendType":"host-gw"}`)}, nil},
		{"of a node of ours at the same address", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"192.0.2.7","BackendType":"host-gw","Node":"node-2"}`)}, nil},
		{"own beside it", nil, map[string][]byte{
			"10.5.52.0-24": here, "10.5.53.0-24": flannel(`{"PublicIP":"192.0.2.9","BackendType":"host-gw","Node":"node-1"}`),
		}, nil},
		{"garbage", nil, map[string][]byte{"10.5.52.0-24": flannel(`{"PublicIP":"192.0.2.7","BackendData":7`)}, nil},
		{"two, by key", nil, map[string][]byte{"10.5.53.0-24": here, "10.5.52.0-24": here}, []string{"10.5.52.0-24", "10.5.53.0-24"}},
		{"two, one asked for", []string{"10.5.53.0/24"}, map[string][]byte{"10.5.53.0-24": here, "10.5.52.0-24": here}, []string{"10.5.53.0-24", "10.5.52.0-24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := want
			want.Want = prefixes(c.want...)
			var records []Record
			for key, value := range c.records {
				records = append(records, ParseRecord(key, value))
			}
			var keys []string
			for _, r := range want.Inheritance(records) {
				keys = append(keys, r.Key)
			}
			if !slices.Equal(keys, c.keys) {
				t.Errorf("inherits %q, want %q", keys, c.keys)
			}
		})
	}
	if l := (Lease{VTEPs: []VTEP{{Underlay: v4}}}); (Request{VTEPs: want.VTEPs}).Inherits(l) {
		t.Error("a request without a node inherits")
	}
}
