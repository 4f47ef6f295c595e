package subnet

import (
	"net/netip"
	"slices"
	"testing"
)

func goodLease() Lease {
	return Lease{
		Node: "node-1", Subnets: prefixes("10.244.7.0/24", "fd00:244:0:7::/64"), Backend: "vxlan",
		VTEPs: []VTEP{
			{addr("192.0.2.7"), mac("0e:00:00:00:00:07"), 1},
			{addr("2001:db8::7"), mac("0e:00:00:00:06:07"), 1},
		},
	}
}

func TestCheck(t *testing.T) {
	cfg := mustConfig(t, text46)
	with := func(change func(*Lease)) Lease {
		l := goodLease()
		change(&l)
		return l
	}
	subnets := func(list ...string) Lease { return with(func(l *Lease) { l.Subnets = prefixes(list...) }) }
	underlay := func(a string) Lease { return with(func(l *Lease) { l.VTEPs[0].Underlay = addr(a) }) }
	underlay6 := func(a string) Lease { return with(func(l *Lease) { l.VTEPs[1].Underlay = addr(a) }) }

	for name, l := range map[string]Lease{
		"dual stack":                goodLease(),
		"no node, as flannel's":     with(func(l *Lease) { l.Node = "" }),
		"IPv4 subnet alone":         subnets("10.244.7.0/24"),
		"IPv6 subnet alone":         subnets("fd00:244:0:7::/64"),
		"first subnet":              subnets("10.244.0.0/24"),
		"other length, as from old": subnets("10.244.64.0/20"),
		"IPv4 endpoint alone":       with(func(l *Lease) { l.VTEPs = l.VTEPs[:1] }),
		"IPv6 endpoint alone":       with(func(l *Lease) { l.VTEPs = l.VTEPs[1:] }),
		"IPv4 link-local":           underlay("169.254.7.7"),
		"private underlay":          underlay("10.0.0.7"),
	} {
		if err := cfg.Check(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range []struct {
		lease Lease
		words string
	}{
		{subnets(), `subnets: none, want at least one`},
		{with(func(l *Lease) { l.Subnets = make([]netip.Prefix, 1) }), `subnet: not a network`},
		{subnets("0.0.0.0/0"), `subnet 0.0.0.0/0: want one inside 10.244.0.0/16`},
		{subnets("::/0"), `subnet ::/0: want one inside fd00:244::/48`},
		{subnets("10.0.0.0/8"), `subnet 10.0.0.0/8: want one inside 10.244.0.0/16`},
		{subnets("10.245.7.0/24"), `subnet 10.245.7.0/24: want one inside 10.244.0.0/16`},
		{subnets("10.244.7.0/24", "fd00:245::/64"), `subnet fd00:245::/64: want one inside fd00:244::/48`},
		{subnets("10.244.7.9/24"), `subnet 10.244.7.9/24: has host bits set, want 10.244.7.0/24`},
		{subnets("10.244.7.0/24", "10.244.8.0/24"), `subnet 10.244.8.0/24: 10.244.7.0/24 already one per family`},
		{with(func(l *Lease) { l.Backend = "udp" }), `BackendType "udp": want "vxlan", as in the network configuration`},
		{with(func(l *Lease) { l.VTEPs = nil }), `VTEPs: none, want at least one`},
		{with(func(l *Lease) { l.VTEPs[1].Underlay = addr("192.0.2.8") }), `VTEP 192.0.2.8: want one per address family`},
		{with(func(l *Lease) { l.VTEPs = append(l.VTEPs, l.VTEPs...) }), `want one per address family`},
		{with(func(l *Lease) { slices.Reverse(l.VTEPs) }), `VTEP 192.0.2.7: is after 2001:db8::7, want IPv4 first`},
		{with(func(l *Lease) { l.VTEPs[0].MAC = MAC{} }), `VTEP MAC 00:00:00:00:00:00: all zero`},
		{with(func(l *Lease) { l.VTEPs[1].MAC = MAC{1, 0, 0x5e, 0, 0, 1} }), `VTEP MAC 01:00:5e:00:00:01: is a group address`},
		{with(func(l *Lease) { l.VTEPs[0].MAC = MAC{255, 255, 255, 255, 255, 255} }), `is a group address`},
		{with(func(l *Lease) { l.VTEPs[1].VNI = 2 }), `VNI 2: want 1, as in the network configuration`},
		{with(func(l *Lease) { l.VTEPs[0].VNI = 0 }), `VNI 0: want 1 to 16777215`},
		{with(func(l *Lease) { l.VTEPs[0].VNI = 1 << 24 }), `VNI 16777216: want 1 to 16777215`},
		{with(func(l *Lease) { l.VTEPs[0].Underlay = netip.Addr{} }), `underlay address: missing`},
		{underlay("0.0.0.0"), `underlay address 0.0.0.0: is unspecified`},
		{underlay("0.1.2.3"), `is unspecified`},
		{underlay("127.0.0.1"), `underlay address 127.0.0.1: is loopback`},
		{underlay("224.0.0.1"), `underlay address 224.0.0.1: is multicast`},
		{underlay("255.255.255.255"), `is broadcast`},
		{underlay("240.0.0.1"), `is broadcast or reserved`},
		{underlay("10.244.3.4"), `underlay address 10.244.3.4: is inside the pod network 10.244.0.0/16`},
		{underlay6("::"), `underlay address ::: is unspecified`},
		{underlay6("::1"), `is loopback`},
		{underlay6("ff02::1"), `is multicast`},
		{underlay6("fe80::1"), `is link-local`},
		{underlay6("fe80::1%eth0"), `has a zone`},
		{underlay6("::ffff:192.0.2.1"), `is IPv4 written as IPv6`},
		{underlay6("fd00:244:0:3::4"), `is inside the pod network fd00:244::/48`},
	} {
		err := cfg.Check(c.lease)
		if err == nil {
			t.Errorf("%+v: no error, want %s", c.lease, c.words)
			continue
		}
		wantWords(t, "check", err, c.words)
	}

	for text, backend := range map[string]string{text46: "host-gw", textGW: "vxlan"} {
		l := goodLease()
		if l.Backend = backend; backend == "host-gw" {
			l = gatewayLease()
		}
		cfg := mustConfig(t, text)
		err := cfg.Check(l)
		if err == nil {
			t.Fatalf("%s in %s: no error", backend, text)
		}
		wantWords(t, backend, err, `BackendType "`+backend+`": want "`+cfg.Backend.Type+`", as in the network configuration`)
	}

	one := mustConfig(t, text4)
	err := one.Check(goodLease())
	if err == nil {
		t.Fatal("an IPv6 subnet where IPv6 is not enabled: no error")
	}
	wantWords(t, "family", err, `subnet fd00:244:0:7::/64: not enabled 10.244.0.0/16`)
}

func gatewayLease() Lease {
	l := goodLease()
	l.Backend = "host-gw"
	for i := range l.VTEPs {
		l.VTEPs[i] = VTEP{Underlay: l.VTEPs[i].Underlay}
	}
	return l
}

func TestCheckGateways(t *testing.T) {
	cfg := mustConfig(t, textGW)
	one := gatewayLease()
	one.VTEPs = one.VTEPs[1:]
	for _, l := range []Lease{gatewayLease(), one} {
		if err := cfg.Check(l); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
	}
	for words, spoil := range map[string]func(*Lease){
		`VTEP 192.0.2.7: MAC 0e:00:00:00:00:07 and VNI 0, want neither with "host-gw"`:   func(l *Lease) { l.VTEPs[0].MAC = mac("0e:00:00:00:00:07") },
		`VTEP 2001:db8::7: MAC 00:00:00:00:00:00 and VNI 1, want neither with "host-gw"`: func(l *Lease) { l.VTEPs[1].VNI = 1 },
		`VTEPs: none, want at least one`:                                                 func(l *Lease) { l.VTEPs = nil },
		`VTEP 192.0.2.8: want one per address family`:                                    func(l *Lease) { l.VTEPs[1].Underlay = addr("192.0.2.8") },
		`underlay address 127.0.0.1: is loopback`:                                        func(l *Lease) { l.VTEPs[0].Underlay = addr("127.0.0.1") },
		`underlay address fd00:244::1: is inside the pod network fd00:244::/48`:          func(l *Lease) { l.VTEPs[1].Underlay = addr("fd00:244::1") },
	} {
		l := gatewayLease()
		spoil(&l)
		err := cfg.Check(l)
		if err == nil {
			t.Errorf("%+v: no error, want %s", l, words)
			continue
		}
		wantWords(t, "check", err, words)
	}
}
