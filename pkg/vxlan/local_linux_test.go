package vxlan

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// The kernel keeps with each FDB entry the route and the source address of the
// packets that it leads. An old one that the node still has would stay in use,
// and peers drop what comes from an address that they do not know.
func TestPacketsLeaveWithTheNewLocal(t *testing.T) {
	for _, c := range []struct{ first, second, peer, subnet string }{
		{"192.0.2.250/24", "192.0.2.251/24", "192.0.2.1/24", "10.244.1.0/24"},
		{"2001:db8::250/64", "2001:db8::251/64", "2001:db8::1/64", "fd00:0:0:1::/64"},
	} {
		ns, far := withUnderlay(t), netlab.TestNamespace(t)
		run(t, ns, "ip link add far type veth peer name eth0 netns "+far.Name)
		run(t, ns, "ip link set far master under up")
		run(t, ns, "ip addr replace "+c.first+" dev under nodad")
		run(t, ns, "ip addr replace "+c.second+" dev under nodad")
		run(t, far, "ip addr add "+c.peer+" dev eth0 nodad")
		run(t, far, "ip link set eth0 up")

		cfg := testConfig()
		cfg.Local, cfg.MTU = prefix(c.first).Addr(), 1400
		d := openIn(t, ns, cfg)
		ensure(t, d)
		subnet := prefix(c.subnet)
		want := Desired([]Peer{{subnet, subnet.Addr(), MAC{0x0e, 0, 0, 0, 0, 1}, prefix(c.peer).Addr(), false}})
		hear := hearTunnel(t, far, cfg.Port)
		say := func(want string) {
			t.Helper()
			err := netlab.Eventually(10*time.Second, func() error {
				conn, err := ns.Dial("udp", netip.AddrPortFrom(subnet.Addr().Next(), 9).String())
				if err != nil {
					return err
				}
				defer func() { _ = conn.Close() }()
				if err := onEachCPU(func() error { _, err := conn.Write([]byte("x")); return err }); err != nil {
					return err
				}
				from, err := hear()
				if err == nil && from != prefix(want).Addr() {
					t.Errorf("packets leave with %s, want %s", from, want)
				}
				return err
			})
			for err == nil {
				var from netip.Addr
				if from, err = hear(); err == nil && from != prefix(want).Addr() {
					t.Errorf("packets leave with %s, want %s", from, want)
				}
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
			if err != nil {
				t.Error(err)
			}
		}
		// Other changes make the kernel look again as well: not all of these would
		// go wrong.
		for i := range 6 {
			local := []string{c.first, c.second}[i%2]
			cfg.Local = prefix(local).Addr()
			if err := d.SetConfig(cfg); err != nil {
				t.Fatal(err)
			}
			ensure(t, d)
			if ops := reconcile(t, d, want); i > 0 && len(ops) > 0 {
				t.Errorf("entries went with the address: %v", ops)
			}
			say(local)
		}
	}
}

// onEachCPU calls fn on each processor in turn: what the kernel keeps it keeps for
// each of them.
func onEachCPU(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }()
	for cpu := range runtime.NumCPU() {
		var one unix.CPUSet
		if one.Set(cpu); !all.IsSet(cpu) {
			continue
		}
		if err := errors.Join(unix.SchedSetaffinity(0, &one), fn()); err != nil {
			return err
		}
	}
	return nil
}

// hearTunnel listens to the tunnel's port, and returns what tells the sender of the
// next packet.
func hearTunnel(t *testing.T, n *netlab.Namespace, port uint16) func() (netip.Addr, error) {
	t.Helper()
	var conn *net.UDPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func() (netip.Addr, error) {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 2000))
		return from.Addr().Unmap(), err
	}
}
