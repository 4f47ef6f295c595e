package etcd

import (
	"context"
	"errors"
	"net"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

const (
	callTimeout = 5 * time.Second  // of one request
	listTimeout = 15 * time.Second // of reading all records: 3 MB for 10,000

	// A ping finds a dead connection within 40 s. etcd refuses clients that
	// ping more often than every 5 s.
	pingEvery   = 30 * time.Second
	pingTimeout = 10 * time.Second

	// The pause between two attempts to connect grows from reconnectMin to
	// reconnectMax. gRPC's own, 1 s to 120 s, would leave a node blind for that
	// long after etcd is back.
	reconnectMin = 200 * time.Millisecond
	reconnectMax = 5 * time.Second
)

// do runs one request against etcd. If it was not served the error is a
// *outage.Wait, unless ctx ended.
//
// A member that is cut off from the others would let a request wait until the
// time-out. It refuses at once, and has done nothing, if a leader is required;
// then the next member is asked, for etcd's client takes them in turn. Left to
// retry, a sequence of three requests could meet that member each time.
func (m *Manager) do(ctx context.Context, timeout time.Duration, request func(context.Context, *clientv3.Client) error) error {
	rctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := m.connect(rctx)
	if err == nil {
		rctx = clientv3.WithRequireLeader(rctx)
		err = request(rctx, c)
		for n := 1; n < len(m.opts.Endpoints) && errors.Is(err, rpctypes.ErrNoLeader); n++ {
			err = request(rctx, c)
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errClosed):
		return err
	}
	return asWaitError(err, timeout)
}

var errClosed = errors.New("etcd: the Manager is closed")

func (m *Manager) get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err = c.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

// list reads everything under a prefix.
func (m *Manager) list(ctx context.Context, prefix string) (resp *clientv3.GetResponse, err error) {
	err = m.do(ctx, listTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err = c.Get(ctx, prefix, clientv3.WithPrefix())
		return err
	})
	return resp, err
}

// txn does all of then if every one of when is true.
func (m *Manager) txn(ctx context.Context, when []clientv3.Cmp, then ...clientv3.Op) (resp *clientv3.TxnResponse, err error) {
	err = m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err = c.Txn(ctx).If(when...).Then(then...).Commit()
		return err
	})
	return resp, err
}

// grant makes an etcd lease. Its time may be longer than was asked for: etcd
// grants none shorter than 1.5 times its election time-out.
func (m *Manager) grant(ctx context.Context) (id clientv3.LeaseID, ttl int64, err error) {
	err = m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Grant(ctx, m.opts.ttl())
		if err == nil {
			id, ttl = resp.ID, resp.TTL
		}
		return err
	})
	return id, ttl, err
}

// renew makes an etcd lease last its whole time again, and returns that time
// in seconds. It is 0 if the lease is no more.
func (m *Manager) renew(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	err = m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.KeepAliveOnce(ctx, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		if err == nil {
			ttl = resp.TTL
		}
		return err
	})
	return ttl, err
}

// revoke ends an etcd lease that nothing hangs on any more. Left alone it would
// end by itself, so a failure is worth no more than a line.
func (m *Manager) revoke(ctx context.Context, id clientv3.LeaseID) {
	err := m.do(ctx, callTimeout, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, id)
		return err
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		m.opts.Log.Debug("unused etcd lease stays until it ends", "lease", int64(id), "error", err)
	}
}

// connect returns the client, and makes it if there is none.
func (m *Manager) connect(ctx context.Context) (*clientv3.Client, error) {
	if c, err := m.connected(); c != nil || err != nil {
		return c, err
	}
	if err := take(ctx, m.connecting); err != nil {
		return nil, err
	}
	defer func() { <-m.connecting }()
	if c, err := m.connected(); c != nil || err != nil {
		return c, err
	}
	// Given a user, clientv3.New logs in, and so may take long.
	life, end := context.WithCancel(context.Background())
	abort := context.AfterFunc(ctx, end)
	c, err := clientv3.New(m.clientConfig(life))
	if err != nil {
		end()
		return nil, err
	}
	if !abort() {
		return nil, errors.Join(ctx.Err(), c.Close())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.Join(errClosed, c.Close())
	}
	m.client = c
	return c, nil
}

func (m *Manager) connected() (*clientv3.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	return m.client, nil
}

func (m *Manager) clientConfig(life context.Context) clientv3.Config {
	pause := backoff.DefaultConfig
	pause.BaseDelay, pause.MaxDelay = reconnectMin, reconnectMax
	return clientv3.Config{
		Endpoints: m.opts.Endpoints,
		TLS:       m.tls,
		Username:  m.opts.Username,
		Password:  m.opts.Password,
		Context:   life,
		Logger:    zap.NewNop(), // what matters comes back as errors

		DialTimeout:          callTimeout,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,

		// The second attempt is for a login that has run out: etcd's client logs
		// in anew and tries once more. All else is tried again by retry.
		MaxUnaryRetries: 2,
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause, MinConnectTimeout: callTimeout}),
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return m.dialer.DialContext(ctx, "tcp", address)
			}),
		},
	}
}

// failFast makes a request fail with the cause when no endpoint can be reached.
// etcd's client would wait, and say "deadline exceeded" at last.
//
//nolint:revive // gRPC says how many arguments an interceptor has
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// asWaitError says whether etcd was not reached or did not want to.
func asWaitError(err error, timeout time.Duration) *outage.Wait {
	w := &outage.Wait{State: stateRefused, Err: err}
	if errors.Is(err, context.DeadlineExceeded) {
		w.State, w.Text = stateAway, "no answer within "+timeout.String()
		return w
	}
	code := status.Code(err)
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) {
		code, w.Text = e.Code(), e.Error()
	} else if s, ok := status.FromError(err); ok {
		w.Text = s.Message()
	}
	switch code {
	case codes.DeadlineExceeded, codes.Canceled:
		w.State, w.Text = stateAway, "no answer within "+timeout.String()
	case codes.Unavailable:
		w.State = stateAway
	}
	return w
}
