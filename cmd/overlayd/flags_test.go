package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestFlagsAndEnvironment(t *testing.T) {
	t.Setenv("OVERLAYD_ETCD_PREFIX", "/from/env")
	t.Setenv("OVERLAYD_NODE_ID", "env-node")
	t.Setenv("OVERLAYD_LEASE_TTL", "90s")
	o, err := parse([]string{"--node-id", "flag-node", "-resolve=on-miss", "--etcd-endpoints", "http://a:1,http://b:2", "--public-ip", "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	if o.node.Node != "flag-node" || o.etcd.Prefix != "/from/env" || o.etcd.LeaseTTL != 90*time.Second ||
		o.node.Resolve != "on-miss" || len(o.etcd.Endpoints) != 2 || o.node.Public.String() != "192.0.2.1" {
		t.Errorf("node %+v, etcd %+v", o.node, o.etcd)
	}
}

func TestNodeNameWithTheKubeStore(t *testing.T) {
	t.Setenv("NODE_NAME", "worker-7")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--kube-subnet-mgr"}, "worker-7"},
		{[]string{"--kube-subnet-mgr", "--node-id", "worker-8"}, "worker-8"},
		{[]string{"--node-id", "worker-8"}, "worker-8"},
	} {
		o, err := parse(tt.args)
		if err != nil || o.node.Node != tt.want {
			t.Errorf("%q: node %q, %v; want %q", tt.args, o.node.Node, err, tt.want)
		}
	}
	if o, err := parse(nil); err != nil || o.node.Node == "worker-7" || o.node.Store != "etcd" {
		t.Errorf("without --kube-subnet-mgr: node %q, store %q, %v", o.node.Node, o.node.Store, err)
	}
}

func TestBadFlagsAreOneLineThatNamesThem(t *testing.T) {
	tests := []struct {
		args []string
		env  [2]string
		want []string
	}{
		{args: []string{"--resolve", "lazy"}, want: []string{"--resolve", `"lazy"`, "eager or on-miss"}},
		{args: []string{"--nosuch"}, want: []string{"--nosuch", "not defined"}},
		{args: []string{"stray"}, want: []string{`"stray"`, "flags only"}},
		{args: []string{"--lease-ttl", "1day"}, want: []string{"--lease-ttl", `"1day"`, "such as 90s"}},
		{args: []string{"--lease-ttl", "1s"}, want: []string{"--lease-ttl", "1s", "at least 10s"}},
		{args: []string{"--lease-ttl", "9999999h"}, want: []string{"--lease-ttl", "too long", "at most 2500000h"}},
		{args: []string{"--lease-ttl", "2500001h"}, want: []string{"--lease-ttl", "too long", "at most 2500000h"}},
		{args: []string{"--grace", "9999999h"}, want: []string{"--grace", "too long", "at most 2500000h"}},
		{args: []string{"--ip-masq=a \" for flag -x: -y"}, want: []string{`\" for flag -x: -y" for --ip-masq`}},
		{args: []string{"--lease-ttl"}, want: []string{"--lease-ttl", "needs an argument"}},
		{args: []string{"--grace", "-1s"}, want: []string{"--grace", "-1s", "0 or longer"}},
		{args: []string{"--etcd-endpoints", "foo"}, want: []string{"--etcd-endpoints", `"foo"`, "URL such as"}},
		{args: []string{"--etcd-certfile", "/x"}, want: []string{"--etcd-certfile", "--etcd-keyfile", "both or none"}},
		{args: []string{"--kube-subnet-mgr", "--kube-api-url", "foo"}, want: []string{"--kube-api-url", `"foo"`, "URL such as"}},
		{args: []string{"--kube-subnet-mgr", "--kube-annotation-prefix", "a b"}, want: []string{"--kube-annotation-prefix", `"a b"`, "a domain such as"}},
		{args: []string{"--kube-subnet-mgr", "--startup-taint", "=x"}, want: []string{"--startup-taint", `"=x"`, "key of a taint"}},
		{args: []string{"--kube-subnet-mgr", "--kubeconfig-file", "/nosuch"}, want: []string{"--kubeconfig-file", `"/nosuch"`, "no such file"}},
		{args: []string{"--kube-subnet-mgr"}, want: []string{"--kubeconfig-file", "--kube-api-url", "in-cluster"}},
		{args: []string{"--public-ip", "300.1.1.1"}, want: []string{"--public-ip", "300.1.1.1", "such as 192.0.2.7"}},
		{args: []string{"--public-ipv6", "192.0.2.1"}, want: []string{"--public-ipv6", "192.0.2.1", "IPv6 address"}},
		{args: []string{"--iface-regex", "["}, want: []string{"--iface-regex", `"["`, "regular expression"}},
		{args: []string{"--iface-can-reach", "far"}, want: []string{"--iface-can-reach", "far", "such as 192.0.2.7"}},
		{args: []string{"--iface-can-reach", "192.0.2.1", "--iface", "eth0"}, want: []string{"--iface-can-reach", "none beside --iface"}},
		{args: []string{"--iface-regex", "eth", "--iface", "eth0"}, want: []string{"--iface-regex", "none beside --iface"}},
		{args: []string{"--metrics-address", "nowhere"}, want: []string{"--metrics-address", `"nowhere"`, "127.0.0.1:9472"}},
		{args: []string{"--startup-taint", "x"}, want: []string{"--startup-taint", "--kube-subnet-mgr"}},
		{args: []string{"--kube-subnet-mgr", "--etcd-prefix", "/x"}, want: []string{"--etcd-prefix", "--kube-subnet-mgr"}},
		{args: []string{"--device", "a-name-that-is-too-long"}, want: []string{"--device", "1 to 12 bytes"}},
		{args: []string{"--cni-conf-dir", "net.d"}, want: []string{"--cni-conf-dir", `"net.d"`, "absolute path"}},
		{args: []string{"--cni-conf-template", "/nosuch"}, want: []string{"--cni-conf-template", "--cni-conf-dir"}},
		{args: []string{"--cni-conf-dir", "/x", "--cni-conf-template", "/nosuch"}, want: []string{"--cni-conf-template", "/nosuch", "no such file"}},
		{args: []string{"--log-level", "loud"}, want: []string{"--log-level", "loud", "info, warn"}},
		{env: [2]string{"OVERLAYD_LEASE_TTL", "soon"}, want: []string{"OVERLAYD_LEASE_TTL", "such as 90s"}},
	}
	for _, tt := range tests {
		name := strings.Join(append(tt.args, tt.env[0]), " ")
		t.Run(name, func(t *testing.T) {
			// What is wrongly taken ends here, and starts no daemon on this machine.
			t.Setenv("OVERLAYD_RUN_DIR", "/proc/nosuch")
			if tt.env[0] != "" {
				t.Setenv(tt.env[0], tt.env[1])
			}
			code, text := stderrOf(t, func() int { return run(tt.args) })
			if code != usage {
				t.Errorf("exit status %d, want %d", code, usage)
			}
			if strings.Count(text, "\n") != 1 {
				t.Errorf("want one line, got %q", text)
			}
			for _, w := range append(tt.want, "overlayd --help") {
				if !strings.Contains(text, w) {
					t.Errorf("%q does not say %q", text, w)
				}
			}
		})
	}
}

// stderrOf returns what fn writes to standard error.
func stderrOf(t *testing.T, fn func() int) (int, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = w
	code := fn()
	os.Stderr = old
	_ = w.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		t.Fatal(err)
	}
	return code, b.String()
}

func TestEveryFlagIsDocumented(t *testing.T) {
	o, err := parse([]string{"--help"})
	if !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	o.flags.VisitAll(func(f *flag.Flag) {
		if !strings.Contains(o.help(), "--"+f.Name) {
			t.Errorf("--help lacks --%s", f.Name)
		}
		if !strings.Contains(string(doc), "`--"+f.Name+"`") {
			t.Errorf("docs/configuration.md lacks `--%s`", f.Name)
		}
	})
}

func TestHelpTellsOfTheDeviceOverIPv6(t *testing.T) {
	o, _ := parse([]string{"--help"})
	if !strings.Contains(o.help(), "overlay-v6.1") {
		t.Errorf("help of --device:\n%s", o.help())
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		24 * time.Hour: "24h", 10 * time.Minute: "10m", 90 * time.Second: "1m30s", 30 * time.Second: "30s",
		90 * time.Minute: "1h30m", 20 * time.Second: "20s", 0: "0s", time.Hour + time.Second: "1h0m1s",
	} {
		if got := short(d); got != want {
			t.Errorf("%s is shown as %q, want %q", d, got, want)
		}
	}
}
