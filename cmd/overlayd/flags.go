package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"

	"github.com/vxlan-cni/vxlan-cni/deploy"
	"github.com/vxlan-cni/vxlan-cni/internal/node"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
)

// envPrefix makes --etcd-prefix and OVERLAYD_ETCD_PREFIX the same.
const envPrefix = "OVERLAYD"

// options is what flags and environment say.
type options struct {
	flags   *flag.FlagSet
	node    node.Config
	etcd    etcd.Options
	onKube  bool // leases are Node annotations, not in etcd
	kube    kube.Options
	level   slog.Level
	json    bool
	version bool
	cleanup bool // take everything off the node, and end
}

// parse reads flags, then the environment for those not given. Its errors name
// the flag and say what it should be.
func parse(args []string) (*options, error) {
	o := &options{flags: flag.NewFlagSet("overlayd", flag.ContinueOnError), node: node.Default()}
	o.node.Version = version.Read().String()
	o.node.Store = "etcd"
	o.flags.SetOutput(io.Discard)
	o.flags.Usage = func() {}
	o.define()
	if err := ff.Parse(o.flags, args, ff.WithEnvVarPrefix(envPrefix)); errors.Is(err, flag.ErrHelp) {
		return o, err
	} else if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner // without ff's account of where it was
		}
		return o, errors.New(oneDash.ReplaceAllString(err.Error(), "${1}--"))
	}
	if o.flags.NArg() > 0 {
		return o, fmt.Errorf("argument %q: overlayd takes flags only", o.flags.Arg(0))
	}
	if err := o.fitting(); err != nil {
		return o, err
	}
	if o.onKube {
		o.node.Store = "kube"
		if name, ok := os.LookupEnv(nodeNameEnv); ok && !o.isSet("node-id") {
			o.node.Node = name
		}
	}
	return o, o.node.Check()
}

// oneDash is how package flag begins an error, up to the flag's name.
var oneDash = regexp.MustCompile(`^(invalid (?:boolean )?value "(?:[^"\\]|\\.)*" for (?:flag )?|flag provided but not defined: |flag needs an argument: )-`)

// fitting returns an error for a flag of the store that is not used: whoever
// gave it believes that it does something.
func (o *options) fitting() (err error) {
	o.flags.Visit(func(f *flag.Flag) {
		etcdOnly := strings.HasPrefix(f.Name, "etcd-") || f.Name == "lease-ttl"
		kubeOnly := slices.Contains([]string{
			"kubeconfig-file", "kube-api-url", "kube-annotation-prefix", "net-config-path", "startup-taint",
		}, f.Name)
		switch {
		case err != nil:
		case etcdOnly && o.onKube:
			err = fmt.Errorf("--%s: means nothing with --kube-subnet-mgr: leave one of them out", f.Name)
		case kubeOnly && !o.onKube:
			err = fmt.Errorf("--%s: means nothing without --kube-subnet-mgr: add that, or leave it out", f.Name)
		}
	})
	return err
}

// isSet says whether a flag was given, on the command line or by environment.
func (o *options) isSet(name string) (set bool) {
	o.flags.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// A store is a Manager that has to be closed.
type store interface {
	subnet.Manager
	Close() error
}

// What the node asks of its Manager beside the contract is found out at run time: a
// store that lacked it would be left out in silence.
var (
	_ node.Announcer  = (*kube.Manager)(nil)
	_ node.Withdrawer = (*kube.Manager)(nil)
	_ node.Withdrawer = (*etcd.Manager)(nil)
)

// store makes the Manager that the flags ask for. Errors name the flag.
func (o *options) store(log *slog.Logger) (store, error) {
	if o.onKube {
		o.kube.Log = log
		m, err := kube.New(o.kube)
		if err != nil {
			return nil, errors.New(flagOf.Replace(err.Error()))
		}
		return m, nil
	}
	o.etcd.Log = log
	m, err := etcd.New(o.etcd)
	if err != nil {
		return nil, errors.New(flagOf.Replace(err.Error()))
	}
	return m, nil
}

func (o *options) define() {
	f, n, e := o.flags, &o.node, &o.etcd
	f.StringVar(&n.Node, "node-id", n.Node, "stable `name` of this node; its lease follows it, whatever its address is")
	f.StringVar(&n.RunDir, "run-dir", n.RunDir, "`folder` for node file, socket and slot files; must not survive a reboot")
	o.defineUnderlay()
	f.Func("firewall", "`auto|nftables|iptables|none`: what the node's rules are written with (default auto)", func(s string) (err error) {
		n.Firewall, err = node.ParseFirewall(s)
		return err
	})
	f.BoolVar(&n.Masquerade, "ip-masq", n.Masquerade, "give pod traffic that leaves the cluster's networks the node's address")
	f.BoolVar(&n.PeerFilter, "peer-filter", n.PeerFilter, "take VXLAN from leased peers only")
	f.BoolVar(&n.PathMTU, "path-mtu", false, "ask the routers on the way to peers how large packets may be, and bound the pods' MTU by it")
	f.BoolVar(&n.FixSysctls, "fix-sysctls", false, "set kernel settings that keep pods from being reached, instead of only warning of them")
	f.StringVar(&n.Device, "device", n.Device, "`name` of the VXLAN device; the one over an IPv6 underlay has -v6 in it, overlay-v6.1")
	f.StringVar(&n.Bridge, "bridge", n.Bridge, "`name` of the bridge that pods hang on")
	f.StringVar((*string)(&n.Resolve), "resolve", string(n.Resolve), "`eager|on-miss`: neighbour and FDB entries all at once, or when the kernel asks for them")
	o.duration(&n.Grace, "grace", n.Grace, "how long a peer whose lease vanished keeps its entries")
	o.duration(&n.Sweep, "sweep-interval", n.Sweep, "how often to look for addresses whose pod is gone without a DEL; one is freed when it is seen twice")
	f.StringVar(&n.Metrics, "metrics-address", "", "serve /metrics, /healthz and the rest on this TCP `host:port` too")
	f.StringVar(&n.CNIConfDir, "cni-conf-dir", "", "`folder` of the runtime's network configuration, into which "+deploy.ConflistName+" is written once pods can start; without it none is")
	f.StringVar(&n.CNIConfTemplate, "cni-conf-template", "", "`file` of what is written there; without it vxlan-cni, portmap and bandwidth are chained")
	e.Endpoints = []string{defaultEndpoint}
	f.Func("etcd-endpoints", "`URLs` of etcd, separated by commas (default "+defaultEndpoint+")", func(s string) error {
		e.Endpoints = strings.Split(s, ",")
		return nil
	})
	f.StringVar(&e.Prefix, "etcd-prefix", etcd.DefaultPrefix, "`key` below which configuration and leases stand")
	f.StringVar(&e.CAFile, "etcd-cafile", "", "`file` of the authority that signed etcd's certificate")
	f.StringVar(&e.CertFile, "etcd-certfile", "", "`file` of the client certificate")
	f.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` of the client certificate's key")
	f.StringVar(&e.Username, "etcd-username", "", "`user` of etcd")
	f.StringVar(&e.Password, "etcd-password", "", "that user's `password`; better given by the environment")
	o.duration(&e.LeaseTTL, "lease-ttl", etcd.DefaultLeaseTTL, "how long the store keeps the lease of a node that is gone")
	k := &o.kube
	f.BoolVar(&o.onKube, "kube-subnet-mgr", false, "keep the lease on the Kubernetes Node of this name instead of in etcd")
	f.StringVar(&k.Kubeconfig, "kubeconfig-file", "", "`file` that says how to reach the API server; without it, and --kube-api-url, the pod's service account")
	f.StringVar(&k.APIURL, "kube-api-url", "", "`URL` of the API server; counts more than the kubeconfig file's")
	f.StringVar(&k.AnnotationPrefix, "kube-annotation-prefix", kube.DefaultAnnotationPrefix, "`prefix` of the Node annotations")
	f.StringVar(&k.ConfigPath, "net-config-path", kube.DefaultConfigPath, "`file` of the network's configuration, with --kube-subnet-mgr")
	f.StringVar(&k.StartupTaint, "startup-taint", "", "`key` of a taint to take off the Node once its network works, with --kube-subnet-mgr")
	f.Func("log-level", "`debug|info|warn|error` (default info)", func(s string) error {
		if o.level.UnmarshalText([]byte(s)) != nil {
			return errors.New("want debug, info, warn or error")
		}
		return nil
	})
	f.BoolVar(&o.json, "log-json", false, "log as JSON lines")
	f.BoolVar(&o.cleanup, "cleanup", false, "take everything of the overlay off this node, and the node out of the store; pods lose their network")
	f.BoolVar(&o.version, "version", false, "print the version and end")
}

// defineUnderlay defines how the underlay is chosen. The names are flannel's.
func (o *options) defineUnderlay() {
	f, n := o.flags, &o.node
	f.Func("iface", "underlay interface by `name|address`, several in the order of preference; without it that of the default route", func(s string) error {
		n.Ifaces = append(n.Ifaces, strings.Split(s, ",")...)
		return nil
	})
	f.Func("iface-regex", "underlay interface of which name or an address matches this `expression`; may be given several times", func(s string) error {
		re, err := regexp.Compile(s)
		if err != nil {
			return fmt.Errorf("want a regular expression of Go's syntax: %w", err)
		}
		n.IfaceRegexes = append(n.IfaceRegexes, re)
		return nil
	})
	o.address(&n.CanReach, "iface-can-reach", "underlay interface by which this `address` is reached")
	o.address(&n.Public, "public-ip", "`address` that other nodes send to; without it the underlay interface's")
	o.address(&n.Public6, "public-ipv6", "IPv6 `address` that other nodes send to, beside an IPv4 one")
}

// address defines a flag for an address.
func (o *options) address(p *netip.Addr, name, text string) {
	o.flags.Func(name, text, func(s string) (err error) {
		if *p, err = netip.ParseAddr(s); err != nil {
			return errors.New("want an IP address such as 192.0.2.7")
		}
		return nil
	})
}

// nodeNameEnv is where a DaemonSet puts the Node's name for flannel.
const nodeNameEnv = "NODE_NAME"

const defaultEndpoint = "http://127.0.0.1:2379"

// duration defines a flag whose error says what a duration looks like.
func (o *options) duration(p *time.Duration, name string, value time.Duration, text string) {
	*p = value
	o.flags.Func(name, fmt.Sprintf("%s, a `duration` (default %s)", text, short(value)), func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil && manyHours.MatchString(s) || d > etcd.MaxLeaseTTL {
			return fmt.Errorf("is too long, want at most %dh", etcd.MaxLeaseTTL/time.Hour)
		}
		if err != nil {
			return errors.New("want a duration such as 90s or 24h")
		}
		*p = d
		return nil
	})
}

// manyHours is what looks like a duration, and is none if it has more than 292 years.
var manyHours = regexp.MustCompile(`^([0-9]+(\.[0-9]*)?(h|m|s|ms|us|µs|ns))+$`)

// short writes 24h instead of 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// flagOf gives the fields of etcd.Options and kube.Options the names of their
// flags.
var flagOf = strings.NewReplacer("etcd: ", "", "kube: ", "",
	"Kubeconfig", "--kubeconfig-file", "APIURL", "--kube-api-url", "AnnotationPrefix", "--kube-annotation-prefix",
	"ConfigPath", "--net-config-path", "StartupTaint", "--startup-taint", "Endpoints", "--etcd-endpoints", "Prefix", "--etcd-prefix",
	"CAFile", "--etcd-cafile", "CertFile", "--etcd-certfile", "KeyFile", "--etcd-keyfile",
	"Username", "--etcd-username", "Password", "--etcd-password", "LeaseTTL", "--lease-ttl")

// help is the text of --help.
func (o *options) help() string {
	var b strings.Builder
	b.WriteString(`overlayd keeps this node's part of the pod overlay: it leases a pod subnet, keeps
the VXLAN device, and keeps routes, neighbours and FDB entries right.

Usage: overlayd [flags]

Every flag is also an environment variable: --etcd-prefix is ` + envPrefix + `_ETCD_PREFIX.
Where both are given, the flag counts.

Flags:
`)
	o.flags.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "  %s\n        %s", strings.TrimSpace("--"+f.Name+" "+value), text)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(&b, " (default %s)", f.DefValue)
		}
		b.WriteString("\n")
	})
	b.WriteString(`
Exit status: 0 after SIGTERM; 1 after a failure; 2 for a flag that cannot be.
`)
	return b.String()
}

// logger writes text or JSON lines.
func (o *options) logger(w io.Writer) *slog.Logger {
	h := &slog.HandlerOptions{Level: o.level}
	if o.json {
		return slog.New(slog.NewJSONHandler(w, h))
	}
	return slog.New(slog.NewTextHandler(w, h))
}
