// Package etcd tests pkg/subnet/etcd on a real etcd.
package etcd

import (
	"encoding/json"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
)

func TestConformance(t *testing.T) {
	subnettest.Conformance(t, func(t *testing.T, cfg subnet.Config) subnettest.Fixture {
		s := newStore(t, configJSON(t, cfg))
		return subnettest.Fixture{
			Manager: func(t *testing.T) subnet.Manager { return s.manager(t, nil) },
			Expire: func(t *testing.T, node string) {
				s.revoke(t, s.etcdLease(t, s.recordOf(t, node)))
			},
			PutRaw: func(t *testing.T, key string, value []byte) { s.put(t, subnets+key, string(value)) },
			Delete: func(t *testing.T, key string) { s.delete(t, subnets+key) },
			Outage: func(t *testing.T, on bool) {
				if on {
					s.server.Stop()
				} else {
					s.start(t)
				}
			},
			Restart: func(t *testing.T) {
				s.server.Stop()
				s.start(t)
			},
		}
	})
}

func configJSON(t *testing.T, cfg subnet.Config) string {
	t.Helper()
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
