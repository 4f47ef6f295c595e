package kubelab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/vxlan-cni/vxlan-cni/test/program"
)

// ConformanceRegistries is the file for KUBE_TEST_REPO_LIST by which Kubernetes'
// tests take the images of AddConformance.
const ConformanceRegistries = "gcRegistry: localhost\npromoterE2eRegistry: localhost/e2e-test-images\n"

// AddConformance puts the images that Kubernetes' tests of networking run in pods
// onto all nodes. Names has those that the tests ask for.
//
// agnhost is upstream's program, beside the machine's curl, dig, getent, nc and sh,
// and small tools by busybox. Upstream's image has them of Alpine, with musl: where
// a case asks both C libraries, here it asks one twice.
func (l *Lab) AddConformance(ctx context.Context, names []string) error {
	var agnhost, pause []string
	for _, n := range names {
		switch base, _, _ := strings.Cut(filepath.Base(n), ":"); base {
		case "agnhost", "glibc-dns-testing":
			agnhost = append(agnhost, n)
		case "pause":
			pause = append(pause, n)
		default:
			return fmt.Errorf("image %s: nothing here is like it", n)
		}
	}
	files, err := agnhostFiles(ctx)
	if err != nil {
		return err
	}
	i := image{names: agnhost, entry: "/agnhost", args: []string{"pause"}, files: files}
	archives := []string{filepath.Join(l.Dir, "agnhost.tar")}
	if err := i.write(archives[0]); err != nil {
		return err
	}
	for i, n := range pause {
		path := filepath.Join(l.Dir, fmt.Sprintf("pause-too%d.tar", i))
		archives = append(archives, path)
		if err := writeImage(path, n, l.bin("pause")); err != nil {
			return err
		}
	}
	return l.load(archives)
}

// load puts image archives onto all nodes.
func (l *Lab) load(archives []string) error {
	errs := make([]error, len(l.Nodes))
	var all sync.WaitGroup
	for i, n := range l.Nodes {
		all.Go(func() {
			for _, a := range archives {
				_, err := n.Output(n.importing(a)...)
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// agnhostFiles are what is in the image.
func agnhostFiles(ctx context.Context) ([]file, error) {
	module, err := program.Module()
	if err != nil {
		return nil, err
	}
	const upstream = "k8s.io/kubernetes/test/images/agnhost"
	path, err := program.Path(ctx, filepath.Join(module, "conformance"), upstream)
	if err != nil {
		return nil, err
	}
	source, err := program.Go(ctx, filepath.Join(module, "conformance"), "list", "-f", "{{.Dir}}", upstream)
	if err != nil {
		return nil, err
	}
	list := []file{
		{name: "tmp/", mode: 0o1777}, {name: "uploads/", mode: 0o1777}, {name: "etc/", mode: 0o755}, {name: "bin/", mode: 0o755},
		{name: "etc/nsswitch.conf", data: []byte("hosts: files dns\n"), mode: 0o644},
		{name: "agnhost-2", link: "agnhost", mode: 0o777},
	}
	// Not the shell of busybox too: to it, its own nc comes before that of PATH.
	programs := map[string]string{
		"busybox": "busybox", "curl": "curl", "dig": "dig", "getent": "getent", "nc": "nc.openbsd", "sh": "sh",
	}
	applets, err := exec.CommandContext(ctx, "busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if programs[a] == "" {
			list = append(list, file{name: "bin/" + a, link: "busybox", mode: 0o777})
		}
	}
	from := map[string]string{"agnhost": path}
	for _, name := range []string{"localhost.crt", "localhost.key"} { // agnhost porter serves with them
		from[name] = filepath.Join(strings.TrimSpace(source), "porter", name)
	}
	for name, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, fmt.Errorf("%w: install it, such as by Debian's packages busybox-static, bind9-dnsutils, curl and netcat-openbsd", err)
		}
		from["bin/"+name] = path
		// A static program has none, and ldd fails.
		out, _ := exec.CommandContext(ctx, "ldd", path).Output()
		for _, lib := range library.FindAllString(string(out), -1) {
			from[lib[2:]] = lib[1:]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		b, err := os.ReadFile(from[name])
		if err != nil {
			return nil, err
		}
		list = append(list, file{name: name, data: b, mode: 0o755})
	}
	return list, nil
}

// library is a file's name in what ldd says.
var library = regexp.MustCompile(`\s/\S+`)
