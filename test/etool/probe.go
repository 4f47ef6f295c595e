package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// limit bounds one try.
const limit = 5 * time.Second

// A Result is the outcome of one probe.
type Result struct {
	URL   string
	Error string        // empty: it answered
	Text  string        // what it answered
	Took  time.Duration // ns
}

// probe tries all URLs, some at a time.
func probe(urls []string) error {
	results := make([]Result, len(urls))
	slots := make(chan struct{}, 16)
	var all sync.WaitGroup
	for i, u := range urls {
		slots <- struct{}{}
		all.Go(func() {
			began := time.Now()
			text, err := try(u)
			results[i] = Result{URL: u, Text: text, Took: time.Since(began)}
			if err != nil {
				results[i].Error = err.Error()
			}
			<-slots
		})
	}
	all.Wait()
	enc := json.NewEncoder(os.Stdout)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func try(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", err
	}
	switch u.Scheme {
	case "http":
		c := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(text)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		return strings.TrimSpace(string(b)), err
	case "tcp", "udp":
		return echo(u)
	case "dns":
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupHost(ctx, u.Host)
		slices.Sort(addrs)
		return strings.Join(addrs, " "), err
	}
	return "", fmt.Errorf("%s: want http, tcp, udp or dns", text)
}

// echo sends bytes, ?size=n of them, and wants them back.
func echo(u *url.URL) (string, error) {
	size := 64
	if s := u.Query().Get("size"); s != "" {
		if _, err := fmt.Sscan(s, &size); err != nil {
			return "", err
		}
	}
	c, err := net.DialTimeout(u.Scheme, u.Host, limit)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	if _, err := c.Write(want); err != nil {
		return "", err
	}
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return "", err
	}
	if !bytes.Equal(got, want) {
		return "", fmt.Errorf("the echo differs")
	}
	return c.LocalAddr().String(), nil
}
