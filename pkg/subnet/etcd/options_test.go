package etcd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	o, err := Options{Endpoints: []string{"http://192.0.2.1:2379", "http://[2001:db8::1]:2379/"}}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if o.Prefix != "/coreos.com/network" || o.LeaseTTL != 24*time.Hour || o.ttl() != 86400 || o.CheckEvery != time.Minute || o.Log == nil {
		t.Errorf("got %+v", o)
	}
	if c, err := o.tls(); c != nil || err != nil {
		t.Errorf("TLS for http: %v, %v; want none", c, err)
	}
}

func TestOptions(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no PEM\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	https := []string{"https://192.0.2.1:2379"}
	for _, c := range []struct {
		name string
		set  func(*Options)
		want string // in the error; empty: none
	}{
		{"as given", func(*Options) {}, ""},
		{"no endpoint", func(o *Options) { o.Endpoints = nil }, "Endpoints: none"},
		{"no scheme", func(o *Options) { o.Endpoints = []string{"192.0.2.1:2379"} }, `"192.0.2.1:2379"`},
		{"no port", func(o *Options) { o.Endpoints = []string{"http://192.0.2.1"} }, `"http://192.0.2.1"`},
		{"no host", func(o *Options) { o.Endpoints = []string{"http://:2379"} }, `"http://:2379"`},
		{"empty endpoint", func(o *Options) { o.Endpoints = append(o.Endpoints, "") }, `""`},
		{"path", func(o *Options) { o.Endpoints = []string{"http://a:1/v2"} }, "/v2"},
		{"password in the URL", func(o *Options) { o.Endpoints = []string{"http://u:p@a:1"} }, "want a URL"},
		{"mixed schemes", func(o *Options) { o.Endpoints = []string{"https://a:1", "http://b:1"} }, "http://b:1: want https"},
		{"authority for http", func(o *Options) { o.CAFile = empty }, "want https"},
		{"system's authorities", func(o *Options) { o.Endpoints = https }, ""},
		{"missing CAFile", func(o *Options) { o.Endpoints, o.CAFile = https, "/nowhere/ca.pem" }, "/nowhere/ca.pem"},
		{"empty CAFile", func(o *Options) { o.Endpoints, o.CAFile = https, empty }, "holds no certificate"},
		{"no KeyFile", func(o *Options) { o.Endpoints, o.CertFile = https, empty }, "KeyFile"},
		{"no CertFile", func(o *Options) { o.Endpoints, o.KeyFile = https, empty }, "CertFile"},
		{"bad CertFile", func(o *Options) { o.Endpoints, o.CertFile, o.KeyFile = https, empty, empty }, "CertFile"},
		{"no Username", func(o *Options) { o.Password = "x" }, "Username"},
		{"no Password", func(o *Options) { o.Username = "x" }, "Password"},
		{"relative prefix", func(o *Options) { o.Prefix = "network" }, `Prefix "network"`},
		{"root as prefix", func(o *Options) { o.Prefix = "/" }, "Prefix"},
		{"slash after the prefix", func(o *Options) { o.Prefix = "/net/" }, ""},
		{"short TTL", func(o *Options) { o.LeaseTTL = 9 * time.Second }, "LeaseTTL 9s: want at least 10s"},
		{"long TTL", func(o *Options) { o.LeaseTTL = 2500001 * time.Hour }, "LeaseTTL 2500001h0m0s: is too long, want at most 2500000h"},
		{"negative TTL", func(o *Options) { o.LeaseTTL = -time.Hour }, "LeaseTTL"},
		{"negative CheckEvery", func(o *Options) { o.CheckEvery = -1 }, "CheckEvery"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Endpoints: []string{"http://192.0.2.1:2379"}}
			c.set(&o)
			m, err := New(o)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(m.subnetsPrefix(), "//subnets/") {
					t.Errorf("records stand below %s", m.subnetsPrefix())
				}
				if err := m.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), "etcd: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %s", err, c.want)
			}
		})
	}
}

func TestTTLIsWholeSeconds(t *testing.T) {
	for ttl, want := range map[time.Duration]int64{10 * time.Second: 10, 10*time.Second + 1: 11, time.Hour: 3600} {
		if got := (Options{LeaseTTL: ttl}).ttl(); got != want {
			t.Errorf("%s: %d s, want %d", ttl, got, want)
		}
	}
}
