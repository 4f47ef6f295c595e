// Vxlan-cni is the CNI plugin of the overlay: container runtimes run it to
// attach a pod to the node's bridge and to detach it again.
//
// It needs no daemon: all that it has to know is in overlayd's node file, who
// holds which address is in the slot file beside it, and everything else it
// does itself in the kernel.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/vxlan-cni/vxlan-cni/internal/version"
)

// init locks the main goroutine to the process's first thread, which alone is
// certain to be in the namespace that the runtime started the plugin in.
func init() { runtime.LockOSThread() }

const help = `vxlan-cni %s
A CNI plugin: attaches pods to an overlay between nodes. Container runtimes run
it, with CNI_COMMAND and more in the environment and the network configuration
on standard input (https://www.cni.dev/docs/spec). By hand, try cnitool.

CNI versions: 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0
Configuration, beside the specification's keys:
  runDir        folder of overlayd's node file, default /run/vxlan-cni
  hairpin       whether a pod reaches itself through its Service, default true
  sourceFilter  whether a pod may send by its own MAC and addresses only, default true
Capabilities: mac, ips, io.kubernetes.cri.pod-annotations

Options:
  --help     this text
  --version  the build
`

func main() {
	if os.Getenv("CNI_COMMAND") == "" {
		os.Exit(describe(os.Args[1:], os.Stdout, os.Stderr))
	}
	// After ADD and DEL, skel looks whether CNI_NETNS is the plugin's own
	// namespace. For ADD that is too late, and pod.Attach looks before; for DEL
	// it is harmful: the path of a pod that is long gone may lead there.
	_ = os.Setenv("CNI_NETNS_OVERRIDE", "1")
	skel.PluginMainFuncs(
		skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status},
		cniversion.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"),
		"vxlan-cni "+version.Read().String())
}

// describe says what this program is, to somebody who runs it by hand.
func describe(args []string, out, errout io.Writer) (exit int) {
	switch {
	case len(args) == 0, len(args) == 1 && (args[0] == "--help" || args[0] == "-help" || args[0] == "-h"):
		_, _ = fmt.Fprintf(out, help, version.Read())
	case len(args) == 1 && (args[0] == "--version" || args[0] == "-version"):
		_, _ = fmt.Fprintf(out, "vxlan-cni %s\n", version.Read())
	default:
		_, _ = fmt.Fprintf(errout, "vxlan-cni: unknown argument %q; try --help\n", args[0])
		return 2
	}
	return 0
}
