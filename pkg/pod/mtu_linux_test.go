package pod

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// mtuOf reads a link's MTU in the words of ip.
func mtuOf(t *testing.T, ns *netlab.Namespace, ifname string) string {
	t.Helper()
	words := strings.Fields(output(t, ns, "ip -o link show "+ifname))
	for i, w := range words {
		if w == "mtu" {
			return words[i+1]
		}
	}
	return ""
}

func TestSetMTU(t *testing.T) {
	node, seven, eight, guest := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	a := testAttachment(seven, 7)
	a.Filter = true
	seventh, eighth := attach(t, node, a, e), attach(t, node, testAttachment(eight, 8), e)
	// Of another plugin, off the bridge, and not a pod's.
	output(t, node, "ip link add vethguest mtu 1450 type veth peer name eth0 mtu 1450 netns "+guest.Name)
	output(t, node, "ip link set vethguest master cni0 up")
	output(t, node, "ip link add vethother mtu 1450 type veth peer name vethother2 mtu 1450")
	output(t, node, "ip link set "+eighth.HostName+" nomaster")

	set := func(mtu int, want int) {
		t.Helper()
		in(t, node, func() error {
			changed, err := SetMTU(mtu, "cni0", "/run/netns", "/nosuch")
			if err == nil && len(changed) != want {
				err = fmt.Errorf("changed %q, want %d", changed, want)
			}
			return err
		})
		for ns, ifname := range map[*netlab.Namespace]string{seven: "eth0", eight: "eth0", guest: "eth0"} {
			if got := mtuOf(t, ns, ifname); got != fmt.Sprint(mtu) {
				t.Errorf("MTU %s in the pod, want %d", got, mtu)
			}
		}
		for _, ifname := range []string{seventh.HostName, eighth.HostName, "vethguest"} {
			if got := mtuOf(t, node, ifname); got != fmt.Sprint(mtu) {
				t.Errorf("MTU %s of %s, want %d", got, ifname, mtu)
			}
		}
		if got := mtuOf(t, node, "vethother"); got != "1450" {
			t.Errorf("somebody's MTU is %s", got)
		}
	}
	set(1400, 3)
	set(1400, 0)
	set(9000, 3)
	output(t, seven, "ip link set eth0 mtu 1300") // what a kill half-way leaves
	set(9000, 1)
}

// A pod whose namespace is nowhere to be found keeps both ends.
func TestSetMTUOfALostNamespace(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	r := attach(t, node, testAttachment(ns, 7), ensure(t, node, testBridge()))
	empty := t.TempDir()
	if err := node.Do(func() error {
		changed, err := SetMTU(1300, "cni0", empty, filepath.Join(empty, "nosuch"))
		if len(changed) > 0 {
			t.Errorf("changed %q", changed)
		}
		return err
	}); !errors.Is(err, ErrMTULeft) || !strings.Contains(err.Error(), "pod default/web-7") || !strings.Contains(err.Error(), empty) {
		t.Errorf("error %v", err)
	}
	if one, two := mtuOf(t, node, r.HostName), mtuOf(t, ns, "eth0"); one != "1450" || two != "1450" {
		t.Errorf("MTU %s and %s, want both left", one, two)
	}
	in(t, node, func() error { _, err := SetMTU(1450, "cni0", empty); return err }) // nothing to do, nobody to find
	if _, err := node.Output("ip", "link", "del", "cni0"); err != nil {
		t.Fatal(err)
	}
	in(t, node, func() error { _, err := SetMTU(1300, "cni0", NetnsFolders...); return err }) // without the bridge too
	if got := mtuOf(t, ns, "eth0"); got != "1300" {
		t.Errorf("MTU %s", got)
	}
}

// A connection goes on while both ends change.
func TestSetMTUUnderTraffic(t *testing.T) {
	node, seven, eight := netlab.TestNamespace(t), netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	attach(t, node, testAttachment(seven, 7), e)
	attach(t, node, testAttachment(eight, 8), e)
	const size = 8 << 20
	received := make(chan error, 1)
	listener := listenTCP(t, eight, "10.244.1.8:4000")
	go func() { received <- receiveAll(listener, size) }()
	conn, err := seven.Dial("tcp", "10.244.1.8:4000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sizes := []int{1400, 9000, 1300, 1450}
	for sent := 0; sent < size; sent += size / 4 {
		b := testBridge()
		b.MTU = sizes[sent/(size/4)]
		in(t, node, func() error {
			if _, err := b.Ensure(); err != nil {
				return err
			}
			_, err := SetMTU(b.MTU, "cni0", "/run/netns")
			return err
		})
		if _, err := conn.Write(make([]byte, size/4)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-received:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the transfer hangs")
	}
}

// Without the right to enter namespaces both ends stay, too.
func TestSetMTUWithoutRights(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	r := attach(t, node, testAttachment(ns, 7), ensure(t, node, testBridge()))
	err := node.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var have [2]unix.CapUserData
		if err := unix.Capget(&header, &have[0]); err != nil {
			return err
		}
		less := have
		less[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&header, &less[0]); err != nil { // of this thread
			return err
		}
		_, err := SetMTU(1300, "cni0", "/run/netns")
		return errors.Join(err, unix.Capset(&header, &have[0]))
	})
	if !errors.Is(err, ErrMTULeft) || !errors.Is(err, unix.EPERM) {
		t.Errorf("error %v, want %v and %v", err, ErrMTULeft, unix.EPERM)
	}
	if one, two := mtuOf(t, node, r.HostName), mtuOf(t, ns, "eth0"); one != "1450" || two != "1450" {
		t.Errorf("MTU %s and %s, want both left", one, two)
	}
}
