// Command manifests renders deploy/kustomize to one file of objects for each way
// of installing, with the name of an image put in.
//
//	manifests -o bin/manifests -image registry.example.com/vxlan-cni:v1
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// roots are the folders of deploy/kustomize that can be applied.
var roots = []string{"kube", "etcd", "uninstall/kube", "uninstall/etcd"}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if err := write(args); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		return 1
	}
	return 0
}

func write(args []string) error {
	set := flag.NewFlagSet("manifests", flag.ContinueOnError)
	from := set.String("from", "../kustomize", "`folder` of the kustomizations")
	to := set.String("o", "", "`folder` to write to")
	image := set.String("image", "localhost/vxlan-cni:dev", "`name` of the image, as `make image` named it")
	if err := set.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*to, 0o755); err != nil {
		return err
	}
	for _, root := range roots {
		objects, err := render(filepath.Join(*from, root))
		if err != nil {
			return fmt.Errorf("render %s: %w", root, err)
		}
		text, err := objects.AsYaml()
		if err != nil {
			return fmt.Errorf("render %s: %w", root, err)
		}
		path := filepath.Join(*to, strings.ReplaceAll(root, "/", "-")+".yaml")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "image: localhost/vxlan-cni:dev\n", "image: "+*image+"\n")), 0o644); err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}

// render does what `kubectl kustomize` does.
func render(dir string) (resmap.ResMap, error) {
	return krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
}
