// Command manifests renders deploy/kustomize to one file of objects for each way
// of installing, with the name of an image put in; and, given values, the Helm
// chart as `helm template --namespace kube-system vxlan-cni` does.
//
//	manifests -o bin/manifests -image registry.example.com/vxlan-cni:v1
//	manifests -o bin/manifests -values mine.yaml
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// roots are the folders of deploy/kustomize that can be applied.
var roots = []string{"kube", "etcd", "uninstall/kube", "uninstall/etcd"}

// defaultImage is what the manifests name.
const defaultImage = "localhost/vxlan-cni:dev"

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
	image := set.String("image", defaultImage, "`name` of the image, as `make image` named it")
	chart := set.String("chart", "../helm/vxlan-cni", "`folder` of the Helm chart")
	values := set.String("values", "", "`file` of values: write helm.yaml, and nothing else")
	if err := set.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*to, 0o755); err != nil {
		return err
	}
	if *values != "" {
		if *image != defaultImage {
			return fmt.Errorf("-image %s: want image.repository and image.tag in the values of -values", *image)
		}
		return writeChart(*chart, *values, filepath.Join(*to, "helm.yaml"))
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
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "image: "+defaultImage+"\n", "image: "+*image+"\n")), 0o644); err != nil {
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

// writeChart renders the chart with the values of a file to one file.
func writeChart(chart, values, path string) error {
	text, err := os.ReadFile(values)
	if err != nil {
		return err
	}
	var v map[string]any
	if err := yaml.UnmarshalStrict(text, &v); err != nil {
		return fmt.Errorf("%s: %w", values, err)
	}
	files, err := renderChart(chart, v)
	if err != nil {
		return fmt.Errorf("render %s: %w", chart, err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(files, "\n---\n")), 0o644); err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}

// renderChart does what `helm template` does, and returns what each template
// became.
func renderChart(dir string, values map[string]any) (files []string, err error) {
	chart, err := loader.LoadDir(dir)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "vxlan-cni", Namespace: "kube-system", IsInstall: true}
	all, err := util.ToRenderValues(chart, values, release, nil) // checks them by the schema, too
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	for _, text := range rendered {
		files = append(files, text)
	}
	slices.Sort(files)
	return files, nil
}
