package kubelab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// guestEnv tells a process that it is pid 1 of a guest: the path of its spec,
// after "1:" or "2:" for the stage.
const guestEnv = "OVL_KUBELAB_GUEST"

// A spec is what pid 1 of a guest makes of its namespaces.
type spec struct {
	Name    string // also the host name
	Lab     string // the lab's folder, at the same path inside
	Dir     string // the guest's folder
	Root    bool   // a root of its own, as a machine has
	Cgroups []hierarchy
	Link    string            // wait for this link
	IP      []string          // then give these lines to ip -batch
	Files   map[string]string // path: contents
	Units   []Unit
}

// A Unit is a program that a guest runs. It is started again when it ends,
// unless it was stopped or is to run once.
type Unit struct {
	Name  string
	Argv  []string
	Env   []string
	Once  bool   // later units wait until it has succeeded
	Await string // start only after a GET of this URL was answered with 200
}

// Serve is pid 1 of a guest if the process was started as such; else asked is
// false.
func Serve() (exit int, asked bool) {
	stage, path, asked := strings.Cut(os.Getenv(guestEnv), ":")
	if !asked {
		return 0, false
	}
	err := func() error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var s spec
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		if stage == "1" {
			return s.enter(path)
		}
		return s.run()
	}()
	fmt.Fprintf(os.Stderr, "guest: %v\n", err) // it returns after a failure only
	return 1, true
}

// enter goes into the guest's cgroups and root, and executes itself there: the
// cgroup namespace is a thread's, and only exec makes it the process's.
func (s *spec) enter(path string) error {
	runtime.LockOSThread()
	for _, h := range s.Cgroups {
		file := filepath.Join(h.Guest, "cgroup.procs")
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	// Nothing of what is mounted here may be seen outside.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if s.Root {
		if err := s.pivot(); err != nil {
			return err
		}
	} else if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	// Not appended to the environment: of two values the first counts.
	if err := os.Setenv(guestEnv, "2:"+path); err != nil {
		return err
	}
	return unix.Exec(filepath.Join(s.Lab, "bin", "guest"), []string{"guest", s.Name}, os.Environ())
}

// pivot makes an overlay over the machine's root the root of the guest. What the
// guest writes is in memory, but for what has to survive a boot as it does on a
// disk.
func (s *spec) pivot() error {
	over := filepath.Join(s.Dir, "overlay")
	if err := os.MkdirAll(over, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", over, "tmpfs", 0, ""); err != nil {
		return err
	}
	root := filepath.Join(over, "root")
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(over, d), 0o755); err != nil {
			return err
		}
	}
	opts := "lowerdir=/,upperdir=" + over + "/upper,workdir=" + over + "/work"
	if err := mount("overlay", root, "overlay", 0, opts); err != nil {
		return err
	}
	for _, m := range []struct{ src, dst, kind string }{
		{s.Lab, s.Lab, ""},
		{"/dev", "/dev", ""},
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"tmpfs", "/run", "tmpfs"},
		{s.disk("containerd"), "/var/lib/containerd", ""},
		{s.disk("kubelet"), "/var/lib/kubelet", ""},
		{s.disk("log"), "/var/log", ""},
		{s.disk("cni-bin"), "/opt/cni", ""},
		{s.disk("cni-conf"), "/etc/cni", ""},
	} {
		dst := filepath.Join(root, m.dst)
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
		flags := uintptr(0)
		if m.kind == "" {
			flags = unix.MS_BIND | unix.MS_REC
		}
		if err := mount(m.src, dst, m.kind, flags, ""); err != nil {
			return err
		}
	}
	old := filepath.Join(root, ".old")
	if err := os.MkdirAll(old, 0o755); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot root to %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Unmount("/.old", unix.MNT_DETACH)
}

// disk is a folder of the guest that outlives a boot.
func (s *spec) disk(name string) string { return filepath.Join(s.Dir, "disk", name) }

func mount(src, dst, kind string, flags uintptr, data string) error {
	if err := unix.Mount(src, dst, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", src, dst, err)
	}
	return nil
}

// run is pid 1 from inside.
func (s *spec) run() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return err
	}
	if s.Root {
		if err := s.furnish(); err != nil {
			return err
		}
	}
	for path, text := range s.Files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := s.network(); err != nil {
		return err
	}
	sup := newSupervisor(s.Dir)
	// A socket of the boot before is a file that nobody listens on.
	_ = os.Remove(filepath.Join(s.Dir, socketName))
	l, err := net.Listen("unix", filepath.Join(s.Dir, socketName))
	if err != nil {
		return err
	}
	go func() {
		for _, u := range s.Units {
			sup.start(u)
		}
	}()
	go sup.reap()
	return http.Serve(l, sup.handler())
}

// settings of the whole machine that a kubelet wants, and sets where they are
// otherwise: it finds them as it wishes.
var settings = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
	"kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// furnish mounts what a machine has.
func (s *spec) furnish() error {
	if err := mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, h := range s.Cgroups {
		dst := filepath.Join("/sys/fs/cgroup", h.Name)
		if err := os.Mkdir(dst, 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", dst, "cgroup", 0, h.Options); err != nil {
			return err
		}
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		return err
	}
	for path, value := range settings {
		file := filepath.Join("/run/settings", path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, "/proc/sys/"+path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, d := range []string{
		"/run/netns", "/run/lock", "/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni", "/var/log/pods", "/var/log/containers",
	} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/"+path, []byte("1"), 0); err != nil {
			return err
		}
	}
	// As on any machine with systemd; pods with mount propagation need it.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// network waits for the link that the lab puts in, and configures it.
func (s *spec) network() error {
	err := netlab.Eventually(bootLimit, func() error {
		_, err := os.Stat("/proc/sys/net/ipv4/conf/" + s.Link)
		return err
	})
	if err != nil {
		return err
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(s.IP, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("ip -batch: %w: %s", err, out), errors.New(strings.Join(s.IP, "\n")))
	}
	return nil
}
