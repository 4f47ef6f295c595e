package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// IP runs a batch of ip commands, one a line, inside the namespace.
func (n *Namespace) IP(lines ...string) error { return n.batch("ip", lines) }

// Bridge is IP for the program bridge.
func (n *Namespace) Bridge(lines ...string) error { return n.batch("bridge", lines) }

func (n *Namespace) batch(program string, lines []string) error {
	cmd := n.Command(program, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %s -batch: %w: %s\n%s", n.Name, program, err, out, strings.Join(lines, "\n"))
	}
	return nil
}

// Sysctl writes settings below /proc/sys, given as path and value in turn.
func (n *Namespace) Sysctl(pairs ...string) error {
	// The kernel goes by the namespace of the thread that opens the file.
	return n.Do(func() error {
		var errs []error
		for i := 0; i+1 < len(pairs); i += 2 {
			errs = append(errs, os.WriteFile("/proc/sys/"+pairs[i], []byte(pairs[i+1]), 0o644))
		}
		return errors.Join(errs...)
	})
}

// Dial connects from inside the namespace to a literal address.
func (n *Namespace) Dial(network, address string) (conn net.Conn, err error) {
	// No name to look up and one address only: net opens the socket on the
	// calling thread.
	err = n.Do(func() error {
		conn, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	return conn, err
}

// Links lists the names of the links inside the namespace.
func (n *Namespace) Links() (names []string, err error) {
	err = n.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return err
	})
	return names, err
}

// Eventually calls fn until it succeeds, and returns its last error if that
// takes longer than limit.
func Eventually(limit time.Duration, fn func() error) error {
	until := time.Now().Add(limit)
	for wait := time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		err := fn()
		if err == nil {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		time.Sleep(wait)
	}
}

// NFT feeds rules to nft inside the namespace.
func (n *Namespace) NFT(rules string) error {
	cmd := n.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: nft -f: %w: %s\n%s", n.Name, err, out, rules)
	}
	return nil
}
