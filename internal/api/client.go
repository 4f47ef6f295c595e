package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	// timeout bounds one request. overlayd answers from memory; the slowest
	// answer, 1,000 leases, takes it a few milliseconds.
	timeout = 3 * time.Second

	// storeTimeout bounds a request for which overlayd asks the store.
	storeTimeout = 15 * time.Second

	// maxRefusal is how much of the text of a refusal is passed on, in bytes.
	maxRefusal = 256
)

// A Client asks the overlayd behind one Unix socket. It is safe for concurrent
// use. Its errors are written for an operator: they say what is wrong and what
// to do; those of the socket wrap the system's error (fs.ErrNotExist,
// syscall.ECONNREFUSED, fs.ErrPermission), time-outs context.DeadlineExceeded.
type Client struct {
	socket string
	http   *http.Client
	store  *http.Client // more patient
}

// New returns a client of the socket at path. It connects with each request,
// so a daemon that starts later or restarts is found.
func New(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &Client{
		path,
		&http.Client{Transport: transport, Timeout: timeout},
		&http.Client{Transport: transport, Timeout: storeTimeout},
	}
}

// Status asks for the node at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, PathStatus)
}

// Peers asks for the other nodes as the kernel holds them.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return get[[]Peer](ctx, c, PathPeers)
}

// Leases asks for the records of the store.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return get[[]Lease](ctx, c, PathLeases)
}

// Pods asks for the held addresses.
func (c *Client) Pods(ctx context.Context) ([]Pod, error) {
	return get[[]Pod](ctx, c, PathPods)
}

// Misses asks for the kernel's latest questions, newest first.
func (c *Client) Misses(ctx context.Context) ([]Miss, error) {
	return get[[]Miss](ctx, c, PathMisses)
}

// Events asks for the latest changes, newest first.
func (c *Client) Events(ctx context.Context) ([]Event, error) {
	return get[[]Event](ctx, c, PathEvents)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var v T
	err := c.Get(ctx, path, &v)
	return v, err
}

// Get decodes the JSON answer to path into the value that into points to; a
// *json.RawMessage takes it as it is.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	// The host is never looked up: dial knows only the socket.
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://overlayd"+path, http.NoBody)
	if err != nil {
		return err
	}
	client := c.http
	if path == PathLeasesExpiry {
		client = c.store
	}
	return c.do(client, r, into)
}

// Release ends another node's lease, if it is as the caller saw it.
func (c *Client) Release(ctx context.Context, want Release) (Released, error) {
	body, err := json.Marshal(want)
	if err != nil {
		return Released{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://overlayd"+PathRelease, bytes.NewReader(body))
	if err != nil {
		return Released{}, err
	}
	var done Released
	err = c.do(c.store, r, &done)
	return done, err
}

// do sends a request and decodes the answer.
func (c *Client) do(client *http.Client, r *http.Request, into any) error {
	path := r.URL.Path
	answer, err := client.Do(r)
	if err != nil {
		return c.explain(err, client.Timeout)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read; nothing can be lost
	if answer.StatusCode != http.StatusOK {
		return refusal(path, answer)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return c.explain(err, client.Timeout)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read overlayd's answer to %s, is it of another version? (overlayctl version tells): %w", path, err)
	}
	return nil
}

// explain says what to do about a socket that does not answer.
func (c *Client) explain(err error, after time.Duration) error {
	var netErr net.Error
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &socketError{"overlayd is not running on this node, or --run-dir is wrong (no socket at " + c.socket + ")", err}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &socketError{"overlayd is not running on this node; it left its socket " + c.socket + " behind: start it, or read its log", err}
	case errors.Is(err, os.ErrPermission):
		return &socketError{"no permission to use " + c.socket + ": run as root", err}
	case errors.As(err, &netErr) && netErr.Timeout():
		return &socketError{fmt.Sprintf("overlayd did not answer at %s within %s: it hangs or the node is overloaded; read its log", c.socket, after), err}
	}
	return fmt.Errorf("ask overlayd at %s: %w", c.socket, err)
}

// refusal is the error of an answer that is not 200.
func refusal(path string, answer *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
	if err != nil {
		text = []byte(err.Error())
	}
	if answer.StatusCode == http.StatusConflict { // overlayd is well, and says why not
		return errors.New(strings.TrimSpace(string(text)))
	}
	if answer.StatusCode == http.StatusNotFound {
		return fmt.Errorf("overlayd does not know %s; is it older than this program? (overlayctl version tells)", path)
	}
	return fmt.Errorf("ask overlayd for %s: %s: %s", path, answer.Status, strings.TrimSpace(string(text)))
}

// A socketError replaces the chain of net/http's and net's texts by one that
// says what to do, and keeps their error for errors.Is.
type socketError struct {
	text  string
	cause error
}

func (e *socketError) Error() string { return e.text }
func (e *socketError) Unwrap() error { return e.cause }
