// Command conformance is Kubernetes' own end-to-end tests of networking, without
// those of everything else: what `go test -c` makes of its package test/e2e, as
// a program. With -images it only says which images these run.
package main

import (
	"flag"
	"fmt"
	"testing"

	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/utils/image"

	_ "k8s.io/kubernetes/test/e2e/network"

	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
)

func main() {
	testing.Init()
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	images := flag.Bool("images", false, "print the images of the tests of networking, and end")
	flag.Parse()
	if *images {
		for _, id := range []image.ImageID{image.Agnhost, image.GlibcDnsTesting, image.Pause} {
			fmt.Println(image.GetE2EImage(id))
		}
		return
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	// Main is kept for programs that are like what `go test` makes.
	testing.Main(func(string, string) (bool, error) { return true, nil },
		[]testing.InternalTest{{Name: "TestE2E", F: e2e.RunE2ETests}}, nil, nil)
}
