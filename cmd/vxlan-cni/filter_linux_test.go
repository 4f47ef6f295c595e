package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// guarded is the filter's table as text; empty if there is none.
func (n testNode) guarded() string {
	n.Helper()
	if !strings.Contains(n.sh("nft list tables"), "bridge vxlan-cni") {
		return ""
	}
	return n.sh("nft -s list table bridge vxlan-cni")
}

// wantGuarded fails the test if a link is not among the filter's elements, or others are.
func (n testNode) wantGuarded(links ...string) {
	n.Helper()
	text := n.guarded()
	if got := strings.Count(text, "10.244.1."); got != len(links) {
		n.Errorf("%d IPv4 addresses may be sent by, want %d:\n%s", got, len(links), text)
	}
	for _, l := range links {
		if !strings.Contains(text, `"`+l+`"`) {
			n.Errorf("link %s is not among\n%s", l, text)
		}
	}
}

func TestFilterThroughTheVerbs(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	e, conf := podEnv("abc", p), n.conf("1.0.0")
	link := pod.HostName("abc", "eth0")
	prev := `"prevResult": ` + n.ok(e, conf)
	n.wantGuarded(link)
	n.ok(e.with("CHECK"), n.conf("1.0.0", prev))
	slots, err := ipam.List(t.Context(), n.dir)
	if err != nil || len(slots) != 1 || !slots[0].Filtered || slots[0].MAC != nil {
		t.Errorf("slots %+v, %v", slots, err)
	}

	n.fails(e, conf, 4, "attached already") // leaves the first as it was
	n.wantGuarded(link)
	bad := podEnv("bad", p) // has eth0 already
	n.fails(bad, conf, 4, "exists already")
	n.wantGuarded(link)
	second := e
	second.ifname = "net1"
	n.fails(second, conf, 5, "add default route") // after there was a link
	n.wantGuarded(link)
	output(t, p, "ip route del default")
	output(t, p, "ip -6 route del default")
	n.ok(second, conf)
	n.wantGuarded(link, pod.HostName("abc", "net1"))
	n.ok(second.with("DEL"), conf)
	n.wantGuarded(link)
	output(t, p, "ip route add default via 10.244.1.1")
	output(t, p, "ip route add default via fd00:1::1")
	n.ok(e.with("CHECK"), n.conf("1.0.0", prev))

	n.sh("ip link set " + link + " group 30275")
	n.fails(e.with("CHECK"), n.conf("1.0.0", prev), 5, "is not filtered")
	n.sh("ip link set " + link + " group 30276")
	n.sh("nft flush set bridge vxlan-cni own4")
	n.fails(e.with("CHECK"), n.conf("1.0.0", prev), 5, "source filter")
	for range 2 {
		n.ok(e.with("DEL"), conf)
		n.wantGuarded()
	}
	if text := n.guarded(); strings.Contains(text, "elements") {
		t.Errorf("DEL left\n%s", text)
	}
}

func TestFilterOff(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	e, conf := podEnv("abc", p), n.conf("1.0.0", `"sourceFilter": false`)
	prev := `"prevResult": ` + n.ok(e, conf)
	if text := n.guarded(); text != "" {
		t.Errorf("without a filtered pod there is\n%s", text)
	}
	n.ok(podEnv("other", netlab.TestNamespace(t)), n.conf("1.0.0"))
	n.wantGuarded(pod.HostName("other", "eth0"))
	// Each was attached as it was, whatever the configuration says by now.
	n.ok(e.with("CHECK"), n.conf("1.0.0", prev))
	slots, err := ipam.List(t.Context(), n.dir)
	if err != nil || len(slots) != 2 || slots[0].Filtered || !slots[1].Filtered {
		t.Errorf("slots %+v, %v", slots, err)
	}
	output(t, p, "ip addr add 10.244.1.99/24 dev eth0")
	if err := udpTo(n.ns, p, "10.244.1.99"); err != nil {
		t.Errorf("with the filter off by another address: %v", err)
	}
	n.ok(e.with("DEL"), n.conf("1.0.0"))
	n.wantGuarded(pod.HostName("other", "eth0"))
}

// udpTo sends from a pod by an address to the node, and says whether it arrived.
func udpTo(node, pod *netlab.Namespace, from string) error {
	var server *net.UDPConn
	if err := node.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 244, 1, 1)})
		return err
	}); err != nil {
		return err
	}
	defer server.Close()
	var client *net.UDPConn
	if err := pod.Do(func() (err error) {
		client, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, server.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write([]byte("x")); err != nil {
		return err
	}
	_ = server.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := server.Read(make([]byte, 8))
	return err
}

// A pod that takes another address or MAC is not heard by them, and is again by its own.
func TestSpoofingPodIsNotHeard(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	r := n.add(podEnv("abc", p), n.conf("1.0.0"))
	own := r.IPs[0].Address.IP.String()
	hear := func(from string, want bool) {
		t.Helper()
		if err := udpTo(n.ns, p, from); (err == nil) != want {
			t.Errorf("heard from %s: %v, want %t", from, err, want)
		}
	}
	hear(own, true)
	output(t, p, "ip addr add 10.244.1.99/24 dev eth0")
	hear("10.244.1.99", false)
	before := r.Interfaces[*r.IPs[0].Interface].Mac
	for mac, want := range map[string]bool{"02:00:00:00:00:99": false, before: true} {
		output(t, p, "ip link set eth0 address "+mac)
		output(t, p, "ip neigh replace 10.244.1.1 lladdr 0a:58:0a:f4:01:01 nud permanent dev eth0")
		hear(own, want)
	}
}

func TestAnnotatedPod(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	annotated := func(ips, mac string) string {
		return n.conf("1.0.0", fmt.Sprintf(`"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {
			"overlay.vxlan-cni.io/ips": %q, "overlay.vxlan-cni.io/mac": %q, "other": "x"}}`, ips, mac))
	}
	for ips, text := range map[string]string{
		"10.244.2.50":             `requested address "10.244.2.50": want one of the first`,
		"10.244.1.50,10.244.1.51": `are not of one slot`,
		"10.244.1.1":              "is reserved",
	} {
		n.fails(podEnv("abc", p), annotated(ips, ""), 7, text)
	}
	n.fails(podEnv("abc", p), annotated("", "0a:58:0a:f4:01:01"), 7, "is that of bridge cni0")
	r := n.add(podEnv("abc", p), annotated("10.244.1.50, fd00:1::32", "02:00:00:00:00:50"))
	if want := []string{"10.244.1.50/24", "fd00:1::32/64"}; !slices.Equal(addresses(r), want) {
		t.Errorf("addresses %v, want %v", addresses(r), want)
	}
	slots, err := ipam.List(t.Context(), n.dir)
	if err != nil || len(slots) != 1 || slots[0].MAC.String() != "02:00:00:00:00:50" {
		t.Errorf("slots %+v, %v", slots, err)
	}
	if err := udpTo(n.ns, p, "10.244.1.50"); err != nil {
		t.Errorf("with the MAC that was asked for: %v", err)
	}
}

// An ADD that was killed left elements and a slot, and no link: GC finds them by the slot.
func TestGCRemovesElementsWithoutLink(t *testing.T) {
	n := newNode(t)
	n.ok(podEnv("abc", netlab.TestNamespace(t)), n.conf("1.1.0"))
	n.ok(podEnv("keep", netlab.TestNamespace(t)), n.conf("1.1.0"))
	n.sh("ip link del " + pod.HostName("abc", "eth0"))
	n.wantGuarded(pod.HostName("abc", "eth0"), pod.HostName("keep", "eth0"))
	n.ok(env{verb: "GC"}, n.conf("1.1.0", `"cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]`))
	n.wantGuarded(pod.HostName("keep", "eth0"))
}

// Sixteen ADDs on a node without the table, and sixteen DELs.
func TestFilterOfParallelAdds(t *testing.T) {
	n := newNode(t)
	const many = 16
	run := func(verb string) {
		var all sync.WaitGroup
		for i := range many {
			e := podEnv(fmt.Sprint("c", i), netlab.TestNamespace(t))
			cmd, out := command(e.with(verb), n.conf("1.0.0"))
			all.Go(func() {
				if err := n.ns.Do(cmd.Run); err != nil {
					t.Errorf("%s: %v: %s", verb, err, out)
				}
			})
		}
		all.Wait()
	}
	run("ADD")
	var links []string
	for i := range many {
		links = append(links, pod.HostName(fmt.Sprint("c", i), "eth0"))
	}
	n.wantGuarded(links...)
	run("DEL")
	n.wantGuarded()
	if text := n.guarded(); strings.Contains(text, "elements") {
		t.Errorf("left\n%s", text)
	}
}
