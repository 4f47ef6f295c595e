package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Held is what hold tells of its connections.
type Held struct {
	Open   int           // connections that never failed
	Lost   []string      // why the others did
	Echoes int           // messages that came back
	Gap    time.Duration // ns; the longest that a message took to come back
}

// hold keeps n connections to an echo busy: a message every 20 ms on each.
func hold(n int, addr string) error {
	var mu sync.Mutex
	var h Held
	for range n {
		c, err := net.DialTimeout("tcp", addr, limit)
		if err != nil {
			return err
		}
		h.Open++
		go func() {
			err := chat(c, func(took time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				h.Echoes++
				h.Gap = max(h.Gap, took)
			})
			mu.Lock()
			defer mu.Unlock()
			h.Open--
			h.Lost = append(h.Lost, err.Error())
		}()
	}
	return http.ListenAndServe(":8090", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(h)
	}))
}

// chat returns when a message did not come back as it was.
func chat(c net.Conn, told func(time.Duration)) error {
	out, in := make([]byte, 512), make([]byte, 512)
	for i := uint64(1); ; i++ {
		binary.BigEndian.PutUint64(out, i)
		began := time.Now()
		if err := c.SetDeadline(began.Add(30 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("message %d came back otherwise", i)
		}
		told(time.Since(began))
		time.Sleep(20 * time.Millisecond)
	}
}

// burst is how much push sends before it measures, in bytes: a bit more than
// the 2^32 bits that container runtimes put into a token bucket.
const burst = 513 << 20

// push measures for d, and prints bits per second.
func push(d time.Duration, addr string) error {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetWriteDeadline(time.Now().Add(time.Minute + d)); err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	for sent := 0; sent < burst; {
		n, err := c.Write(b)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", sent, err)
		}
		sent += n
	}
	began, sent := time.Now(), 0
	for time.Since(began) < d {
		n, err := c.Write(b)
		if err != nil {
			return err
		}
		sent += n
	}
	fmt.Println(int(float64(sent) * 8 / time.Since(began).Seconds()))
	return nil
}
