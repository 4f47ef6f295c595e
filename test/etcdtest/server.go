// Package etcdtest runs an etcd inside the test process.
//
// It is a real etcd, built from go.etcd.io/etcd/server/v3/embed, with one
// member or several. A member can be stopped, started again on the same data and
// address, wiped, and cut off from its clients or from any other member, because
// that is what happens to etcd in clusters.
package etcdtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// startTimeout is how long a member may take until it serves. Alone it needs
// about half a second.
const startTimeout = 30 * time.Second

// Config says where an etcd runs.
type Config struct {
	Dir    string         // data folder, made if absent
	Listen netip.AddrPort // client address; port 0: any that is free

	// CAFile, CertFile and KeyFile, all PEM, switch TLS on. Clients must then
	// show a certificate that the CA signed.
	CAFile, CertFile, KeyFile string

	TokenTTL uint // seconds that a login lasts unused; etcd's 300 if 0

	// Observe, if not nil, is called with each request that a client makes, and
	// with each message of its streams; from any goroutine.
	Observe func(method string, message any)
}

// A Server is a running etcd, or one that can be started again.
type Server struct {
	cfg    Config
	etcd   *embed.Etcd // nil while stopped
	member *member     // nil: it is alone

	mu   sync.Mutex
	grpc []*grpc.Server // what etcd serves clients with; guarded by mu
}

// Start runs an etcd and waits until it serves.
func Start(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	return s, s.Start()
}

// Start runs the server again, after Stop, on the same address and data.
func (s *Server) Start() error {
	if err := s.launch(); err != nil {
		return err
	}
	return s.await()
}

// launch starts the server, which serves once a quorum of members runs.
func (s *Server) launch() error {
	if s.etcd != nil {
		return errors.New("start etcd: runs already")
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	c := s.embedConfig()
	c.ServiceRegister = func(g *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grpc = append(s.grpc, g)
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fmt.Errorf("start etcd on %s: %w", s.cfg.Listen, err)
	}
	s.etcd = e
	if s.member != nil {
		s.member.serves(e.Peers[0].Addr().String())
	}
	// A free port was asked for once; later starts must come back on it.
	s.cfg.Listen, err = netip.ParseAddrPort(e.Clients[0].Addr().String())
	return err
}

// await waits until the server serves, and stops it if it does not.
func (s *Server) await() (err error) {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case err = <-s.etcd.Err():
	case <-time.After(startTimeout):
		err = fmt.Errorf("not ready after %s", startTimeout)
	}
	s.Stop()
	return fmt.Errorf("start etcd on %s: %w", s.cfg.Listen, err)
}

func (s *Server) embedConfig() *embed.Config {
	c := embed.NewConfig()
	c.Name = "etcdtest"
	c.Dir = filepath.Join(s.cfg.Dir, "data")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.UnsafeNoFsync = true // tests outlive no power failure
	c.BcryptCost = 4       // the least that bcrypt allows; its default takes a second under -race

	// The short election time-out makes a lone member lead at once. Several on a
	// busy machine need a longer one, or they elect for ever.
	c.TickMs, c.ElectionMs = 10, 100
	if s.member != nil {
		c.Name, c.TickMs, c.ElectionMs = s.member.name, 50, 500
	}
	if s.cfg.TokenTTL != 0 {
		c.AuthTokenTTL = s.cfg.TokenTTL
	}
	if s.cfg.Observe != nil {
		c.GRPCAdditionalServerOptions = observers(s.cfg.Observe)
	}

	client := url.URL{Scheme: "http", Host: s.cfg.Listen.String()}
	if s.cfg.CertFile != "" {
		client.Scheme = "https"
		c.ClientTLSInfo = s.tlsInfo()
		c.ClientTLSInfo.ClientCertAuth = true
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	if s.member != nil {
		c.AdvertisePeerUrls = []url.URL{s.member.url()}
		c.InitialCluster = s.member.cluster.initial()
	}
	return c
}

// observers are the options that let a function see what clients send.
func observers(see func(method string, message any)) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			see(info.FullMethod, req)
			return handle(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return handle(srv, observedStream{stream, func(message any) { see(info.FullMethod, message) }})
		}),
	}
}

type observedStream struct {
	grpc.ServerStream
	see func(message any)
}

func (s observedStream) RecvMsg(message any) error {
	err := s.ServerStream.RecvMsg(message)
	if err == nil {
		s.see(message)
	}
	return err
}

func (s *Server) tlsInfo() transport.TLSInfo {
	return transport.TLSInfo{TrustedCAFile: s.cfg.CAFile, CertFile: s.cfg.CertFile, KeyFile: s.cfg.KeyFile}
}

// Stop ends the server and cuts all connections. Its data and address stay.
// Stopping it twice is fine.
func (s *Server) Stop() {
	if s.etcd == nil {
		return
	}
	// Left to itself, etcd would wait 5 s for watches to end.
	s.mu.Lock()
	for _, g := range s.grpc {
		g.Stop()
	}
	s.grpc = nil
	s.mu.Unlock()
	// A leader would try for 6 s to make another member lead, which may be
	// stopping too.
	s.etcd.Server.HardStop()
	s.etcd.Close()
	s.etcd = nil
}

// Wipe stops the server and deletes its data, as an operator does who sets up
// etcd anew. Start then begins at revision 1.
func (s *Server) Wipe() error {
	s.Stop()
	return os.RemoveAll(filepath.Join(s.cfg.Dir, "data"))
}

// Endpoint is the URL that clients use.
func (s *Server) Endpoint() string {
	if s.cfg.CertFile != "" {
		return "https://" + s.cfg.Listen.String()
	}
	return "http://" + s.cfg.Listen.String()
}

// Client returns a client of this server. With TLS it shows the server's own
// certificate. The caller closes it.
func (s *Server) Client() (*clientv3.Client, error) { return s.clientOf(s.Endpoint()) }

func (s *Server) clientOf(endpoints ...string) (*clientv3.Client, error) {
	var tc *tls.Config
	if s.cfg.CertFile != "" {
		var err error
		if tc, err = s.tlsInfo().ClientConfig(); err != nil {
			return nil, err
		}
	}
	// gRPC's own pauses before it connects again grow to two minutes.
	pause := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}
	return clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: startTimeout,
		TLS:         tc,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause, MinConnectTimeout: time.Second})},
	})
}
