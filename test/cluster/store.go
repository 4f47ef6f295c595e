package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/vxlan-cni/vxlan-cni/test/etcdtest"
)

// storeArg makes a program that calls Serve the lab's etcd.
const storeArg = "-lab-etcd"

// Serve is to be called first in the main function, or TestMain, of a program
// that makes a Cluster. A Cluster's etcd is the same program, started again
// inside the underlay's namespace: an etcd that runs in this process would
// open its sockets on threads of any namespace. In that second process, where
// asked is true, Serve returns when etcd has ended, and so should the program,
// with status exit.
func Serve() (exit int, asked bool) {
	if len(os.Args) < 4 || os.Args[1] != storeArg {
		return 0, false
	}
	if err := serve(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// serve runs an etcd until its standard input ends, which it does with the
// lab's owner.
func serve(dir, listen string) error {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	s, err := etcdtest.Start(etcdtest.Config{Dir: dir, Listen: addr})
	if err != nil {
		return err
	}
	// No orderly end: nobody may need the data longer, and a store that is
	// killed is what the daemons have to live with.
	_, err = io.Copy(io.Discard, os.Stdin)
	s.Stop()
	return err
}

// StartEtcd starts the lab's etcd, with the data of the last one that it had.
func (c *Cluster) StartEtcd() error {
	if c.etcd.Alive() {
		return errors.New("start etcd: runs already")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.etcd, err = c.StartStore(self, storeArg, filepath.Join(c.Dir, "etcd"), c.StoreAddr().String())
	return err
}

// KillEtcd ends the lab's etcd by SIGKILL. Its data stay.
func (c *Cluster) KillEtcd() error { return errors.Join(c.etcd.Kill(), c.Forget(c.etcd)) }

// Client connects to the lab's etcd. The caller closes it.
func (c *Cluster) Client() (*clientv3.Client, error) {
	dial := func(_ context.Context, address string) (net.Conn, error) { return c.Underlay.Dial("tcp", address) }
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{c.StoreURL()},
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
		Logger:      zap.NewNop(),
	})
}

// Put writes a record below the network's prefix, such as "config".
func (c *Cluster) Put(ctx context.Context, key, value string) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := client.Put(ctx, Prefix+"/"+key, value); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}
