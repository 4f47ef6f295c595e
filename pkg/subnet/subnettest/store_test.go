package subnettest

import (
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

func TestStoreConforms(t *testing.T) {
	Conformance(t, func(t *testing.T, cfg subnet.Config) Fixture {
		s := NewStore(cfg)
		return Fixture{
			Manager: func(*testing.T) subnet.Manager { return s.Manager() },
			Expire:  func(_ *testing.T, node string) { s.Expire(node) },
			PutRaw:  func(_ *testing.T, key string, val []byte) { s.Put(key, val) },
			Delete:  func(_ *testing.T, key string) { s.Delete(key) },
			Outage:  func(_ *testing.T, on bool) { s.Outage(on) },
			Restart: func(*testing.T) { s.Outage(true); s.Outage(false) },
		}
	})
}
