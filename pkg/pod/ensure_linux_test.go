package pod

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// guardedOf is what the daemon would tell of an attachment.
func guardedOf(a Attachment) Guarded {
	return Guarded{Container: a.Container, IfName: a.IfName, MAC: a.MAC, Addrs: addrsOf(a.Addrs)}
}

// wants is a want of EnsureFilter that never changes.
func wants(list ...Guarded) func() ([]Guarded, error) {
	return func() ([]Guarded, error) { return list, nil }
}

// table is the filter as text; empty if there is none.
func table(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	if !strings.Contains(output(t, ns, "nft list tables"), "table bridge vxlan-cni") {
		return ""
	}
	return output(t, ns, "nft -s list table bridge vxlan-cni")
}

// ensureFilter calls EnsureFilter in the node's namespace, and once more: then it must
// have nothing to do.
func ensureFilter(t testing.TB, node *netlab.Namespace, want func() ([]Guarded, error)) (changes []string) {
	t.Helper()
	in(t, node, func() (err error) { changes, err = EnsureFilter(want); return err })
	in(t, node, func() error {
		again, err := EnsureFilter(want)
		if err == nil && len(again) > 0 {
			err = fmt.Errorf("after %q it still does %q", changes, again)
		}
		return err
	})
	return changes
}

func TestAttachFiltersBeforeThereIsALink(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	bad := testAttachment(ns, 7)
	bad.Filter, bad.Gateways = true, addrs("192.0.2.1") // fails inside the pod, after the link
	if err := node.Do(func() error { _, err := Attach(bad, e); return err }); err == nil {
		t.Fatal("attached with an unreachable gateway")
	}
	taken := testAttachment(ns, 8)
	taken.Filter = true
	output(t, ns, "ip link add eth0 type veth peer name other")
	if err := node.Do(func() error { _, err := Attach(taken, e); return err }); !errors.Is(err, ErrExists) {
		t.Errorf("error %v, want %v", err, ErrExists)
	}
	output(t, ns, "ip link del eth0")
	if got := table(t, node); strings.Contains(got, "elements") {
		t.Errorf("failed ADDs left\n%s", got)
	}

	a := testAttachment(ns, 7)
	a.Filter = true
	attach(t, node, a, e)
	before := table(t, node)
	for _, word := range []string{HostName(a.Container, "eth0"), "0a:58:0a:f4:01:07 . 10.244.1.7 ", "fd00:1::7", "fe80::858:aff:fef4:107"} {
		if !strings.Contains(before, word) {
			t.Errorf("no %s in\n%s", word, before)
		}
	}
	if changes := ensureFilter(t, node, wants(guardedOf(a))); len(changes) > 0 {
		t.Errorf("after ADD the daemon does %q", changes)
	}
	// Another attachment of the same container changes nothing of it.
	again := a
	again.Addrs, again.MAC = prefixes("10.244.1.9/24"), net.HardwareAddr{2, 0, 0, 0, 0, 9}
	if err := node.Do(func() error { _, err := Attach(again, e); return err }); !errors.Is(err, ErrAttached) {
		t.Errorf("error %v, want %v", err, ErrAttached)
	}
	if after := table(t, node); after != before {
		t.Errorf("a second ADD made of\n%s\n%s", before, after)
	}
	in(t, node, func() error { return CheckFilter(guardedOf(a)) })
	if ports := list(t, node); len(ports) != 1 || !ports[0].Guarded {
		t.Errorf("ports %+v", ports)
	}
	in(t, node, func() error { _, err := Detach(a.Container, a.IfName); return err })
	if got := table(t, node); strings.Contains(got, "elements") {
		t.Errorf("DEL left\n%s", got)
	}
}

func TestCheckFilter(t *testing.T) {
	node := netlab.TestNamespace(t)
	a := testAttachment(node, 7)
	g, port := guardedOf(a), HostName(a.Container, a.IfName)
	check := func(want string) {
		t.Helper()
		err := node.Do(func() error { return CheckFilter(g) })
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	check("set macs lacks link " + port)
	for set, key := range map[string]string{"macs": "", "own4": " . 10.244.1.7", "own6": " . fd00:1::7"} {
		ensureFilter(t, node, wants(g))
		check("")
		output(t, node, fmt.Sprintf("nft delete element bridge vxlan-cni %s { %s . 0a:58:0a:f4:01:07%s }", set, port, key))
		check("set " + set + " lacks link")
	}
	g.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	check("MAC 02:00:00:00:00:01")
}

// Sixteen plugins at once, and nobody has made the table.
func TestGuardInParallel(t *testing.T) {
	node := netlab.TestNamespace(t)
	for round := range 5 {
		var all sync.WaitGroup
		var list []Guarded
		for i := range 16 {
			g := guardedOf(testAttachment(node, 16*round+i+2))
			list = append(list, g)
			all.Go(func() {
				if err := node.Do(func() error { return testGuard(g) }); err != nil {
					t.Error(err)
				}
			})
		}
		// The daemon looks meanwhile. It must not take anything for stale.
		all.Go(func() {
			if err := node.Do(func() error { _, err := EnsureFilter(wants(list...)); return err }); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if changes := ensureFilter(t, node, wants(list...)); len(changes) > 0 {
			t.Errorf("round %d: %q was left to do", round, changes)
		}
		for i := range list[:8] {
			all.Go(func() {
				if err := node.Do(func() error { return unguard(HostName(list[i].Container, "eth0")) }); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if changes := ensureFilter(t, node, wants(list[8:]...)); len(changes) > 0 {
			t.Errorf("round %d: %q was left to do after half was removed", round, changes)
		}
		in(t, node, func() error {
			found, err := RemoveFilter()
			if !found && err == nil {
				err = errors.New("no table")
			}
			return err
		})
	}
	in(t, node, func() error {
		found, err := RemoveFilter()
		if found && err == nil {
			err = errors.New("found a table that is gone")
		}
		return err
	})
}

// What plugins do while the daemon looks is left as it is: an ADD between its look at
// the table and its change makes it look again.
func TestEnsureFilterBesidePlugins(t *testing.T) {
	node := netlab.TestNamespace(t)
	var mu sync.Mutex
	slots := map[string]Guarded{}
	want := func() (list []Guarded, err error) {
		mu.Lock()
		defer mu.Unlock()
		for _, g := range slots {
			list = append(list, g)
		}
		return list, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			if err := node.Do(func() error { _, err := EnsureFilter(want); return err }); err != nil {
				t.Error(err)
			}
		}
	})
	for worker := range 4 {
		all.Go(func() {
			for n := range 40 {
				g := guardedOf(testAttachment(node, 2+worker*60+n))
				mu.Lock()
				slots[g.Container] = g // the slot first, as ADD has it
				mu.Unlock()
				if err := node.Do(func() error { return testGuard(g) }); err != nil {
					t.Error(err)
				}
				if err := node.Do(func() error { return CheckFilter(g) }); err != nil {
					t.Errorf("the daemon took away what an ADD has set: %v", err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); all.Wait() }()
	waitAll := time.After(60 * time.Second)
	for {
		mu.Lock()
		n := len(slots)
		mu.Unlock()
		if n == 160 {
			break
		}
		select {
		case <-waitAll:
			t.Fatal("the plugins hang")
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	<-done
	if changes := ensureFilter(t, node, want); len(changes) > 0 {
		t.Errorf("%q was left to do", changes)
	}
}

// tampering is what somebody may do to the table, and to a link.
var tampering = []string{
	"nft flush ruleset",
	"nft delete table bridge vxlan-cni",
	"nft flush table bridge vxlan-cni",
	"nft flush chain bridge vxlan-cni from-pods",
	"nft flush set bridge vxlan-cni own4",
	"nft flush set bridge vxlan-cni macs",
	"nft insert rule bridge vxlan-cni pod accept",
	"nft add rule bridge vxlan-cni arp accept",
	"nft insert rule bridge vxlan-cni spoofed counter accept",
	"nft add chain bridge vxlan-cni more",
	"nft add chain bridge vxlan-cni hooked { type filter hook prerouting priority -400 ; }",
	"nft add chain bridge vxlan-cni from-pods { type filter hook prerouting priority -310 ; policy drop ; }",
	"nft add set bridge vxlan-cni more { type ifname ; }",
	"nft add table bridge vxlan-cni { flags dormant ; }",
	"nft add element bridge vxlan-cni own4 { veth00000000000 . 02:00:00:00:00:01 . 192.0.2.1 }",
	"nft add element bridge vxlan-cni own6 { PORT . 0a:58:0a:f4:01:07 . fd00:1::99 }",
	"nft delete element bridge vxlan-cni macs { PORT . 0a:58:0a:f4:01:07 }",
	"nft add table bridge other",
	"ip link set LINK name renamed",
	"ip link set LINK name PORT",
}

// From whatever state, EnsureFilter reaches the same one.
func TestEnsureFilterFromAnyState(t *testing.T) {
	for seed := range uint64(3) {
		random := rand.New(rand.NewPCG(seed, 2))
		node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
		a := testAttachment(ns, 7)
		a.Filter = true
		attach(t, node, a, ensure(t, node, testBridge()))
		port := HostName(a.Container, "eth0")
		link := port
		all := []Guarded{guardedOf(a)}
		for i := 8; i < 12; i++ {
			all = append(all, guardedOf(testAttachment(node, i)))
		}
		all[1].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 8}
		var done []string
		for range 12 {
			list := slices.Concat(all[:1], all[1+random.IntN(len(all)):])
			for range random.IntN(4) {
				act := tampering[random.IntN(len(tampering))]
				command := strings.NewReplacer("PORT", port, "LINK", link).Replace(act)
				// Some of it cannot be done in the state that is there.
				if _, err := node.Output("sh", "-c", strings.NewReplacer("{", "'{", "}", "}'").Replace(command)); err == nil {
					done = append(done, command)
					if words := strings.Fields(command); words[0] == "ip" {
						link = words[len(words)-1]
					}
				}
			}
			done = append(done, fmt.Sprintf("ensure %d", len(list)))
			ensureFilter(t, node, wants(list...))

			fresh := netlab.TestNamespace(t)
			ensureFilter(t, fresh, wants(list...))
			want := strings.ReplaceAll(table(t, fresh), port, link)
			if got := table(t, node); sortedWords(got) != sortedWords(want) {
				t.Fatalf("seed %d, after %q:\n%s\nwant\n%s", seed, done, got, want)
			}
		}
	}
}

// sortedWords sorts a text's words: a renamed link stands elsewhere in a list.
func sortedWords(text string) string {
	words := strings.Fields(strings.ReplaceAll(text, ",", " "))
	slices.Sort(words)
	return strings.Join(words, " ")
}

// A node without guarded pods gets no table, and one whose want cannot be told keeps it.
func TestEnsureFilterWithoutPods(t *testing.T) {
	node := netlab.TestNamespace(t)
	if changes := ensureFilter(t, node, wants()); len(changes) > 0 || table(t, node) != "" {
		t.Errorf("%q and\n%s", changes, table(t, node))
	}
	g := guardedOf(testAttachment(node, 7))
	ensureFilter(t, node, wants(g))
	before := table(t, node)
	broken := errors.New("slot file is torn")
	err := node.Do(func() error {
		_, err := EnsureFilter(func() ([]Guarded, error) { return nil, broken })
		return err
	})
	if !errors.Is(err, broken) || table(t, node) != before {
		t.Errorf("error %v and\n%s\nwant\n%s", err, table(t, node), before)
	}
	if changes := ensureFilter(t, node, wants()); len(changes) != 1 || strings.Contains(table(t, node), "elements") {
		t.Errorf("%q and\n%s", changes, table(t, node))
	}
}

// A link that nobody knows, because the slots are lost, goes on as it did.
func TestEnsureFilterKeepsUnknownLinks(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	a := testAttachment(ns, 7)
	a.Filter = true
	attach(t, node, a, ensure(t, node, testBridge()))
	before := table(t, node)
	ensureFilter(t, node, wants())
	if got := table(t, node); got != before {
		t.Errorf("%s\nwant\n%s", got, before)
	}
	output(t, node, "nft insert rule bridge vxlan-cni pod accept")
	ensureFilter(t, node, wants())
	if got := table(t, node); got != before {
		t.Errorf("%s\nwant\n%s", got, before)
	}
}

func TestFilterMonitor(t *testing.T) {
	node := netlab.TestNamespace(t)
	g := guardedOf(testAttachment(node, 7))
	ensureFilter(t, node, wants(g))
	var m *FilterMonitor
	in(t, node, func() (err error) { m, err = WatchFilter(); return err })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	heard := func(limit time.Duration) bool {
		select {
		case <-m.Ready():
			return true
		case <-time.After(limit):
			return false
		}
	}
	for _, command := range []string{"nft flush ruleset", "nft flush set bridge vxlan-cni own4", "nft add rule bridge vxlan-cni pod accept"} {
		output(t, node, command)
		if !heard(10 * time.Second) {
			t.Errorf("nothing heard of %s", command)
		}
		if !m.Foreign() {
			t.Errorf("%s is taken for our own", command)
		}
		if changes := ensureFilter(t, node, wants(g)); len(changes) == 0 {
			t.Errorf("after %s there was nothing to do", command)
		}
		if !heard(10 * time.Second) {
			t.Error("nothing heard of the repair")
		}
		if m.Foreign() {
			t.Error("the repair is taken for somebody else's")
		}
		for heard(0) {
		}
	}
	// What is not about the table comes before what is: if it were news, it would
	// be there.
	output(t, node, "nft add table bridge other")
	output(t, node, "nft add table inet vxlan-cni")
	if heard(20 * time.Millisecond) {
		t.Error("other tables are news")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Some frames the bridge does not forward: they are for the node, which must not take
// a packet in them from a pod that spoofs.
func TestFilteredFramesToTheBridgeItself(t *testing.T) {
	for _, filter := range []bool{false, true} {
		node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
		a := testAttachment(ns, 7)
		a.Filter = filter
		attach(t, node, a, ensure(t, node, testBridge()))
		output(t, node, "ip link del cni0") // made anew, with the port
		ensure(t, node, testBridge())
		in(t, node, func() error { return Check(a, "cni0") })
		var server *net.UDPConn
		in(t, node, func() (err error) {
			server, err = net.ListenUDP("udp", &net.UDPAddr{Port: 4000})
			return err
		})
		defer server.Close()
		w, b := newWire(t, ns, "eth0"), make([]byte, 100)
		for _, group := range []byte{0x00, 0x02, 0x03, 0x0e, 0x0f} {
			for _, packet := range []struct {
				etherType int
				packet    func(payload string) []byte
			}{
				{0x0800, func(s string) []byte { return ipv4("10.244.1.9", "10.244.1.1", unix.IPPROTO_UDP, udp(4000, []byte(s))) }},
				{0x86dd, func(s string) []byte {
					p := ipv6("fd00:1::9", "fd00:1::1", unix.IPPROTO_UDP, udp(4000, []byte(s)))
					binary.BigEndian.PutUint16(p[46:], checksum(p))
					return p
				}},
			} {
				w.send(eth(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, group}, testMAC(7), packet.etherType, packet.packet("spoofed")))
				w.send(eth(testBridge().MAC(), testMAC(7), 0x0800, ipv4(own4Addr, "10.244.1.1", unix.IPPROTO_UDP, udp(4000, []byte("own")))))
				heard := ""
				for heard == "" || !strings.HasSuffix(heard, "own") {
					_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
					n, err := server.Read(b)
					if err != nil {
						t.Fatalf("filter %t: the pod's own packet was not heard: %v", filter, err)
					}
					heard += string(b[:n])
				}
				// Without the filter the bridge forwards to nobody what is for the
				// spanning tree.
				if spoofed := heard != "own"; spoofed && filter || !spoofed && !filter && group == 0x0e {
					t.Errorf("filter %t, frame to group %x with %x: heard %q", filter, group, packet.etherType, heard)
				}
			}
		}
	}
}
