package netlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// A Sink takes uploads by TCP. When the sender has sent all, it is answered with
// the SHA-256 of what came and with the longest pause between two portions.
type Sink struct {
	Port uint16

	server   *tcpServer
	received atomic.Int64
}

// StartSink starts a Sink on a port of every address in n.
func StartSink(n *Namespace, port uint16) (*Sink, error) {
	s := &Sink{Port: port}
	err := n.Do(func() (err error) {
		s.server, err = listenTCP(port, s.swallow)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sink in %s: %w", n.Name, err)
	}
	return s, nil
}

// Received is the number of bytes that came, over all uploads.
func (s *Sink) Received() int64 { return s.received.Load() }

// Close ends the sink, also the uploads that are under way, and waits for it.
func (s *Sink) Close() error { return s.server.close() }

// swallow reads to the end and answers with digest and longest pause.
func (s *Sink) swallow(c net.Conn) {
	sum := sha256.New()
	buf := make([]byte, 256<<10)
	var longest time.Duration
	last := time.Now()
	for {
		n, err := c.Read(buf)
		s.received.Add(int64(n))
		longest, last = max(longest, time.Since(last)), time.Now()
		_, _ = sum.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return // the sender learns it from the missing answer
		}
	}
	_, _ = c.Write(binary.BigEndian.AppendUint64(sum.Sum(nil), uint64(longest)))
}

// An Upload is a transfer of random bytes from a namespace to a Sink.
type Upload struct {
	conn   net.Conn
	what   string
	size   int64 // 0: until Stop
	began  time.Time
	cancel context.CancelFunc
	done   chan struct{}

	sum  hash.Hash // of the sender's goroutine until done
	sent int64
	err  error
}

// A Transfer is what became of an Upload whose digests agree.
type Transfer struct {
	Bytes int64
	Took  time.Duration
	Pause time.Duration // the longest between two portions, seen by the sink
}

func (t Transfer) String() string {
	return fmt.Sprintf("%.1f MB in %v, longest pause %v", float64(t.Bytes)/1e6, t.Took.Round(time.Millisecond), t.Pause.Round(time.Millisecond))
}

// portion is what an Upload writes at once.
const portion = 64 << 10

// StartUpload starts to send size bytes, or without end if size is 0: every pace a
// portion (64 KiB), or as fast as it goes if pace is 0.
func StartUpload(n *Namespace, to netip.AddrPort, size int64, pace time.Duration) (*Upload, error) {
	conn, err := n.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &Upload{
		conn: conn, what: fmt.Sprintf("upload from %s to %s", n.Name, to), size: size, began: time.Now(),
		cancel: cancel, done: make(chan struct{}), sum: sha256.New(),
	}
	go func() {
		defer close(u.done)
		u.err = u.send(ctx, pace)
	}()
	return u, nil
}

func (u *Upload) send(ctx context.Context, pace time.Duration) error {
	random := rand.NewChaCha8([32]byte{})
	buf := make([]byte, portion)
	tick := time.NewTicker(max(pace, 1))
	defer tick.Stop()
	for ctx.Err() == nil && (u.size == 0 || u.sent < u.size) {
		if pace > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
		part := buf
		if u.size > 0 {
			part = buf[:min(portion, u.size-u.sent)]
		}
		_, _ = random.Read(part)
		_, _ = u.sum.Write(part)
		n, err := u.conn.Write(part)
		u.sent += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// Stop ends an upload without end, or waits for the end of one that has a size,
// and compares the digests, all of it within limit.
func (u *Upload) Stop(limit time.Duration) (Transfer, error) {
	defer func() { _ = u.conn.Close() }()
	defer u.cancel()
	if u.size == 0 {
		u.cancel()
	}
	_ = u.conn.SetDeadline(time.Now().Add(limit))
	<-u.done
	t := Transfer{Bytes: u.sent}
	if u.err != nil {
		return t, fmt.Errorf("%s: after %d bytes: %w", u.what, u.sent, u.err)
	}
	if c, ok := u.conn.(*net.TCPConn); ok {
		if err := c.CloseWrite(); err != nil {
			return t, fmt.Errorf("%s: %w", u.what, err)
		}
	}
	answer := make([]byte, sha256.Size+8)
	if _, err := io.ReadFull(u.conn, answer); err != nil {
		return t, fmt.Errorf("%s: answer to %d bytes: %w", u.what, u.sent, err)
	}
	if !bytes.Equal(answer[:sha256.Size], u.sum.Sum(nil)) {
		return t, fmt.Errorf("%s: other bytes arrived than the %d that were sent", u.what, u.sent)
	}
	t.Took = time.Since(u.began)
	t.Pause = time.Duration(binary.BigEndian.Uint64(answer[sha256.Size:]))
	return t, nil
}

// Send uploads size bytes at full speed.
func Send(n *Namespace, to netip.AddrPort, size int64, limit time.Duration) (Transfer, error) {
	u, err := StartUpload(n, to, size, 0)
	if err != nil {
		return Transfer{}, err
	}
	return u.Stop(limit)
}
