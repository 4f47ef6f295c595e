package kubelab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// components are the names under which the program of ../k8s is called.
var components = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet",
}

// build puts what a lab runs into dir: minutes the first time on a machine, then
// seconds.
func build(ctx context.Context, dir string) error {
	module, err := program.Module()
	if err != nil {
		return err
	}
	for _, name := range []string{"runc", "iptables", "nft", "conntrack", "mount", "ip", "nsenter"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: install it, such as by Debian's packages runc, iptables, nftables, conntrack, mount, iproute2 and util-linux", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o755); err != nil {
		return err
	}
	kube, err := program.Path(ctx, filepath.Join(module, "k8s"), ".")
	if err == nil {
		err = place(kube, filepath.Join(dir, "k8s"))
	}
	for _, c := range components {
		if err == nil {
			err = os.Symlink("k8s", filepath.Join(dir, c))
		}
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		var path string
		if err == nil {
			path, err = program.Path(ctx, filepath.Join(module, "ctrd"), "github.com/containerd/containerd/v2/cmd/"+name)
		}
		if err == nil {
			err = place(path, filepath.Join(dir, name))
		}
	}
	var dns string
	if err == nil {
		dns, err = program.Path(ctx, filepath.Join(module, "dns"), ".")
	}
	if err == nil {
		err = place(dns, filepath.Join(dir, "coredns"))
	}
	if err == nil {
		err = buildTools(ctx, dir)
	}
	if err == nil {
		_, err = program.Go(ctx, module, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "cni")+"/", "tool")
	}
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return place(self, filepath.Join(dir, "guest"))
}

// place puts a file at dst without a copy where that can be.
func place(src, dst string) error {
	if os.Link(src, dst) == nil {
		return nil
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// buildTools builds our own programs for pods into dir.
func buildTools(ctx context.Context, dir string) error {
	module, err := program.Module()
	if err != nil {
		return err
	}
	_, err = program.Go(ctx, module, "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./etool", "./pause")
	return err
}
