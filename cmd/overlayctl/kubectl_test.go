package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kubectl stands in for kubectl in the PATH: it knows two pods, notes how it was
// called, and runs what it is to execute as a script would: node-b is not ready.
const kubectl = `#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
*"get pods"*nodeName=nosuch*) ;;
*"get pods"*nodeName=node-b*) echo "node-b vxlan-cni-2" ;;
*"get pods"*"-n nowhere"*) echo "error: no such namespace" >&2; exit 1 ;;
*"get pods"*) echo "node-b vxlan-cni-2"; echo "node-a vxlan-cni-1"; echo " not-scheduled-yet" ;;
*"exec"*"vxlan-cni-1 "*) echo "all is well" ;;
*"exec"*"vxlan-cni-2 "*) echo "not ready"; exit 3 ;;
esac
`

func TestKubectlOverlay(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("CALLS", calls)
	for _, c := range []struct {
		args, out, errs string
		status          int
		called          []string
	}{
		{"status", "node node-a\nall is well\n\nnode node-b\nnot ready\n", "", exitNotReady, []string{
			"get pods -n kube-system -l app.kubernetes.io/name=vxlan-cni -o",
			"exec -n kube-system vxlan-cni-1 -c overlayd -- overlayctl status",
			"exec -n kube-system vxlan-cni-2 -c overlayd -- overlayctl status",
		}},
		{"--node node-b -n net --context=c --kubeconfig k peers -o json --node x", "not ready\n", "", exitNotReady, []string{
			"--context=c --kubeconfig=k get pods -n net -l app.kubernetes.io/name=vxlan-cni -o",
			"--context=c --kubeconfig=k exec -n net vxlan-cni-2 -c overlayd -- overlayctl peers -o json --node x",
		}},
		{"--node nosuch status", "", "kubectl overlay: no pod of overlayd on node nosuch, in namespace kube-system\n", exitError, []string{"get pods"}},
		{"-n nowhere status", "", "error: no such namespace\nkubectl overlay: find overlayd's pods: kubectl: exit status 1\n", exitError, []string{"get pods"}},
		{"", "", "kubectl overlay: no command: want one of overlayctl's, such as status; see kubectl overlay --help\n", exitUsage, nil},
		{"--nod x status", "", "kubectl overlay: flag provided but not defined: -nod\n", exitUsage, nil},
	} {
		t.Run(c.args, func(t *testing.T) {
			_ = os.Remove(calls)
			var out, errs strings.Builder
			status := runPlugin(t.Context(), strings.Fields(c.args), strings.NewReader(""), &out, &errs)
			if status != c.status || out.String() != c.out || errs.String() != c.errs {
				t.Errorf("exit %d, want %d; output %q, want %q; errors %q, want %q", status, c.status, out.String(), c.out, errs.String(), c.errs)
			}
			noted, _ := os.ReadFile(calls)
			var lines []string
			for line := range strings.Lines(string(noted)) {
				if strings.Contains(line, "get pods") || strings.Contains(line, "exec ") {
					lines = append(lines, strings.TrimSuffix(line, "\n"))
				}
			}
			if len(lines) != len(c.called) {
				t.Fatalf("called\n%s\nwant\n%s", noted, strings.Join(c.called, "\n"))
			}
			for i, want := range c.called {
				if !strings.HasPrefix(lines[i], want) || strings.Contains(want, "exec") && lines[i] != want {
					t.Errorf("called %q, want %q", lines[i], want)
				}
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	var out, errs strings.Builder
	if status := runPlugin(t.Context(), []string{"status"}, nil, &out, &errs); status != exitError || !strings.Contains(errs.String(), "kubectl") {
		t.Errorf("without kubectl: exit %d, errors %q", status, errs.String())
	}
	out.Reset()
	if status := runPlugin(t.Context(), []string{"--help"}, nil, &out, &errs); status != exitOK || !strings.Contains(out.String(), "-node") {
		t.Errorf("--help: exit %d, output %q", status, out.String())
	}
}
