package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
)

const (
	// DefaultPrefix is where flannel keeps its records.
	DefaultPrefix = "/coreos.com/network"

	// DefaultLeaseTTL is flannel's.
	DefaultLeaseTTL = 24 * time.Hour

	// MinLeaseTTL leaves time for a retry after a renewal that failed.
	MinLeaseTTL = 10 * time.Second

	// MaxLeaseTTL is etcd's own bound. Source: etcd 3.7, server/lease/lessor.go.
	MaxLeaseTTL = 9e9 * time.Second

	// DefaultCheckEvery is one cheap request a minute for each node.
	DefaultCheckEvery = time.Minute
)

// Options say which etcd, and how leases are held there.
type Options struct {
	Endpoints []string // URLs, all http or all https; at least one
	Prefix    string   // DefaultPrefix if empty

	// CAFile holds the certificates to trust, the system's if empty. CertFile
	// and KeyFile, both or none, are what the client shows. All are PEM.
	CAFile, CertFile, KeyFile string

	Username, Password string // both or none

	LeaseTTL time.Duration // how long a dead node holds its subnet; DefaultLeaseTTL if 0

	// CheckEvery is how often Run asks etcd whether the watch has missed
	// something. DefaultCheckEvery if 0.
	CheckEvery time.Duration

	Log *slog.Logger // discarded if nil
}

// complete fills in what was not given, and checks the rest. Errors name the
// field.
func (o Options) complete() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = DefaultLeaseTTL
	}
	if o.CheckEvery == 0 {
		o.CheckEvery = DefaultCheckEvery
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Endpoints = slices.Clone(o.Endpoints)
	o.Prefix = strings.TrimRight(o.Prefix, "/")
	switch {
	case !strings.HasPrefix(o.Prefix, "/"):
		return o, fmt.Errorf("etcd: Prefix %q: want a path such as %s", o.Prefix, DefaultPrefix)
	case o.LeaseTTL < MinLeaseTTL:
		return o, fmt.Errorf("etcd: LeaseTTL %s: want at least %s", o.LeaseTTL, MinLeaseTTL)
	case o.LeaseTTL > MaxLeaseTTL:
		return o, fmt.Errorf("etcd: LeaseTTL %s: is too long, want at most %dh", o.LeaseTTL, MaxLeaseTTL/time.Hour)
	case o.CheckEvery < 0:
		return o, fmt.Errorf("etcd: CheckEvery %s: want more than 0s", o.CheckEvery)
	case (o.CertFile == "") != (o.KeyFile == ""):
		return o, fmt.Errorf("etcd: CertFile %q, KeyFile %q: want both or none", o.CertFile, o.KeyFile)
	case o.Username == "" && o.Password != "":
		return o, fmt.Errorf("etcd: Username: missing, want one beside the Password")
	case o.Username != "" && o.Password == "":
		return o, fmt.Errorf("etcd: Password: missing, want that of Username %q", o.Username)
	}
	return o, o.checkEndpoints()
}

func (o Options) checkEndpoints() error {
	if len(o.Endpoints) == 0 {
		return fmt.Errorf("etcd: Endpoints: none, want at least one such as http://192.0.2.1:2379")
	}
	first := ""
	for _, e := range o.Endpoints {
		u, err := url.Parse(e)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Port() == "" ||
			u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("etcd: Endpoints: %q: want a URL such as http://192.0.2.1:2379", e)
		}
		if first == "" {
			first = u.Scheme
		}
		// etcd's client takes the first one's word for all of them.
		if u.Scheme != first {
			return fmt.Errorf("etcd: Endpoints: %s: want %s, as of the first one", e, first)
		}
		// It would drop the certificates, and speak in the clear.
		if u.Scheme == "http" && o.CAFile+o.CertFile != "" {
			return fmt.Errorf("etcd: Endpoints: %s: want https, for CAFile or CertFile is given", e)
		}
	}
	return nil
}

// tls returns nil if the endpoints are plain http.
func (o Options) tls() (*tls.Config, error) {
	if !strings.HasPrefix(o.Endpoints[0], "https:") {
		return nil, nil
	}
	// etcd's own reads the client's certificate anew at each handshake, so that
	// a renewed one needs no restart.
	info := transport.TLSInfo{TrustedCAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile}
	c, err := info.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("etcd: CAFile %q, CertFile %q, KeyFile %q: %w", o.CAFile, o.CertFile, o.KeyFile, err)
	}
	if o.CAFile != "" && c.RootCAs.Equal(x509.NewCertPool()) {
		return nil, fmt.Errorf("etcd: CAFile %q: holds no certificate, want PEM", o.CAFile)
	}
	return c, nil
}

// ttl is LeaseTTL in etcd's unit, whole seconds.
func (o Options) ttl() int64 { return int64((o.LeaseTTL + time.Second - 1) / time.Second) }
