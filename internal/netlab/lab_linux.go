package netlab

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// StorePort is where the store listens, on the near segment's router.
	StorePort = 2379

	// maxNodes keeps addresses inside a /24.
	maxNodes = 200
)

// Options says what a Lab is made of.
type Options struct {
	Name     string   // tells this process's labs apart; letters and digits
	Nodes    int      // 1 to 200
	Far      int      // how many of them, the last ones, are on the far segment
	Underlay string   // its families: "4", "6" or "46", which is what "" means
	MTU      int      // bytes, of the underlay; 0: 1500
	Daemon   string   // the overlayd binary
	Flags    []string // of overlayd on every node, after those that the lab sets
	Env      []string // of overlayd, besides this process's
	AnyIface bool     // overlayd is not told to use eth0, and has to choose
	Keep     bool     // the lab may outlive its owner
}

// A Lab is several nodes on one machine: each a network namespace with eth0 on
// an underlay bridge, which is in a namespace of its own. With Options.Far there
// is a second bridge, and that namespace routes between the two. The machine's
// own network is not touched.
type Lab struct {
	ID       string // what every name in the lab begins with
	Dir      string // the lab's folder: run folders, logs, lab.json
	Underlay *Namespace
	Nodes    []*Node

	opts   Options
	hasFar bool

	mu     sync.Mutex
	procs  []Process    // running, as far as the lab knows
	spaces []*Namespace // of underlay, nodes and pods
	held   *os.File     // the store ends when this closes
}

// New makes a lab whose nodes run nothing yet. After an error nothing is left.
func New(o Options) (_ *Lab, err error) {
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return nil, fmt.Errorf("lab of %d nodes: want 1 to %d", o.Nodes, maxNodes)
	}
	if o.Far < 0 || o.Far > o.Nodes {
		return nil, fmt.Errorf("lab of %d nodes, %d of them far: want 0 to %[1]d", o.Nodes, o.Far)
	}
	o.Underlay, o.MTU = cmp.Or(o.Underlay, "46"), cmp.Or(o.MTU, 1500)
	if err := checkFamilies(o.Underlay); err != nil {
		return nil, err
	}
	l := &Lab{ID: Prefix() + o.Name, opts: o}
	l.Dir = filepath.Join(os.TempDir(), l.ID)
	// A folder that exists belongs to another lab: Mkdir, not MkdirAll.
	if err := os.Mkdir(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	success := false
	defer func() {
		if !success {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := l.makeUnderlay(); err != nil {
		return nil, fmt.Errorf("make underlay: %w", err)
	}
	for i := range o.Nodes {
		n, err := l.makeNode(i + 1)
		if err != nil {
			return nil, fmt.Errorf("make node %d: %w", i+1, err)
		}
		l.Nodes = append(l.Nodes, n)
	}
	success = true
	return l, nil
}

// StoreAddr is where the nodes reach the store: the near segment's router, by
// IPv4 if the underlay has it.
func (l *Lab) StoreAddr() netip.AddrPort {
	return netip.AddrPortFrom(Near.Router(l.families()[0]), StorePort)
}

// StoreURL is StoreAddr as overlayd takes it.
func (l *Lab) StoreURL() string { return "http://" + l.StoreAddr().String() }

func (l *Lab) makeUnderlay() (err error) {
	if l.Underlay, err = l.namespace("underlay"); err != nil {
		return err
	}
	// A router with an address that is still being checked asks for no neighbour.
	if err := l.Underlay.Sysctl("net/ipv6/conf/default/accept_dad", "0"); err != nil {
		return err
	}
	if err := l.makeSegment(Near); err != nil || l.opts.Far == 0 {
		return err
	}
	return l.ensureFar()
}

// makeNode makes node i: eth0 with 192.0.2.<10+i> and 2001:db8::<10+i>, or the
// far segment's addresses of that number, and the router as its default gateway.
func (l *Lab) makeNode(i int) (*Node, error) {
	n := &Node{Name: fmt.Sprintf("n%d", i), Segment: Near, lab: l, number: 10 + i}
	if i > l.opts.Nodes-l.opts.Far {
		n.Segment = Far
	}
	n.Dir = filepath.Join(l.Dir, n.Name)
	n.RunDir = filepath.Join(n.Dir, "run")
	n.Log = filepath.Join(n.Dir, "overlayd.log")
	if err := os.MkdirAll(n.RunDir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.Namespace, err = l.namespace(n.Name); err != nil {
		return nil, err
	}
	// A Kubernetes node forwards; a new namespace here does not.
	err = n.Sysctl("net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1")
	if err != nil {
		return nil, err
	}
	addrs, err := l.plug(n.Namespace, n.port(), "eth0", n.Segment, n.number)
	if err != nil {
		return nil, err
	}
	n.Address, n.Address6 = ofFamily(addrs, true), ofFamily(addrs, false)
	return n, n.IP(l.defaultLines(n.Segment, "eth0")...)
}

// namespace makes a namespace that goes with the lab.
func (l *Lab) namespace(name string) (*Namespace, error) {
	n, err := NewNamespace(strings.TrimPrefix(l.ID, Prefix()) + "-" + name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spaces = append(l.spaces, n)
	return n, nil
}

// NewPod makes an empty network namespace for a pod.
func (l *Lab) NewPod(name string) (*Namespace, error) { return l.namespace("pod-" + name) }

// RemovePod removes a namespace that NewPod made.
func (l *Lab) RemovePod(n *Namespace) error {
	l.mu.Lock()
	l.spaces = slices.DeleteFunc(l.spaces, func(p *Namespace) bool { return p == n })
	l.mu.Unlock()
	return n.Close()
}

// StartStore runs argv, a server that will listen on StoreAddr, in the
// underlay's namespace, and returns when it listens. Its standard input ends
// when the lab's owner does, unless the lab is to be kept: then never.
func (l *Lab) StartStore(argv ...string) (Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return Process{}, err
	}
	defer func() { _ = r.Close() }()
	cmd := l.Underlay.Command(argv[0], argv[1:]...)
	cmd.Stdin = r
	if l.opts.Keep {
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	p, err := start("store", cmd, filepath.Join(l.Dir, "store.log"))
	if err != nil {
		_ = w.Close()
		return p, err
	}
	l.mu.Lock()
	l.held = w
	l.mu.Unlock()
	if err := l.add(p); err != nil {
		return p, err
	}
	return p, p.eventually(20*time.Second, func() error {
		conn, err := l.Underlay.Dial("tcp", l.StoreAddr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// add puts a process on the account that Close and Abandoned stand on.
func (l *Lab) add(p Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs = append(l.procs, p)
	return l.save()
}

// Forget takes a process that has ended off the lab's account.
func (l *Lab) Forget(p Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs = slices.DeleteFunc(l.procs, func(q Process) bool { return q == p })
	return l.save()
}

// Close stops the processes and removes the namespaces and the folder. It goes
// on after errors, and names everything that is left.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	// The store last: the daemons may have something to say to it.
	for _, p := range slices.Backward(l.procs) {
		if p.Name != "store" {
			errs = append(errs, p.Stop())
		}
	}
	for _, p := range l.procs {
		errs = append(errs, p.Stop())
	}
	if l.held != nil {
		_ = l.held.Close()
	}
	for _, n := range slices.Backward(l.spaces) {
		errs = append(errs, n.Close())
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		errs = append(errs, fmt.Errorf("remove lab folder: %w", err))
	}
	l.procs, l.spaces, l.held = nil, nil, nil
	if left := l.Leftovers(); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left of lab %s:\n  %s", l.ID, strings.Join(left, "\n  ")))
	}
	return errors.Join(errs...)
}

// Leftovers lists what bears the lab's name: namespaces, links of the machine's
// own network, processes and folders. After Close it is empty.
func (l *Lab) Leftovers() []string {
	var left []string
	for _, dir := range []string{namespaceDir, os.TempDir()} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() == l.ID || strings.HasPrefix(e.Name(), l.ID+"-") {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	links, _ := net.Interfaces()
	for _, i := range links {
		if strings.HasPrefix(i.Name, l.ID) {
			left = append(left, "link "+i.Name)
		}
	}
	return append(left, processesNaming(l.ID)...)
}
