package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

// A router on the way to one peer takes smaller packets than the interface.
func TestPathMTUBoundsThePods(t *testing.T) {
	underlay(t)
	router := netlab.TestNamespace(t)
	ip(t, "ip link set wire netns "+router.Name)
	if err := router.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if err := router.IP(
		"address add 192.0.2.1/24 dev wire", "link set wire up",
		"link add narrow type bridge", "address add 198.51.100.1/24 dev narrow", "link set narrow mtu 1400 up",
	); err != nil {
		t.Fatal(err)
	}
	store := subnettest.NewStore(network(t))
	put(t, store, lease("near", "10.244.76.0/24", "192.0.2.1", 76))
	r := start(t, store, func(c *Config) { c.PathMTU = true })
	if s := r.ready(); s.PodMTU != 1450 {
		t.Errorf("MTU %d before there is a narrow way", s.PodMTU)
	}
	r.end()
	put(t, store, lease("far", "10.244.77.0/24", "198.51.100.77", 77))
	bounded := start(t, store, func(c *Config) { c.PathMTU = true })
	bounded.ready()
	eventually(t, "bounded", func() error {
		s := bounded.status()
		if out := ip(t, "ip link show"); s.PodMTU != 1350 || strings.Count(out, "mtu 1350") != 2 || s.Lease.MTU != 1350 {
			return fmt.Errorf("MTU %d, links\n%s", s.PodMTU, out)
		}
		return nil
	})
	events, err := bounded.client.Events(t.Context())
	if err != nil || !strings.Contains(fmt.Sprint(events), "may have 1400 bytes, by the way to 198.51.100.77") {
		t.Errorf("events %v %v", events, err)
	}
}
