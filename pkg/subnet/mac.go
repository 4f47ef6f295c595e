package subnet

import (
	"crypto/sha256"
	"fmt"
	"net"
)

// A MAC is a comparable 48-bit Ethernet address. As text it is written
// 0e:5d:60:c1:c5:2e.
type MAC [6]byte

// ParseMAC reads a unicast Ethernet address. A group (multicast or broadcast)
// or all-zero address is an error: no VTEP can have one.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC %q: want six hexadecimal bytes, such as 0e:5d:60:c1:c5:2e", s)
	}
	m := MAC(hw)
	switch {
	case m == MAC{}:
		return MAC{}, fmt.Errorf("MAC %q: all zero", s)
	case m[0]&1 != 0:
		return MAC{}, fmt.Errorf("MAC %q: is a group address, want a unicast one", s)
	}
	return m, nil
}

// VTEPMAC derives a VTEP's MAC from the stable node id and the underlay
// family, so that a node comes back with the same MAC after a reboot and peers
// never hold a stale one. The address is locally administered unicast
// (IEEE 802, bit 1 set and bit 0 clear in the first byte).
func VTEPMAC(node string, underlay4 bool) MAC {
	family := "6"
	if underlay4 {
		family = "4"
	}
	sum := sha256.Sum256([]byte("vxlan-cni vtep " + family + " " + node))
	m := MAC(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes the form that ParseMAC reads.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}
