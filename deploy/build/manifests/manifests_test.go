package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/yaml"
)

const (
	kustomizations = "../../kustomize"
	chartDir       = "../../helm/vxlan-cni"
)

// An object of Kubernetes, as JSON has it.
type object = map[string]any

// byName sorts objects by kind and name, and fails where two are the same.
func byName(t *testing.T, all []object) map[string]object {
	t.Helper()
	named := map[string]object{}
	for _, o := range all {
		meta, _ := o["metadata"].(object)
		key := fmt.Sprintf("%v %v/%v", o["kind"], meta["namespace"], meta["name"])
		if named[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		named[key] = o
	}
	return named
}

// kustomized renders a folder, and components beside it, as kubectl does.
func kustomized(t *testing.T, root string, components ...string) map[string]object {
	t.Helper()
	dir := filepath.Join(kustomizations, root)
	if len(components) > 0 {
		// As somebody would write it who uses this repository.
		parent := t.TempDir()
		if err := os.CopyFS(parent, os.DirFS(kustomizations)); err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(parent, "mine")
		text := "resources: [../" + root + "]\ncomponents: [../" + strings.Join(components, ", ../") + "]\n"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := render(dir)
	if err != nil {
		t.Fatal(err)
	}
	return byName(t, decode(t, objects))
}

func decode(t *testing.T, objects resmap.ResMap) []object {
	t.Helper()
	var all []object
	for _, r := range objects.Resources() {
		raw, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// helm renders the chart with values given as YAML.
func helm(t *testing.T, text string) (map[string]object, error) {
	t.Helper()
	var values map[string]any
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	files, err := renderChart(chartDir, values)
	if err != nil {
		return nil, err
	}
	var objects []object
	for _, text := range files {
		for part := range strings.SplitSeq(text, "\n---\n") {
			var o object
			if err := yaml.UnmarshalStrict([]byte(part), &o); err != nil {
				t.Fatalf("%v in\n%s", err, part)
			}
			if o != nil {
				objects = append(objects, o)
			}
		}
	}
	return byName(t, objects), nil
}

// TestAPIKnowsAllFields: the API's own types take every field. The server drops
// those that it does not know, and what they were to do with them.
func TestAPIKnowsAllFields(t *testing.T) {
	for _, root := range roots {
		for key, o := range kustomized(t, root) {
			kinds := map[any]any{
				"DaemonSet": &appsv1.DaemonSet{}, "ClusterRole": &rbacv1.ClusterRole{}, "ClusterRoleBinding": &rbacv1.ClusterRoleBinding{},
				"ServiceAccount": &corev1.ServiceAccount{}, "ConfigMap": &corev1.ConfigMap{},
			}
			into := kinds[o["kind"]]
			if into == nil {
				t.Errorf("%s %s: a kind that this test does not know", root, key)
				continue
			}
			if err := yaml.UnmarshalStrict([]byte(show(t, o)), into); err != nil {
				t.Errorf("%s %s: %v", root, key, err)
			}
		}
	}
}

// ways are those of installing that kustomize and Helm both have.
var ways = []struct {
	root       string
	components []string
	values     string
}{
	{root: "kube", values: ""},
	{root: "kube", components: []string{"startup-taint"}, values: "startupTaint: node.vxlan-cni.io/overlay-not-ready"},
	{root: "etcd", values: "{store: etcd, etcd: {endpoints: [https://etcd.example.com:2379], tlsSecret: vxlan-cni-etcd}}"},
}

// TestBothRenderTheSame compares them object by object.
func TestBothRenderTheSame(t *testing.T) {
	for _, way := range ways {
		t.Run(strings.Join(append([]string{way.root}, way.components...), "+"), func(t *testing.T) {
			want := kustomized(t, way.root, way.components...)
			got, err := helm(t, way.values)
			if err != nil {
				t.Fatal(err)
			}
			if len(want) < 3 {
				t.Errorf("kustomize renders %d objects", len(want))
			}
			for key := range want {
				if got[key] == nil {
					t.Errorf("Helm lacks %s", key)
				} else if !reflect.DeepEqual(got[key], want[key]) {
					t.Errorf("%s: Helm renders\n%s\nkustomize\n%s", key, show(t, got[key]), show(t, want[key]))
				}
			}
			for key := range got {
				if want[key] == nil {
					t.Errorf("Helm has %s too", key)
				}
			}
		})
	}
}

func show(t *testing.T, o object) string {
	t.Helper()
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestValues: each value that may be set does something, and what is wrong is
// refused by the schema.
func TestValues(t *testing.T) {
	base, err := helm(t, "")
	if err != nil {
		t.Fatal(err)
	}
	for values, want := range map[string]string{
		"image: {repository: r.example.com/x}":                       "image: r.example.com/x:dev",
		"image: {tag: v7}":                                           "image: localhost/vxlan-cni:v7",
		"image: {pullPolicy: Always}":                                "imagePullPolicy: Always",
		"image: {pullSecrets: [a, b]}":                               "imagePullSecrets:\n      - name: a\n      - name: b",
		"network: {Network: 10.1.0.0/16}":                            `"Network": "10.1.0.0/16"`,
		"network: {EnableIPv6: true}":                                `"EnableIPv6": true`,
		"metrics: {host: 0.0.0.0, port: 9999}":                       "--metrics-address=0.0.0.0:9999",
		"metrics: {port: 9998}":                                      "port: 9998",
		"apiServer: {host: 192.0.2.1}":                               "name: KUBERNETES_SERVICE_HOST\n          value: 192.0.2.1",
		"apiServer: {host: a.example.com, port: 443}":                `value: "443"`,
		"extraArgs: [--iface=eth1]":                                  "- --iface=eth1",
		"iptables: true":                                             "path: /run/xtables.lock",
		"cniBinDir: /home/kubernetes/bin":                            "path: /home/kubernetes/bin",
		"cniConfDir: /etc/other":                                     "path: /etc/other",
		"maxUnavailable: 3":                                          "maxUnavailable: 3",
		"resources: {limits: {memory: 1Gi}}":                         "memory: 1Gi",
		"nodeSelector: {pool: a}":                                    "pool: a",
		"startupTaint: a.b/c":                                        "--startup-taint=a.b/c",
		"{store: etcd, etcd: {endpoints: [http://a:1, http://b:2]}}": "endpoints: http://a:1,http://b:2",
	} {
		got, err := helm(t, values)
		if err != nil {
			t.Errorf("%s: %v", values, err)
			continue
		}
		if reflect.DeepEqual(got, base) {
			t.Errorf("%s: changes nothing", values)
		}
		var all strings.Builder
		for _, o := range got {
			all.WriteString(show(t, o))
		}
		if !strings.Contains(all.String(), want) {
			t.Errorf("%s: want %q in\n%s", values, want, all.String())
		}
	}
	for values, want := range map[string]string{
		"image: {repo: x}":                "repo",
		"imgae: {}":                       "imgae",
		"store: consul":                   "/store",
		"store: etcd":                     "/etcd/endpoints",
		"network: {Netwrok: 10.0.0.0/8}":  "Netwrok",
		"network: {Network: everything}":  "/network/Network",
		"network: {Backend: {Type: udp}}": "/network/Backend/Type",
		"network: {Backend: {VNI: 0}}":    "/network/Backend/VNI",
		"metrics: {port: 70000}":          "/metrics/port",
		"extraArgs: [iface]":              "/extraArgs/0",
		"cniBinDir: opt":                  "/cniBinDir",
		"etcd: {endpoints: ['a:1,b:2']}":  "/etcd/endpoints/0",
		"image: {pullPolicy: Sometimes}":  "/image/pullPolicy",
		"{store: etcd, etcd: {endpoints: [http://a:1]}, startupTaint: x}": "/startupTaint",
	} {
		if _, err := helm(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that says %s", values, err, want)
		}
	}
}

// TestChartLints: helm lint has nothing to say against it.
func TestChartLints(t *testing.T) {
	for _, m := range lint.RunAll(chartDir, nil, "kube-system").Messages {
		if m.Severity > 1 || m.Err != nil && !strings.Contains(m.Err.Error(), "icon") {
			t.Error(m)
		}
	}
}

// TestLeastPrivilege: what no container may have, in whatever way it is installed.
func TestLeastPrivilege(t *testing.T) {
	for _, root := range roots {
		for key, o := range kustomized(t, root) {
			switch o["kind"] {
			case "DaemonSet":
				checkPod(t, root+" "+key, at[object](o, "spec", "template", "spec"))
			case "ClusterRole":
				want := `[{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]},` +
					`{"apiGroups":[""],"resources":["events"],"verbs":["create","patch"]}]`
				if strings.HasPrefix(root, "uninstall") {
					want = `[{"apiGroups":[""],"resources":["nodes"],"verbs":["get"]},{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}]`
				}
				if got, _ := json.Marshal(o["rules"]); string(got) != want {
					t.Errorf("%s: rules %s, want %s: what pkg/subnet/kube documents and test/kube runs with", key, got, want)
				}
			}
		}
	}
}

// checkPod looks at all that a pod may do to its node.
func checkPod(t *testing.T, what string, spec object) {
	t.Helper()
	for _, never := range []string{"hostPID", "hostIPC"} {
		if spec[never] != nil {
			t.Errorf("%s: %s", what, never)
		}
	}
	if at[string](spec, "securityContext", "seccompProfile", "type") != "RuntimeDefault" {
		t.Errorf("%s: seccomp %v", what, spec["securityContext"])
	}
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range at[[]any](spec, list) {
			c := c.(object)
			name, s := c["name"].(string), at[object](c, "securityContext")
			if s["privileged"] != nil || s["allowPrivilegeEscalation"] != false || s["readOnlyRootFilesystem"] != true {
				t.Errorf("%s %s: %v", what, name, s)
			}
			want := `{"drop":["ALL"]}`
			if name == "overlayd" || name == "kernel" {
				want = `{"add":["NET_ADMIN"],"drop":["ALL"]}`
			}
			if got, _ := json.Marshal(s["capabilities"]); string(got) != want {
				t.Errorf("%s %s: capabilities %s, want %s", what, name, got, want)
			}
			if at[object](c, "resources", "requests")["memory"] == nil {
				t.Errorf("%s %s: asks for no memory", what, name)
			}
			if c["ports"] != nil {
				t.Errorf("%s %s: opens %v", what, name, c["ports"])
			}
		}
	}
	for _, v := range at[[]any](spec, "volumes") {
		path := at[string](v.(object), "hostPath", "path")
		if !slices.Contains([]string{"", "/run/vxlan-cni", "/etc/cni/net.d", "/opt/cni/bin"}, path) && (path != "/run" || !strings.HasPrefix(what, "uninstall")) {
			t.Errorf("%s: mounts %s of the node", what, path)
		}
	}
}

// at is what stands at a path of keys, or nothing.
func at[T any](o object, keys ...string) (v T) {
	var here any = o
	for _, k := range keys {
		m, _ := here.(object)
		here = m[k]
	}
	v, _ = here.(T)
	return v
}

// TestFlagsExist: the programs take the flags that the manifests give them.
func TestFlagsExist(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/overlayd", "./cmd/overlayctl")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	help := func(words ...string) string {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, words[0]), append(words[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q --help: %v: %s", words, err, out)
		}
		return string(out)
	}
	flagName := regexp.MustCompile(`^--[a-z-]+`)
	checked := 0
	sets := []map[string]object{kustomized(t, "kube", "startup-taint"), kustomized(t, "etcd"), kustomized(t, "uninstall/kube"), kustomized(t, "uninstall/etcd")}
	for _, set := range sets {
		for key, o := range set {
			for _, list := range []string{"initContainers", "containers"} {
				for _, c := range at[[]any](o, "spec", "template", "spec", list) {
					known, words := help("overlayd"), at[[]any](c.(object), "args")
					if command := at[[]any](c.(object), "command"); command != nil {
						known, words = help(command[0].(string), command[1].(string)), command[2:]
					}
					for _, w := range words {
						name := flagName.FindString(w.(string))
						if name == "" || !strings.Contains(known, "  "+name) {
							t.Errorf("%s: %s is no flag", key, w)
						}
						checked++
					}
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("%d flags checked", checked)
	}
}

// TestWrite: the files hold the image's name, and nothing of the default.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := write([]string{"-from", kustomizations, "-o", dir, "-image", "r.example.com/a/b:c"}); err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		text, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(root, "/", "-")+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "localhost/") || !strings.Contains(string(text), "image: r.example.com/a/b:c") {
			t.Errorf("%s:\n%s", root, text)
		}
	}
}

func TestWriteChart(t *testing.T) {
	dir := t.TempDir()
	values := filepath.Join(dir, "values.yaml")
	for text, want := range map[string]string{
		"image: {repository: r.example.com/a/b, tag: c}": "",
		"imagen: {}": "imagen",
		"[":          "values.yaml",
	} {
		if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := write([]string{"-chart", chartDir, "-o", dir, "-values", values})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "helm.yaml"))
	if err != nil || !strings.Contains(string(text), "r.example.com/a/b:c") || !strings.Contains(string(text), "kind: DaemonSet") {
		t.Errorf("%v:\n%s", err, text)
	}
}
