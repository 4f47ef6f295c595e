package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// A Plugin is the configuration of one CNI plugin in a chain.
type Plugin map[string]any

// A Runtime attaches pods on one node as a container runtime does: by libcni,
// which runs the plugins inside the node's namespace.
type Runtime struct {
	Node    *netlab.Node
	List    *libcni.NetworkConfigList
	ConfDir string   // holds the conflist
	Path    []string // CNI_PATH

	cluster *Cluster
	stderr  *os.File
}

// A Pod is a namespace with an address in the overlay.
type Pod struct {
	Name   string
	Args   *libcni.RuntimeConf
	NS     *netlab.Namespace
	Addr   netip.Addr   // the first that it got
	Addrs  []netip.Addr // all of them
	Result *types100.Result
}

// Of is the pod's address of a family, invalid if it has none.
func (p *Pod) Of(is4 bool) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

func newRuntime(c *Cluster, n *netlab.Node, o Options) (*Runtime, error) {
	r := &Runtime{Node: n, cluster: c, ConfDir: filepath.Join(n.Dir, "net.d")}
	r.Path = append([]string{c.Bin}, o.Plugins...)
	list := map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"},
		"name":        "vxlan",
		"plugins": append([]Plugin{{
			"type": "vxlan-cni", "runDir": n.RunDir, "capabilities": map[string]bool{"mac": true, "ips": true},
		}}, o.Chain...),
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.ConfDir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(r.ConfDir, "05-vxlan-cni.conflist")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		return nil, err
	}
	if r.List, err = libcni.ConfListFromFile(file); err != nil {
		return nil, err
	}
	// What the plugins say on standard error; the lab's removal takes it along.
	r.stderr, err = os.OpenFile(filepath.Join(n.Dir, "cni.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return r, err
}

// CNI is libcni as this node's runtime has it; a nil exec runs the plugins as
// libcni does.
func (r *Runtime) CNI(exec invoke.Exec) *libcni.CNIConfig {
	if exec == nil {
		exec = &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: r.stderr}, PluginDecoder: version.PluginDecoder{}}
	}
	return libcni.NewCNIConfigWithCacheDir(r.Path, filepath.Join(r.Node.Dir, "cni"), exec)
}

// Args are the runtime's arguments for a pod whose namespace is at path.
func (r *Runtime) Args(name, path string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: name + "-" + r.Node.Name,
		NetNS:       path,
		IfName:      "eth0",
		Args:        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "lab"}, {"K8S_POD_NAME", name}},
	}
}

// Add makes a pod's namespace and attaches it. capabilities may be nil.
func (r *Runtime) Add(ctx context.Context, name string, capabilities map[string]any) (*Pod, error) {
	ns, err := r.cluster.NewPod(r.Node.Name + "-" + name)
	if err != nil {
		return nil, err
	}
	p := &Pod{Name: name, NS: ns, Args: r.Args(name, ns.Path())}
	p.Args.CapabilityArgs = capabilities
	err = r.Attach(ctx, nil, p)
	if err != nil {
		return nil, errors.Join(err, r.cluster.RemovePod(ns))
	}
	return p, nil
}

// Attach is CNI ADD of the pod, with an exec as for CNI.
func (r *Runtime) Attach(ctx context.Context, exec invoke.Exec, p *Pod) error {
	err := r.Node.Do(func() error {
		res, err := r.CNI(exec).AddNetworkList(ctx, r.List, p.Args)
		if err != nil {
			return err
		}
		if p.Result, err = types100.GetResult(res); err != nil {
			return err
		}
		if len(p.Result.IPs) == 0 {
			return errors.New("the result has no address")
		}
		p.Addrs = nil
		for _, ip := range p.Result.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			p.Addrs = append(p.Addrs, a.Unmap())
		}
		p.Addr = p.Addrs[0]
		return nil
	})
	if err != nil {
		return fmt.Errorf("add pod %s on %s: %w", p.Name, r.Node.Name, err)
	}
	return nil
}

// Check is CNI CHECK of the pod.
func (r *Runtime) Check(ctx context.Context, p *Pod) error {
	err := r.Node.Do(func() error { return r.CNI(nil).CheckNetworkList(ctx, r.List, p.Args) })
	if err != nil {
		return fmt.Errorf("check pod %s on %s: %w", p.Name, r.Node.Name, err)
	}
	return nil
}

// Detach is CNI DEL of the pod.
func (r *Runtime) Detach(ctx context.Context, exec invoke.Exec, p *Pod) error {
	err := r.Node.Do(func() error { return r.CNI(exec).DelNetworkList(ctx, r.List, p.Args) })
	if err != nil {
		return fmt.Errorf("delete pod %s on %s: %w", p.Name, r.Node.Name, err)
	}
	return nil
}

// Delete detaches the pod and removes its namespace.
func (r *Runtime) Delete(ctx context.Context, p *Pod) error {
	return errors.Join(r.Detach(ctx, nil, p), r.cluster.RemovePod(p.NS))
}

// GC is CNI GC: all but the given pods are gone.
func (r *Runtime) GC(ctx context.Context, valid ...*Pod) error {
	args := &libcni.GCArgs{}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.Args.ContainerID, IfName: p.Args.IfName})
	}
	err := r.Node.Do(func() error { return r.CNI(nil).GCNetworkList(ctx, r.List, args) })
	if err != nil {
		return fmt.Errorf("gc on %s: %w", r.Node.Name, err)
	}
	return nil
}

// Status is CNI STATUS.
func (r *Runtime) Status(ctx context.Context) error {
	return r.Node.Do(func() error { return r.CNI(nil).GetStatusNetworkList(ctx, r.List) })
}
