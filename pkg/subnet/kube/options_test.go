package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"flannel.alpha.coreos.com":   "flannel.alpha.coreos.com/",
		"example.com/":               "example.com/",
		"example.com/net":            "example.com/net-",
		"example.com/net-":           "example.com/net-",
		"sub.example.com/my_net-two": "sub.example.com/my_net-two-",
	} {
		if got, err := fullPrefix(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/", "localhost", "a.b/c/d", "A.b", "a b.c", "é.com", "a..b", "-a.b", "a.b/-"} {
		if got, err := fullPrefix(in); err == nil || !strings.Contains(err.Error(), "AnnotationPrefix") {
			t.Errorf("%q: %q, %v; want an error", in, got, err)
		}
	}
}

func TestBadOptionsAreNamed(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	bad := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "Kubeconfig"},
		{Options{Kubeconfig: "/nosuch"}, "/nosuch"},
		{Options{Kubeconfig: bad}, bad},
		{Options{APIURL: "x"}, "APIURL"},
		{Options{APIURL: "http://a:1", AnnotationPrefix: "x"}, "AnnotationPrefix"},
		{Options{APIURL: "http://a:1", StartupTaint: "a=b:NoSchedule"}, "StartupTaint"},
	} {
		if m, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, %v; want an error with %q", tt.o, m, err, tt.want)
		}
	}
	if _, err := New(Options{APIURL: "http://192.0.2.1:8080", StartupTaint: "node.example.com/not-ready"}); err != nil {
		t.Error(err)
	}
}
