package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
)

func subnets(prefixes ...string) []netip.Prefix {
	var s []netip.Prefix
	for _, p := range prefixes {
		s = append(s, netip.MustParsePrefix(p))
	}
	return s
}

// healthy is the status of a node on which all is well.
func healthy() api.Status {
	return api.Status{
		Node: "node-a", Version: "v0.2.0", Started: at.Add(-3 * time.Hour), Ready: true, Resolve: "eager",
		Store:    api.Store{Kind: "etcd", Revision: 42, Snapshot: at.Add(-4 * time.Second)},
		Lease:    api.Lease{Subnets: subnets("10.244.1.0/24", "fd00:1::/64"), Expiry: at.Add(23 * time.Hour)},
		Underlay: api.Underlay{Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, MTU: 1500, Reason: "default route"},
		Devices:  []api.Device{{Name: "overlay.1", Up: true, VNI: 1, Port: 8472, MAC: "0e:00:00:00:00:01", MTU: 1450}},
		Backend:  "vxlan",
		Peers:    api.PeerCount{Total: 2, InSync: 2},
		Misses:   api.MissCount{Received: 5, Answered: 4, Unknown: 1},
		Kernel:   api.Kernel{Operations: 12, Reconciles: 3, Foreign: 2, Last: at.Add(-time.Minute)},
		Slots:    api.Slots{Total: 253, Held: 2, Resting: 1},
	}
}

func TestStatusText(t *testing.T) {
	diff(t, statusText(look{now: at}, healthy()), `
node      node-a
ready     yes
overlayd  v0.2.0, started 3h0m ago
store     etcd, revision 42, seen 4s ago
lease     10.244.1.0/24, fd00:1::/64, expires in 23h0m
underlay  192.0.2.7 on eth0, mtu 1500 (default route)
device    overlay.1 up, vni 1, port 8472, mac 0e:00:00:00:00:01, mtu 1450
peers     2/2 in sync, resolve eager
misses    5 received, 4 answered, 1 unknown, 0 overruns
kernel    12 operations, 0 errors, 3 reconciles, last 1m0s ago; 2 changes by others undone
dropped   0 VXLAN packets of strangers, 0 spoofed frames of pods
slots     2 held, 1 resting, 250 free of 253
`)
}

func TestStatusTextOfAnIllNode(t *testing.T) {
	s := healthy()
	s.Ready, s.NotReady = false, []string{"peers out of sync", "device is down"}
	s.Store.Ignored = []api.Ignored{{Key: "subnets/0.0.0.0-0", Reason: "outside the network 10.244.0.0/16"}}
	s.Lease = api.Lease{Subnets: subnets("10.244.1.0/24"), Reserved: true}
	s.Devices[0].Up = false
	s.Underlay.Lost = "no default route"
	s.Warnings = []string{"net.ipv4.ip_forward is 0"}
	s.Peers.InSync = 1
	s.Misses.Overruns = 1
	s.Kernel.Errors, s.Kernel.LastError = 1, "set route: network is down"
	s.Slots = api.Slots{Total: 253, Held: 250, Resting: 3}
	diff(t, statusText(look{now: at, colour: true}, s), `
node          node-a
<bad>ready         no: peers out of sync; device is down</>
<warn>warning       net.ipv4.ip_forward is 0</>
overlayd      v0.2.0, started 3h0m ago
store         etcd, revision 42, seen 4s ago
<warn>  ignored     subnets/0.0.0.0-0: outside the network 10.244.0.0/16</>
lease         10.244.1.0/24, reserved
underlay      192.0.2.7 on eth0, mtu 1500 (default route)
<warn>  lost        no default route</>
<bad>device        overlay.1 DOWN, vni 1, port 8472, mac 0e:00:00:00:00:01, mtu 1450</>
<warn>peers         1/2 in sync, resolve eager</>
<warn>misses        5 received, 4 answered, 1 unknown, 1 overruns</>
kernel        12 operations, 1 errors, 3 reconciles, last 1m0s ago; 2 changes by others undone
<warn>  last error  set route: network is down</>
dropped       0 VXLAN packets of strangers, 0 spoofed frames of pods
<warn>slots         250 held, 3 resting, 0 free of 253</>
`)
}

// TestStatusTextAtStart: before the store has answered, nearly all is unset.
func TestStatusTextAtStart(t *testing.T) {
	s := api.Status{Node: "node-a", Version: "v0.2.0", Started: at, Resolve: "on-miss", Store: api.Store{Kind: "etcd"}}
	diff(t, statusText(look{now: at}, s), `
node      node-a
ready     no: overlayd does not say why
overlayd  v0.2.0, started 0s ago
store     etcd, no answer yet
lease     none held
underlay  none found
device    none
peers     0/0 in sync, resolve on-miss
misses    0 received, 0 answered, 0 unknown, 0 overruns
kernel    0 operations, 0 errors, 0 reconciles, last never; 0 changes by others undone
dropped   0 VXLAN packets of strangers, 0 spoofed frames of pods
slots     0 held, 0 resting, 0 free of 0
`)
}

func TestStatusTextOfHostGateway(t *testing.T) {
	s := healthy()
	s.Backend, s.Devices = "host-gw", nil
	if text := statusText(look{now: at, colour: true}, s); strings.Contains(text, "<bad>") || !strings.Contains(text, "device    none, host-gw") {
		t.Errorf("a node without tunnel is well, but the status is\n%s", text)
	}
}

func TestPeersText(t *testing.T) {
	diff(t, peersText(look{colour: true}, []api.Peer{
		{Node: "node-b", Subnets: subnets("10.244.2.0/24", "fd00:2::/64"), Underlay: netip.MustParseAddr("192.0.2.8"), MAC: "0e:00:00:00:00:02", InSync: true, Misses: 3, Direct: subnets("10.244.2.0/24")},
		{Node: "c", Subnets: subnets("10.244.3.0/24"), Underlay: netip.MustParseAddr("192.0.2.9"), MAC: "0e:00:00:00:00:03", Missing: []string{"route 10.244.3.0/24", "fdb x"}},
		{Node: "d"},
		{Node: "e", Subnets: subnets("10.244.5.0/24"), Underlay: netip.MustParseAddr("192.0.2.11"), InSync: true, Direct: subnets("10.244.5.0/24")},
	}), `
NODE    SUBNETS                     UNDERLAY    MAC                VIA                              MISSES  IN SYNC
node-b  10.244.2.0/24, fd00:2::/64  192.0.2.8   0e:00:00:00:00:02  tunnel; direct to 10.244.2.0/24  3       yes
<warn>c       10.244.3.0/24               192.0.2.9   0e:00:00:00:00:03  tunnel                           0       no: lacks route 10.244.3.0/24; fdb x</>
<warn>d       -                           -           -                  tunnel                           0       no: lacks entries</>
e       10.244.5.0/24               192.0.2.11  -                  direct                           0       yes
`)
}

func TestPodsText(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:1::2")}
	diff(t, podsText(look{colour: true}, []api.Pod{
		{Pod: "default/web", Container: strings.Repeat("ab", 32), IfName: "eth0", Addresses: addrs, Link: "veth01234567", Slot: 2, AgeSecs: 3700},
		{Container: "short", IfName: "eth0", Addresses: addrs[:1], Slot: 3, AgeSecs: 5},
	}), `
POD          ADDRESSES              LINK          SLOT  AGE   CONTAINER      INTERFACE
default/web  10.244.1.2, fd00:1::2  veth01234567  2     1h1m  ababababababa  eth0
<warn>-            10.244.1.2             -             3     5s    short          eth0</>
`)
}

func TestLeasesText(t *testing.T) {
	vtep := func(addr, mac string) api.VTEP { return api.VTEP{Underlay: netip.MustParseAddr(addr), MAC: mac} }
	diff(t, leasesText(look{now: at, colour: true}, []api.Lease{
		{Node: "node-a", Subnets: subnets("10.244.1.0/24"), VTEPs: []api.VTEP{vtep("192.0.2.7", "0e:00:00:00:00:01")}, Own: true, Since: at.Add(-49 * time.Hour), Expiry: at.Add(time.Hour), Revision: 7},
		{
			Node: "b", Subnets: subnets("10.244.2.0/24", "fd00:2::/64"), Reserved: true, Revision: 8,
			VTEPs: []api.VTEP{vtep("192.0.2.8", "0e:00:00:00:00:02"), vtep("2001:db8::8", "0e:00:00:00:00:03")},
		},
		{Node: "c", Subnets: subnets("10.244.3.0/24"), Revision: 9},
		{Subnets: subnets("10.244.2.0/23"), Key: "10.244.2.0-23", Ignored: "subnet 10.244.2.0/23: overlaps the older lease 10.244.2.0-24", Conflict: true},
		{Key: "rubbish\x1b[2J", Ignored: "key: want an IPv4 subnet"},
	}), `
NODE    SUBNETS                     UNDERLAY                MAC                                   AGE   EXPIRES IN  REVISION  NOTE
<good>node-a  10.244.1.0/24               192.0.2.7               0e:00:00:00:00:01                     2d1h  1h0m        7         this node</>
b       10.244.2.0/24, fd00:2::/64  192.0.2.8, 2001:db8::8  0e:00:00:00:00:02, 0e:00:00:00:00:03  -     never       8         reserved
c       10.244.3.0/24               -                       -                                     -     -           9         -
<warn>-       10.244.2.0/23               -                       -                                     -     -           -         conflict: subnet 10.244.2.0/23: overlaps the older lease 10.244.2.0-24</>
<warn>-       rubbish\x1b[2J              -                       -                                     -     -           -         ignored: key: want an IPv4 subnet</>
`)
}

func TestMissesText(t *testing.T) {
	diff(t, missesText(look{now: at}, []api.Miss{
		{Time: at, Kind: "L3MISS", Addr: netip.MustParseAddr("10.244.2.0"), Node: "node-b", Answered: true, Micros: 312},
		{Time: at.Add(-time.Second), Kind: "L2MISS", MAC: "0e:00:00:00:00:02", Node: "node-b", Answered: true, Micros: 1204},
		{Time: at.Add(-time.Hour), Kind: "L3MISS", Addr: netip.MustParseAddr("10.244.9.0")},
	}), `
TIME                     KIND    ASKED FOR          NODE    TOOK     ANSWERED
2026-11-22 16:30:00.000  L3MISS  10.244.2.0         node-b  312µs    yes
2026-11-22 16:29:59.000  L2MISS  0e:00:00:00:00:02  node-b  1.204ms  yes
2026-11-22 15:30:00.000  L3MISS  10.244.9.0         -       -        no
`)
}

func TestEventsText(t *testing.T) {
	diff(t, eventsText(look{now: at, colour: true}, []api.Event{
		{Time: at, Kind: "foreign", Text: "route 10.244.2.0/24 deleted by pid 7 (ip)"},
		{Time: at.Add(-time.Second), Kind: "snapshot", Text: "2 leases"},
	}), `
TIME                     KIND      WHAT
<warn>2026-11-22 16:30:00.000  foreign   route 10.244.2.0/24 deleted by pid 7 (ip)</>
2026-11-22 16:29:59.000  snapshot  2 leases
`)
}

func TestEmptyListsSaySo(t *testing.T) {
	for name, text := range map[string]string{
		"peers":  peersText(look{}, nil),
		"pods":   podsText(look{}, nil),
		"leases": leasesText(look{}, nil),
		"misses": missesText(look{}, nil),
		"events": eventsText(look{}, nil),
	} {
		if !strings.HasPrefix(text, "no "+name) || strings.Count(text, "\n") != 1 {
			t.Errorf("empty %s: %q, want one line that says so", name, text)
		}
	}
}

func TestVersionText(t *testing.T) {
	own := version.Build{Version: "v0.2.0", Go: "go1.26.0", Platform: "linux/amd64"}
	diff(t, versionText(look{}, versions{Client: own, Daemon: "v0.1.0 (go1.25.0)"}), `
overlayctl  v0.2.0 (go1.26.0 linux/amd64)
overlayd    v0.1.0 (go1.25.0)
`)
	diff(t, versionText(look{colour: true}, versions{Client: own, Unreachable: "no socket"}), `
overlayctl  v0.2.0 (go1.26.0 linux/amd64)
<warn>overlayd    unknown: no socket</>
`)
}
