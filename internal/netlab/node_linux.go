package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// A Node is a namespace that stands for a machine: eth0 on the underlay, a run
// folder, and overlayd once it is started.
type Node struct {
	*Namespace
	Name     string     // n1, n2, …; overlayd's node id
	Segment  Segment    // that eth0 is on
	Address  netip.Addr // of eth0; invalid if the underlay has no IPv4
	Address6 netip.Addr // the same for IPv6
	Dir      string     // holds the run folder and the log
	RunDir   string     // overlayd's --run-dir
	Log      string     // what overlayd wrote to standard error, over all its starts

	lab    *Lab
	number int      // of its addresses
	flags  []string // of the last start
	daemon Process
}

// Start runs overlayd on the node, with flags after those of the lab.
func (n *Node) Start(flags ...string) error {
	if n.daemon.PID != 0 && n.daemon.Alive() {
		return fmt.Errorf("%s: overlayd runs already", n.Name)
	}
	n.flags = flags
	cmd := n.Command(n.lab.opts.Daemon, n.Args(flags...)...)
	cmd.Env = append(os.Environ(), n.lab.opts.Env...)
	p, err := start("overlayd "+n.Name, cmd, n.Log)
	if err != nil {
		return err
	}
	n.daemon = p
	return n.lab.add(p)
}

// Args are overlayd's arguments on this node, followed by flags.
func (n *Node) Args(flags ...string) []string {
	own := []string{"--run-dir", n.RunDir, "--etcd-endpoints", n.lab.StoreURL(), "--node-id", n.Name}
	if !n.lab.opts.AnyIface {
		own = append(own, "--iface", "eth0")
	}
	return slices.Concat(own, n.lab.opts.Flags, flags)
}

// Stop ends overlayd by SIGTERM.
func (n *Node) Stop() error { return errors.Join(n.daemon.Stop(), n.lab.Forget(n.daemon)) }

// Kill ends overlayd by SIGKILL.
func (n *Node) Kill() error { return errors.Join(n.daemon.Kill(), n.lab.Forget(n.daemon)) }

// Restart stops overlayd and starts it with the flags that it had.
func (n *Node) Restart() error {
	if err := n.Stop(); err != nil {
		return err
	}
	return n.Start(n.flags...)
}

// Daemon is the node's overlayd process, which may have ended.
func (n *Node) Daemon() Process { return n.daemon }

// Ready waits until overlayd says that it is ready. The error holds the last
// reason it gave and the end of its log.
func (n *Node) Ready(limit time.Duration) error {
	return n.daemon.eventually(limit, func() error {
		_, err := n.Get(api.PathReady)
		return err
	})
}

// Socket is the file of overlayd's API.
func (n *Node) Socket() string { return filepath.Join(n.RunDir, api.SocketName) }

// API is a client of overlayd's socket.
func (n *Node) API() *api.Client { return api.New(n.Socket()) }

// Get asks overlayd's socket for one of the paths that answer plain text; any
// status but 200 is an error that holds the text.
func (n *Node) Get(path string) (string, error) {
	var d net.Dialer
	client := http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", n.Socket())
			},
		},
	}
	resp, err := client.Get("http://overlayd" + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}
