package kubelab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// Options says what a Lab is made of.
type Options struct {
	Name   string   // tells this process's labs apart; letters and digits
	Nodes  int      // 1 to 200
	Images []string // image archives that every node has, besides those of the lab
	Keep   bool     // the lab may outlive its owner
	Audit  []string // users of the API whose requests AuditLog has
	Taint  string   // key of the taint that nodes register with; none if empty
}

// A Lab is a cluster: a control plane, whose network namespace has the
// underlay's bridge, and nodes.
type Lab struct {
	ID    string // what every name in the lab begins with
	Dir   string // everything of the lab but its cgroups
	Nodes []*Node

	images  []string
	control *guest
	ca      *authority
	keep    bool
	audited []string
	taint   string
}

// stateName is the file, inside a lab's folder, from which another process can
// find the lab and remove it.
const stateName = "kubelab.json"

// state is what that file holds.
type state struct {
	ID     string         `json:"id"`
	Owner  netlab.Process `json:"owner"`
	Place  string         `json:"place"` // the owner's module: whose lab it is
	Kept   bool           `json:"kept"`
	Nodes  int            `json:"nodes"`
	Taint  string         `json:"taint,omitempty"`
	Images []string       `json:"images"`
}

// New starts a lab, and returns when its API server is ready. Its nodes boot
// meanwhile, and have no CNI configuration. After an error nothing is left.
func New(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Nodes < 1 || o.Nodes > 200 {
		return nil, fmt.Errorf("lab of %d nodes: want 1 to 200", o.Nodes)
	}
	l := &Lab{ID: netlab.Prefix() + o.Name, keep: o.Keep, audited: o.Audit, taint: o.Taint}
	l.Dir = filepath.Join(os.TempDir(), l.ID)
	// A folder that exists belongs to another lab: Mkdir, not MkdirAll.
	if err := os.Mkdir(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	success := false
	defer func() {
		if !success {
			err = errors.Join(fmt.Errorf("%w\n%s", err, l.Logs("", 20)), l.Close())
		}
	}()
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := l.prepare(ctx, o.Images); err != nil {
		return nil, fmt.Errorf("prepare lab: %w", err)
	}
	for range o.Nodes {
		if _, err := l.register(); err != nil {
			return nil, err
		}
	}
	if err := l.bootAll(); err != nil {
		return nil, err
	}
	if err := l.control.await(ctx, "manager"); err != nil {
		return nil, err
	}
	success = true
	return l, nil
}

// prepare builds the programs and images, and boots the control plane.
func (l *Lab) prepare(ctx context.Context, images []string) error {
	if err := build(ctx, filepath.Join(l.Dir, "bin")); err != nil {
		return err
	}
	for _, i := range []struct{ name, program string }{{PauseImage, "pause"}, {ToolImage, "etool"}, {DNSImage, "coredns"}} {
		path := filepath.Join(l.Dir, i.program+".tar")
		if err := writeImage(path, i.name, l.bin(i.program)); err != nil {
			return err
		}
		l.images = append(l.images, path)
	}
	l.images = append(l.images, images...)
	var err error
	if l.ca, err = newAuthority(filepath.Join(l.Dir, "pki")); err != nil {
		return err
	}
	if err := l.certify(l.ca); err != nil {
		return err
	}
	l.control = l.guest("control")
	if err := l.writeAuditPolicy(); err != nil {
		return err
	}
	return l.control.boot(spec{
		Link: "lo", Units: l.controlUnits(),
		IP: []string{
			"link set lo up", "link add underlay type bridge", "link set underlay up",
			"address add " + controlIP + "/24 dev underlay",
			"address add " + controlIP6 + "/64 dev underlay nodad",
		},
	})
}

// NewNode makes one more node, and boots it.
func (l *Lab) NewNode() (*Node, error) {
	n, err := l.register()
	if err != nil {
		return nil, err
	}
	return n, n.Boot()
}

// bootAll boots all nodes at once.
func (l *Lab) bootAll() error {
	errs := make([]error, len(l.Nodes))
	var all sync.WaitGroup
	for i, n := range l.Nodes {
		all.Go(func() { errs[i] = n.Boot() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// register makes one more node, which is off.
func (l *Lab) register() (*Node, error) {
	i := len(l.Nodes) + 1
	n := l.node(i)
	err := l.ca.kubeconfig(apiServer, subject{
		file: n.Name, name: "system:node:" + n.Name, groups: []string{"system:nodes"},
		names: []string{n.Name}, addrs: []netip.Addr{n.Addr},
	})
	if err != nil {
		return nil, err
	}
	l.Nodes = append(l.Nodes, n)
	return n, l.save()
}

// node is node i as an object.
func (l *Lab) node(i int) *Node {
	n := &Node{guest: l.guest(fmt.Sprintf("node%d", i)), Proxy: "nftables"}
	n.Addr = netip.MustParseAddr(fmt.Sprint("192.0.2.", 10+i))
	n.Addr6 = netip.MustParseAddr(fmt.Sprint("2001:db8::", 10+i))
	if i%2 == 0 {
		n.Proxy = "iptables"
	}
	return n
}

// Kubeconfig is the administrator's file. It works inside the network namespace
// of the control plane: see Within.
func (l *Lab) Kubeconfig() string { return l.pki("admin.kubeconfig") }

// Within prepares a command that runs in the network namespace of the control
// plane, where the API server is.
func (l *Lab) Within(name string, args ...string) *exec.Cmd {
	pid := strconv.Itoa(l.control.process().PID)
	return exec.Command("nsenter", append([]string{"--net=/proc/" + pid + "/ns/net", "--", name}, args...)...)
}

// Kill kills a unit of the control plane, such as apiserver; it is started again
// at once.
func (l *Lab) Kill(unit string) error { return l.control.Kill(unit) }

// Close ends everything that runs in the lab, and removes it.
func (l *Lab) Close() error {
	errs := []error{removeGroups(l.ID)}
	// A guest that was killed before it entered its cgroups is in none.
	for _, g := range append([]*guest{l.guest("control")}, l.guests()...) {
		errs = append(errs, g.process().Kill())
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		errs = append(errs, fmt.Errorf("remove lab folder: %w", err))
	}
	if left := l.Leftovers(); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left of lab %s:\n  %s", l.ID, strings.Join(left, "\n  ")))
	}
	return errors.Join(errs...)
}

func (l *Lab) guests() (all []*guest) {
	for _, n := range l.Nodes {
		all = append(all, n.guest)
	}
	return all
}

// Leftovers lists what bears the lab's name: cgroups and the folder. After Close
// it is empty.
func (l *Lab) Leftovers() (left []string) {
	paths, _ := filepath.Glob("/sys/fs/cgroup/*/" + l.ID)
	for _, p := range append(paths, l.Dir) {
		if _, err := os.Lstat(p); err == nil {
			left = append(left, p)
		}
	}
	return left
}

// save writes the lab's state.
func (l *Lab) save() error {
	place, err := program.Module()
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, stateName)
	s := state{ID: l.ID, Owner: netlab.ProcessOf("owner", os.Getpid()), Place: place, Kept: l.keep, Images: l.images, Taint: l.taint}
	if old, err := load(path); err == nil {
		s.Owner, s.Kept = old.Owner, old.Kept // a process that opened the lab does not own it
	}
	s.Nodes = len(l.Nodes)
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func load(path string) (s state, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.ID != filepath.Base(filepath.Dir(path)) {
		err = fmt.Errorf("id %q, want the folder's name", s.ID)
	}
	if err != nil {
		return s, fmt.Errorf("read lab %s: %w", path, err)
	}
	return s, nil
}

// Open returns the lab in folder dir, which another process made.
func Open(dir string) (*Lab, error) {
	s, err := load(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	l := &Lab{ID: s.ID, Dir: dir, images: s.Images, keep: s.Kept, taint: s.Taint}
	l.control = l.guest("control")
	for i := range s.Nodes {
		l.Nodes = append(l.Nodes, l.node(i+1))
	}
	if l.ca, err = openAuthority(filepath.Join(dir, "pki")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return l, nil
}

// Abandoned finds the labs whose owner has ended and worked in this module:
// another checkout's labs are another's. Those that were to be kept are among
// them only if kept is set.
func Abandoned(kept bool) (labs []*Lab, err error) {
	place, err := program.Module()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(os.TempDir(), "ovl-*", stateName))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range files {
		s, err := load(f)
		if err == nil && (s.Place != place || s.Owner.Alive() || s.Kept && !kept) {
			continue
		}
		var l *Lab
		if err == nil {
			l, err = Open(filepath.Dir(f))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		labs = append(labs, l)
	}
	return labs, errors.Join(errs...)
}

// Logs are the ends of all logs of a guest's units; of all guests if name is
// empty.
func (l *Lab) Logs(name string, lines int) string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(l.Dir, "*", "*.log"))
	slices.Sort(files)
	for _, f := range files {
		if name == "" || filepath.Base(filepath.Dir(f)) == name {
			b.WriteString(netlab.Tail(f, lines) + "\n")
		}
	}
	return b.String()
}

// bootLimit bounds what a guest takes until it does its work. Entering each of
// nine cgroups takes the kernel a grace period of RCU, and those of a machine
// that is busy are long.
const bootLimit = 1 * time.Minute
