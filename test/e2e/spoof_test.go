package e2e

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// A pod is heard under its own MAC and addresses only, on its own node and on
// others.
func TestSpoofersAreNotHeard(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Options{Network: cluster.NetworkDual, Options: netlab.Options{Nodes: 2}})
	pods := addPods(t, c, "a", "b")
	spoofer, victim, near, far := pods[0], pods[1], pods[1], pods[2]
	gateway := macOf(t, c.Nodes[0].Namespace, cluster.Bridge)
	own, others := macOf(t, spoofer.NS, "eth0"), macOf(t, victim.NS, "eth0")
	port := uint16(4000)
	for _, target := range []*cluster.Pod{near, far} {
		for _, is4 := range []bool{true, false} {
			port++
			e := listen(t, target.NS, port)
			to := netip.AddrPortFrom(target.Of(is4), port)
			via := gateway
			if target == near {
				via = others
			}
			say := func(text string, mac net.HardwareAddr, from netip.Addr) {
				d := datagram{fromMAC: mac, toMAC: via, from: netip.AddrPortFrom(from, 9), to: to, text: text}
				put(t, spoofer.NS, "eth0", d.frame())
			}
			stranger := netip.MustParseAddr("203.0.113.200")
			if !is4 {
				stranger = netip.MustParseAddr("2001:db8:2::200")
			}
			lies := map[string]func(text string){
				"address of a neighbour":                func(s string) { say(s, own, pods[1].Of(is4)) },
				"address and MAC of a neighbour":        func(s string) { say(s, others, pods[1].Of(is4)) },
				"address of a pod of another node":      func(s string) { say(s, own, pods[3].Of(is4)) },
				"address of the other node":             func(s string) { say(s, own, c.Nodes[1].Addr(is4)) },
				"address of nobody":                     func(s string) { say(s, own, stranger) },
				"own address, MAC of a neighbour":       func(s string) { say(s, others, spoofer.Of(is4)) },
				"own address, MAC of the node's bridge": func(s string) { say(s, gateway, spoofer.Of(is4)) },
			}
			for text, lie := range lies {
				lie(text)
			}
			say("the truth", own, spoofer.Of(is4))
			if err := netlab.Eventually(patience, func() error { return e.has("the truth") }); err != nil {
				t.Fatal(err)
			}
			for text := range lies {
				if e.has(text) == nil {
					t.Errorf("%s hears the %s from a pod that has not got it", target.Args.ContainerID, text)
				}
			}
		}
	}
	wantNoTheft(t, spoofer, victim, pods[2])
}

// wantNoTheft has one pod claim the address of another, and wants what is for that
// to go on to it.
func wantNoTheft(t *testing.T, thief, victim, friend *cluster.Pod) {
	t.Helper()
	for _, p := range []*cluster.Pod{thief, victim} {
		serveWitness(t, p.NS)
	}
	wantSeen(t, friend.NS, victim.Addr, friend.Addr)
	stolen := listen(t, thief.NS, 4999)
	heard := listen(t, victim.NS, 4999)
	for range 3 {
		put(t, thief.NS, "eth0", claim(macOf(t, thief.NS, "eth0"), victim.Addr), claim(macOf(t, victim.NS, "eth0"), victim.Addr))
	}
	// The thief would also take what comes.
	if err := thief.NS.IP("address add " + victim.Addr.String() + "/32 dev lo"); err != nil {
		t.Fatal(err)
	}
	conn, err := friend.NS.Dial("udp", netip.AddrPortFrom(victim.Addr, 4999).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	err = netlab.Eventually(patience, func() error {
		if _, err := conn.Write([]byte("for the victim")); err != nil {
			return err
		}
		return heard.has("for the victim")
	})
	if err != nil {
		t.Error(err)
	}
	if stolen.has("for the victim") == nil {
		t.Error("a pod that claims another's address gets what is for that")
	}
}
