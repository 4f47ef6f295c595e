package outage

import (
	"context"
	"net"
	"sync"
)

// A Dialer makes connections that Cut can end. A connection hangs on the address
// that it was made from; when the node loses that, the kernel tells nobody, and
// whoever waits for an answer waits until a time-out.
type Dialer struct {
	dialer net.Dialer

	mu    sync.Mutex
	conns map[*cuttable]struct{}
}

// A cuttable is a connection that its Dialer remembers.
type cuttable struct {
	net.Conn
	dialer *Dialer
}

// DialContext connects, as a net.Dialer does.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := d.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := &cuttable{c, d}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		d.conns = map[*cuttable]struct{}{}
	}
	d.conns[conn] = struct{}{}
	return conn, nil
}

// Close closes the connection.
func (c *cuttable) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}

// Cut closes all connections: what waits for them fails at once, and whoever uses
// them connects anew.
func (d *Dialer) Cut() {
	d.mu.Lock()
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // of a connection that is given up anyway
	}
}
