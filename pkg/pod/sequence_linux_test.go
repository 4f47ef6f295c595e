package pod

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A model is what a node with a few pods should hold.
type model struct {
	*testing.T
	node     *netlab.Namespace
	pods     []*netlab.Namespace
	attached map[string]int // container id → pod
	done     []string
}

// compare looks whether the node holds what the model says.
func (m *model) compare() {
	m.Helper()
	var got []string
	for _, p := range list(m, m.node) {
		got = append(got, p.Container)
		if p.Bridge == 0 || !p.Up || p.HostName != HostName(p.Container, "eth0") {
			m.Errorf("after %q: port %+v", m.done, p)
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(m.attached)); !slices.Equal(got, want) {
		m.Fatalf("after %q: attached %v, want %v", m.done, got, want)
	}
	for id, i := range m.attached {
		a := m.attachment(id, i)
		if err := m.node.Do(func() error { return Check(a, "cni0") }); err != nil {
			m.Fatalf("after %q: %s: %v", m.done, id, err)
		}
	}
}

func (m *model) attachment(id string, i int) Attachment {
	a := testAttachment(m.pods[i], i+2)
	a.Container = id
	return a
}

// attach attaches any container to any pod; the model knows what must come of it.
func (m *model) attach(random *rand.Rand) {
	i := random.IntN(len(m.pods))
	id := fmt.Sprintf("c%d", random.IntN(len(m.pods)))
	occupied := slices.Contains(slices.Collect(maps.Values(m.attached)), i)
	_, known := m.attached[id]
	err := m.node.Do(func() error {
		e, err := testBridge().Ensure()
		if err == nil {
			_, err = Attach(m.attachment(id, i), e)
		}
		return err
	})
	m.done = append(m.done, fmt.Sprintf("attach %s to pod %d", id, i))
	switch {
	case known && !errors.Is(err, ErrAttached):
		m.Fatalf("after %q: %v, want %v", m.done, err, ErrAttached)
	case !known && occupied && !errors.Is(err, ErrExists):
		m.Fatalf("after %q: %v, want %v", m.done, err, ErrExists)
	case !known && !occupied && err != nil:
		m.Fatalf("after %q: %v", m.done, err)
	case !known && !occupied:
		m.attached[id] = i
	}
}

func (m *model) detach(random *rand.Rand) {
	id := fmt.Sprintf("c%d", random.IntN(len(m.pods)))
	_, known := m.attached[id]
	delete(m.attached, id)
	m.done = append(m.done, "detach "+id)
	in(m, m.node, func() error {
		found, err := Detach(id, "eth0")
		if err == nil && found != known {
			err = fmt.Errorf("after %q: found %t, want %t", m.done, found, known)
		}
		return err
	})
}

// tamper is what others do: to the bridge, to a port, inside of a pod.
func (m *model) tamper(random *rand.Rand) {
	repair := func() error {
		e, err := testBridge().Ensure()
		if err == nil {
			_, err = Reattach(e.Index)
		}
		return err
	}
	ids := slices.Sorted(maps.Keys(m.attached))
	switch {
	case random.IntN(2) == 0 || len(ids) == 0:
		m.done = append(m.done, "delete the bridge")
		_, _ = m.node.Output("ip", "link", "del", "cni0") // it may not be there yet
		in(m, m.node, repair)
	case random.IntN(2) == 0:
		id := ids[random.IntN(len(ids))]
		m.done = append(m.done, "take out "+id)
		output(m, m.node, "ip link set "+HostName(id, "eth0")+" nomaster")
		in(m, m.node, repair)
	default:
		id := ids[random.IntN(len(ids))]
		m.done = append(m.done, "delete eth0 of "+id)
		output(m, m.pods[m.attached[id]], "ip link del eth0")
		delete(m.attached, id)
	}
}

// Whatever is attached, detached and tampered with, in whatever order: the
// node holds exactly what it should, and each attachment passes its check.
func TestRandomSequences(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			m := &model{T: t, node: netlab.TestNamespace(t), attached: map[string]int{}}
			for range 4 {
				m.pods = append(m.pods, netlab.TestNamespace(t))
			}
			for range 25 {
				switch random.IntN(5) {
				case 0, 1, 2:
					m.attach(random)
				case 3:
					m.detach(random)
				case 4:
					m.tamper(random)
				}
				m.compare()
			}
		})
	}
}

func TestHairpinOff(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	a := testAttachment(ns, 7)
	a.Hairpin = false
	attach(t, node, a, e)
	if out := output(t, node, "bridge -d link"); !strings.Contains(out, "hairpin off") {
		t.Error(out)
	}
	in(t, node, func() error { return Check(a, "cni0") })
}

// A pod whose namespace has IPv6 switched off: the error says so.
func TestAttachWhereIPv6IsOff(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	before := state(t, node)
	output(t, ns, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
	a := testAttachment(ns, 7)
	err := node.Do(func() error { _, err := Attach(a, e); return err })
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "disable_ipv6") {
		t.Errorf("error %v", err)
	}
	if after := state(t, node); after != before {
		t.Errorf("node:\n%s\nwant\n%s", after, before)
	}
	a.Addrs, a.Gateways = a.Addrs[:1], a.Gateways[:1] // without IPv6 addresses it does not matter
	attach(t, node, a, e)
}

// Neither success nor failure leaves a descriptor or a thread elsewhere.
func TestNoDescriptorIsLeaked(t *testing.T) {
	node, ns := netlab.TestNamespace(t), netlab.TestNamespace(t)
	e := ensure(t, node, testBridge())
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	good, bad, worse := testAttachment(ns, 7), testAttachment(ns, 8), testAttachment(ns, 9)
	bad.Gateways = addrs("192.0.2.1")
	worse.Netns = "/proc/self/ns/mnt"
	round := func() error {
		_, err1 := Attach(good, e)
		_, err2 := Attach(bad, e)
		_, err3 := Attach(worse, e)
		if err := Check(good, "nosuch"); err == nil || err2 == nil || err3 == nil {
			return errors.New("what is impossible succeeded")
		}
		_, err4 := Detach(good.Container, good.IfName)
		_, err5 := List()
		return errors.Join(err1, err4, err5)
	}
	for i, before := 0, 0; i < 6; i++ {
		in(t, node, round)
		if i == 1 {
			before = open() // the first rounds open what stays, such as the poller
		}
		if now := open(); i > 1 && now > before {
			t.Errorf("%d descriptors are open after round %d, %d before", now, i, before)
		}
	}
	if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != home {
		t.Errorf("in namespace %s, want %s (%v)", now, home, err)
	}
}
