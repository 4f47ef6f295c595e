package kubelab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A guest is a set of namespaces with a pid 1 of ours; killing that ends all in
// them.
type guest struct {
	Name string
	Dir  string // holds its socket, its logs and its disk
	lab  *Lab
}

// A Node is a machine with a kubelet.
type Node struct {
	*guest
	Addr  netip.Addr // of eth0
	Addr6 netip.Addr
	Proxy string // mode of kube-proxy: nftables or iptables
}

func (l *Lab) guest(name string) *guest { return &guest{name, filepath.Join(l.Dir, name), l} }

// Boot starts a node that is off. Its disk is as it was.
func (n *Node) Boot() error {
	link := "v" + n.Name
	s := spec{
		Root: true, Link: "eth0", Files: n.files(), Units: n.units(),
		IP: []string{
			"link set lo up", "link set eth0 up",
			fmt.Sprintf("address add %s/24 dev eth0", n.Addr),
			fmt.Sprintf("address add %s/64 dev eth0 nodad", n.Addr6),
			"route add default via " + controlIP,
			"route add ::/0 via " + controlIP6,
		},
	}
	if err := n.boot(s); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	// The link of the boot before goes with its namespace, which takes a moment.
	return netlab.Eventually(bootLimit, func() error {
		out, err := n.lab.Within("ip", "link", "add", link, "master", "underlay", "up", "type", "veth",
			"peer", "name", "eth0", "address", n.mac(), "netns", strconv.Itoa(n.process().PID)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("plug in %s: %w: %s", n.Name, err, out)
		}
		return nil
	})
}

// mac is that of eth0, which a machine keeps over a boot: others know it by that.
func (n *Node) mac() string {
	last := n.Addr.As4()[3]
	return fmt.Sprintf("02:00:5e:00:53:%02x", last) // locally administered
}

// PowerOff ends everything on the node at once, as when the power fails.
func (n *Node) PowerOff() error {
	return errors.Join(n.process().Kill(), removeGroups(n.lab.ID+"/"+n.Name))
}

// Command prepares a command that runs on the node, as root.
func (n *Node) Command(argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--all", "--target", strconv.Itoa(n.process().PID), "--"}, argv...)...)
}

// Output runs a command on the node and returns what it wrote to standard
// output.
func (n *Node) Output(argv ...string) (string, error) {
	var text bytes.Buffer
	cmd := n.Command(argv...)
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %q: %w: %s", n.Name, argv, err, &text)
	}
	return string(out), nil
}

// boot starts the guest's pid 1 in new namespaces.
func (g *guest) boot(s spec) error {
	if err := os.MkdirAll(g.Dir, 0o755); err != nil {
		return err
	}
	for _, d := range []string{"containerd", "kubelet", "log", "cni-bin", "cni-conf"} {
		if err := os.MkdirAll(filepath.Join(g.Dir, "disk", d), 0o755); err != nil {
			return err
		}
	}
	var err error
	if s.Cgroups, err = makeGroups(g.lab.ID, g.Name); err != nil {
		return err
	}
	s.Name, s.Lab, s.Dir = g.Name, g.lab.Dir, g.Dir
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(g.Dir, "spec.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	return g.start(path)
}

// start runs pid 1, and writes down which process it is.
func (g *guest) start(spec string) error {
	log, err := os.OpenFile(filepath.Join(g.Dir, "guest.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(g.lab.bin("guest"), g.Name)
	cmd.Env = append(os.Environ(), guestEnv+"=1:"+spec)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	started := make(chan error)
	// Pdeathsig goes by the thread that started the child, not by the process:
	// it has to live as long.
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if !g.lab.keep {
			cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	b, err := json.Marshal(netlab.ProcessOf(g.Name, cmd.Process.Pid))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(g.Dir, "guest.json"), b, 0o644)
}

// process is the guest's pid 1; a Process that is not alive if there is none.
func (g *guest) process() (p netlab.Process) {
	b, err := os.ReadFile(filepath.Join(g.Dir, "guest.json"))
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return netlab.Process{Name: g.Name, PID: 1 << 30}
	}
	return p
}

// Kill kills a unit, such as kubelet or containerd; it is started again at once.
func (g *guest) Kill(unit string) error { return g.call("POST", "/kill/"+unit, nil, nil) }

// Stop kills a unit, and lets it lie until Run.
func (g *guest) Stop(unit string) error { return g.call("POST", "/stop/"+unit, nil, nil) }

// Run runs one more unit, or one again that was stopped.
func (g *guest) Run(u Unit) error { return g.call("POST", "/start", u, nil) }

// Start starts a unit of the node's own that was stopped.
func (n *Node) Start(unit string) error {
	for _, u := range n.units() {
		if u.Name == unit {
			return n.Run(u)
		}
	}
	return fmt.Errorf("%s has no unit %s", n.Name, unit)
}

// await returns when a unit has been started, or the guest has ended.
func (g *guest) await(ctx context.Context, unit string) error {
	err := netlab.Eventually(bootLimit, func() error {
		if ctx.Err() != nil || !g.process().Alive() {
			return nil
		}
		var units map[string]running
		if err := g.call("GET", "/units", nil, &units); err != nil {
			return err
		}
		if units[unit].Starts == 0 {
			return fmt.Errorf("%s has not started %s", g.Name, unit)
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && !g.process().Alive():
		err = fmt.Errorf("%s has ended", g.Name)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, g.lab.Logs(g.Name, 20))
	}
	return nil
}

// call is one request on the guest's socket.
func (g *guest) call(method, path string, in, out any) error {
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(g.Dir, socketName))
		},
	}}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, "http://guest"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", g.Name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", g.Name, path, bytes.TrimSpace(text))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}
