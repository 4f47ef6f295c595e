package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Pings says what to ping and how.
type Pings struct {
	To       netip.Addr
	Count    int           // 0: until Stop
	Interval time.Duration // between two; 0: 10 ms
	Timeout  time.Duration // how long the last answers may take; 0: 1 s
	Size     int           // bytes of ICMP payload; at least 16, which is what 0 gives
	Whole    bool          // never fragmented: DF for IPv4, no fragment header for IPv6
}

// ICMPSize is the payload of a ping that makes an IP packet of that many bytes.
func ICMPSize(to netip.Addr, packet int) int {
	if to.Is4() {
		return packet - ipv4.HeaderLen - icmpHeader
	}
	return packet - ipv6.HeaderLen - icmpHeader
}

// icmpHeader is the size of the header of an echo, of either family.
const icmpHeader = 8

// payload is nonce and sequence number. ICMP's own sequence number has 16 bits
// and comes round after a minute of pings at 1 ms.
const payload = 16

func (p Pings) filled() Pings {
	if p.Interval <= 0 {
		p.Interval = 10 * time.Millisecond
	}
	if p.Timeout <= 0 {
		p.Timeout = time.Second
	}
	p.Size = max(p.Size, payload)
	return p
}

// A Pinger sends ICMP echo requests from a namespace and notes the answers.
type Pinger struct {
	opts  Pings
	conn  net.PacketConn
	nonce uint64

	stop     chan struct{}
	stopOnce sync.Once
	sent     chan struct{} // closed when no more are sent
	read     chan struct{} // closed when no more are read

	mu       sync.Mutex
	echoes   []Echo
	answered int
	twice    int
	lastErr  error         // of sending
	all      chan struct{} // closed when everything was sent and answered
}

// An Echo is one ping: when it was sent and when its answer came, zero if none
// did.
type Echo struct{ Sent, Answered time.Time }

// StartPings sends pings from n until p.Count are sent or Stop is called. A
// request that the kernel refuses to send counts as sent and lost.
func StartPings(n *Namespace, p Pings) (*Pinger, error) {
	p = p.filled()
	g := &Pinger{
		opts: p, nonce: rand.Uint64(),
		stop: make(chan struct{}), sent: make(chan struct{}), read: make(chan struct{}), all: make(chan struct{}),
	}
	network, listen := "ip4:icmp", "0.0.0.0"
	if !p.To.Is4() {
		network, listen = "ip6:ipv6-icmp", "::"
	}
	err := n.Do(func() (err error) {
		lc := net.ListenConfig{}
		if p.Whole {
			lc.Control = whole(p.To.Is4())
		}
		g.conn, err = lc.ListenPacket(context.Background(), network, listen)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", p.To, n.Name, err)
	}
	go g.send()
	go g.receive()
	return g, nil
}

// whole makes a socket refuse what would have to be fragmented.
func whole(is4 bool) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if is4 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
			}
		})
		return errors.Join(cerr, err)
	}
}

// Ping sends p.Count pings (one if that is 0) and returns when all are
// answered, or p.Timeout after the last.
func Ping(ctx context.Context, n *Namespace, p Pings) (Report, error) {
	p.Count = max(p.Count, 1)
	g, err := StartPings(n, p)
	if err != nil {
		return Report{}, err
	}
	select {
	case <-g.sent:
	case <-ctx.Done():
	}
	return g.Stop(), ctx.Err()
}

// Stop sends no more, waits for the answers that are still on their way, at
// most Pings.Timeout, and reports. It may be called twice.
func (g *Pinger) Stop() Report {
	g.stopOnce.Do(func() {
		close(g.stop)
		<-g.sent
		select {
		case <-g.all:
		case <-time.After(g.opts.Timeout):
		}
		_ = g.conn.Close()
		<-g.read
	})
	return g.Report()
}

// Report is the account so far: requests whose answer may still come count as
// lost.
func (g *Pinger) Report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Report{To: g.opts.To, Echoes: slices.Clone(g.echoes), Twice: g.twice, SendError: g.lastErr}
}

// Answer waits until a ping that was sent after t is answered, and returns the
// time from t to that answer.
func (g *Pinger) Answer(ctx context.Context, t time.Time) (time.Duration, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if d, ok := g.Report().AnsweredAfter(t); ok {
			return d, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("ping %s: no answer: %w", g.opts.To, ctx.Err())
		}
	}
}

func (g *Pinger) send() {
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.sent)
		g.complete()
	}()
	tick := time.NewTicker(g.opts.Interval)
	defer tick.Stop()
	for i := 0; g.opts.Count == 0 || i < g.opts.Count; i++ {
		if i > 0 {
			select {
			case <-tick.C:
			case <-g.stop:
				return
			}
		}
		msg, err := g.request(i)
		g.mu.Lock()
		g.echoes = append(g.echoes, Echo{Sent: time.Now()})
		g.mu.Unlock()
		if err == nil {
			_, err = g.conn.WriteTo(msg, &net.IPAddr{IP: g.opts.To.AsSlice(), Zone: g.opts.To.Zone()})
		}
		if err != nil {
			g.mu.Lock()
			g.lastErr = err
			g.mu.Unlock()
		}
	}
}

func (g *Pinger) request(seq int) ([]byte, error) {
	data := make([]byte, g.opts.Size)
	binary.BigEndian.PutUint64(data, g.nonce)
	binary.BigEndian.PutUint64(data[8:], uint64(seq))
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(g.nonce & 0xffff), Seq: seq & 0xffff, Data: data}}
	if !g.opts.To.Is4() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in its checksum
	}
	return m.Marshal(nil)
}

func (g *Pinger) receive() {
	defer close(g.read)
	proto := 1 // IANA protocol numbers: ICMP
	if !g.opts.To.Is4() {
		proto = 58 // IPv6-ICMP
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := g.conn.ReadFrom(buf)
		at := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as an error that a router reported for a request
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		e, ok := m.Body.(*icmp.Echo)
		if ok && len(e.Data) >= payload && binary.BigEndian.Uint64(e.Data) == g.nonce {
			g.note(binary.BigEndian.Uint64(e.Data[8:]), at)
		}
	}
}

func (g *Pinger) note(seq uint64, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case seq >= uint64(len(g.echoes)):
	case !g.echoes[seq].Answered.IsZero():
		g.twice++
	default:
		g.echoes[seq].Answered = at
		g.answered++
		g.complete()
	}
}

// complete closes g.all once everything was sent and answered. g.mu is held.
func (g *Pinger) complete() {
	select {
	case <-g.sent:
	default:
		return
	}
	select {
	case <-g.all:
	default:
		if g.answered == len(g.echoes) {
			close(g.all)
		}
	}
}
