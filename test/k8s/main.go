// Command k8s is what the tests need of a Kubernetes cluster, in one
// program: "k8s kube-apiserver ..." and "k8s etcd ...".
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: k8s kube-apiserver|etcd [flags]")
		return 2
	}
	os.Args = os.Args[1:]
	var c *cobra.Command
	switch os.Args[0] {
	case "kube-apiserver":
		c = apiserver.NewAPIServerCommand()
	case "etcd":
		etcdmain.Main(os.Args)
		return 0
	default:
		fmt.Fprintf(os.Stderr, "k8s: %q: want kube-apiserver or etcd\n", os.Args[0])
		return 2
	}
	return cli.Run(c)
}
