package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"

	"github.com/vxlan-cni/vxlan-cni/internal/node"
	"github.com/vxlan-cni/vxlan-cni/internal/version"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/etcd"
)

// envPrefix makes --etcd-prefix and OVERLAYD_ETCD_PREFIX the same.
const envPrefix = "OVERLAYD"

// options is what flags and environment say.
type options struct {
	flags   *flag.FlagSet
	node    node.Config
	etcd    etcd.Options
	level   slog.Level
	json    bool
	version bool
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
	if err := ff.Parse(o.flags, args, ff.WithEnvVarPrefix(envPrefix)); err != nil {
		return o, err
	}
	if o.flags.NArg() > 0 {
		return o, fmt.Errorf("argument %q: overlayd takes flags only", o.flags.Arg(0))
	}
	return o, o.node.Check()
}

func (o *options) define() {
	f, n, e := o.flags, &o.node, &o.etcd
	f.StringVar(&n.Node, "node-id", n.Node, "stable `name` of this node; its lease follows it, whatever its address is")
	f.StringVar(&n.RunDir, "run-dir", n.RunDir, "`folder` for node file, socket and slot files; must not survive a reboot")
	f.StringVar(&n.Iface, "iface", "", "underlay interface by `name or address` (default: that of the default route)")
	f.Func("public-ip", "`address` that other nodes send to (default: the underlay interface's)", func(s string) (err error) {
		n.Public, err = netip.ParseAddr(s)
		return err
	})
	f.StringVar(&n.Device, "device", n.Device, "`name` of the VXLAN device")
	f.StringVar(&n.Bridge, "bridge", n.Bridge, "`name` of the bridge that pods hang on")
	f.Func("resolve", "how neighbour and FDB entries come into the kernel: `eager` (all at once) or on-miss (when the kernel asks) (default eager)", func(s string) error {
		n.Resolve = node.Resolve(s)
		return nil
	})
	f.DurationVar(&n.Grace, "grace", n.Grace, "how `long` a peer whose lease vanished keeps its entries")
	f.StringVar(&n.Metrics, "metrics-address", "", "serve /metrics, /healthz and the rest on this TCP `host:port` too")
	f.Func("etcd-endpoints", "comma-separated `URLs` of etcd (default http://127.0.0.1:2379)", func(s string) error {
		e.Endpoints = strings.Split(s, ",")
		return nil
	})
	e.Endpoints = []string{"http://127.0.0.1:2379"}
	f.StringVar(&e.Prefix, "etcd-prefix", "/coreos.com/network", "`key` below which configuration and leases stand")
	f.StringVar(&e.CAFile, "etcd-cafile", "", "`file` of the authority that signed etcd's certificate")
	f.StringVar(&e.CertFile, "etcd-certfile", "", "`file` of the client certificate")
	f.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` of the client certificate's key")
	f.StringVar(&e.Username, "etcd-username", "", "etcd `user`")
	f.StringVar(&e.Password, "etcd-password", "", "etcd `password`; better given as OVERLAYD_ETCD_PASSWORD")
	f.DurationVar(&e.LeaseTTL, "lease-ttl", 24*time.Hour, "how `long` the store keeps the lease of a node that is gone")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "`level`: debug, info, warn or error")
	f.BoolVar(&o.json, "log-json", false, "log as JSON lines")
	f.BoolVar(&o.version, "version", false, "print the version and end")
}

// help is the text of --help.
func (o *options) help() string {
	var b strings.Builder
	b.WriteString(`overlayd keeps this node's part of the pod overlay: it leases a pod subnet, keeps
the VXLAN device, and keeps routes, neighbours and FDB entries right.

usage: overlayd [flags]

Every flag is also an environment variable: --etcd-prefix is OVERLAYD_ETCD_PREFIX.
A flag wins.

`)
	o.flags.SetOutput(&b)
	o.flags.PrintDefaults()
	o.flags.SetOutput(io.Discard)
	b.WriteString(`
exit status: 0 after SIGTERM, 1 after a failure, 2 for a flag that cannot be
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
