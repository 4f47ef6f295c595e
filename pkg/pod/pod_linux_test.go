package pod

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// testBridge is a node's bridge with both families.
func testBridge() Bridge {
	return Bridge{
		Name:     "cni0",
		Gateways: prefixes("10.244.1.1/24", "fd00:1::1/64"),
		Networks: prefixes("10.244.0.0/16", "fd00::/16"),
		MTU:      1450,
	}
}

// testAttachment is the i-th pod of that node.
func testAttachment(ns *netlab.Namespace, i int) Attachment {
	return Attachment{
		Container: fmt.Sprintf("%064x", i),
		IfName:    "eth0",
		Netns:     ns.Path(),
		Network:   "pods",
		Pod:       fmt.Sprintf("default/web-%d", i),
		Addrs:     prefixes(fmt.Sprintf("10.244.1.%d/24", i), fmt.Sprintf("fd00:1::%x/64", i)),
		Gateways:  addrs("10.244.1.1", "fd00:1::1"),
		MTU:       1450,
		Hairpin:   true,
	}
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, t := range texts {
		list = append(list, netip.MustParseAddr(t))
	}
	return list
}

// in runs fn inside a namespace and fails the test on an error.
func in(t testing.TB, ns *netlab.Namespace, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// ensure makes the bridge in the node's namespace.
func ensure(t testing.TB, node *netlab.Namespace, b Bridge) (e Ensured) {
	t.Helper()
	in(t, node, func() (err error) { e, err = b.Ensure(); return err })
	return e
}

// attach attaches a pod to the bridge in the node's namespace.
func attach(t testing.TB, node *netlab.Namespace, a Attachment, e Ensured) (r Result) {
	t.Helper()
	in(t, node, func() (err error) { r, err = Attach(a, e); return err })
	return r
}

// output runs a command in a namespace.
func output(t testing.TB, ns *netlab.Namespace, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := ns.Output(words[0], words[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unsteady is what differs from run to run in the output of ip: indices of
// links and names of peers, namespace ids, MACs that the kernel drew, and link-local addresses of
// the pod, which come with a delay.
var unsteady = []struct{ from, to string }{
	{`(?m)^\d+: `, ""},
	{`(?m)^(\S+)@\S+: `, "$1@peer: "},
	{` link-netnsid \d+`, ""},
	{` link-netns \S+`, ""},
	{`[ \t]+`, " "},
	{`\\`, ""},
	{`(?m) +$`, ""},
	{` (proto (kernel_ll|0x4d|77)|qlen \d+|qdisc \S+)`, ""},
	{`(?m)^eth0 inet6 fe80.*\n`, ""},
	{`(?m)^fe80.*\n`, ""},
	{`(?m)^\S* ?ff00.*\n`, ""},
	{` pref medium`, ""},
	{`NO-CARRIER,|,LOWER_UP|,M-DOWN| linkdown`, ""}, // the carrier follows later
	{` state (UP|DOWN|UNKNOWN|LOWERLAYERDOWN)`, ""},
	{` priority \d+ cost \d+`, ""},
	{` (promiscuity|allmulti|minmtu|maxmtu|numtxqueues|numrxqueues|gso_max_size|gso_max_segs|tso_max_size|tso_max_segs|gro_max_size|gso_ipv4_max_size|gro_ipv4_max_size) \d+`, ""},
}

// state is a namespace as text: links, addresses, routes, neighbours and
// bridge ports.
func state(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	var all strings.Builder
	for _, command := range []string{
		"ip -o link", "ip -o addr", "ip route", "ip -6 route", "ip neigh show nud permanent", "bridge -d link",
	} {
		fmt.Fprintf(&all, "# %s\n%s", command, output(t, ns, command))
	}
	text := all.String()
	for _, u := range unsteady {
		text = regexp.MustCompile(u.from).ReplaceAllString(text, u.to)
	}
	return strings.TrimSpace(text)
}

// listenTCP listens inside a namespace until the test ends.
func listenTCP(t *testing.T, ns *netlab.Namespace, address string) (l net.Listener) {
	t.Helper()
	in(t, ns, func() (err error) { l, err = net.Listen("tcp", address); return err })
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// receiveAll accepts one connection and reads that many bytes.
func receiveAll(l net.Listener, size int64) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = io.CopyN(io.Discard, conn, size)
	return err
}
