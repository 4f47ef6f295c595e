package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	optInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	optEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES
)

// A legacy reads the tables of the legacy flavour in one family. It executes
// nothing, and makes no table that is not there: reading one would.
type legacy struct {
	family family
	fd     int
	names  *os.File // the tables that there are; nil if that cannot be known
}

// openLegacy opens what is needed in the calling thread's network namespace.
func openLegacy(f family, log *slog.Logger) (*legacy, error) {
	domain, file := unix.AF_INET, "/proc/thread-self/net/ip_tables_names"
	if f.six {
		domain, file = unix.AF_INET6, "/proc/thread-self/net/ip6_tables_names"
	}
	l := &legacy{family: f, fd: -1}
	names, err := os.Open(file)
	if err == nil {
		l.names = names
	} else if !errors.Is(err, os.ErrNotExist) {
		// Readable for root alone. To ask for a table makes it.
		log.Warn("what the legacy iptables drops is not seen", "error", err)
	}
	l.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		l.fd = -1 // no IPv6 in this kernel, and no tables of it
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("open socket for iptables: %w", err), l.close())
	}
	return l, nil
}

func (l *legacy) close() error {
	var errs []error
	if l.fd >= 0 {
		errs = append(errs, unix.Close(l.fd))
	}
	if l.names != nil {
		errs = append(errs, l.names.Close())
	}
	return errors.Join(errs...)
}

// tables lists the tables that the kernel has made.
func (l *legacy) tables() ([]string, error) {
	if l.names == nil || l.fd < 0 {
		return nil, nil
	}
	b, err := io.ReadAll(io.NewSectionReader(l.names, 0, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("read list of iptables' tables: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// read returns those of the named tables that there are.
func (l *legacy) read(names ...string) (map[string]xtable, error) {
	there, err := l.tables()
	if err != nil {
		return nil, err
	}
	out := map[string]xtable{}
	for _, name := range names {
		if !slices.Contains(there, name) {
			continue
		}
		t, err := l.table(name)
		if err != nil {
			return nil, fmt.Errorf("read iptables table %s (%s, legacy): %w", name, l.family.name, err)
		}
		out[name] = t
	}
	return out, nil
}

func (l *legacy) table(name string) (xtable, error) {
	for range attempts {
		buf := make([]byte, xtInfoSize)
		copy(buf, name)
		if err := l.option(optInfo, buf); err != nil {
			return nil, err
		}
		info, err := parseInfo(buf)
		if err != nil {
			return nil, err
		}
		entries := make([]byte, xtEntriesOffset+int(info.size))
		copy(entries, name)
		binary.NativeEndian.PutUint32(entries[xtNameSize:], info.size)
		err = l.option(optEntries, entries)
		if errors.Is(err, unix.EAGAIN) {
			continue // it has another size by now
		}
		if err != nil {
			return nil, err
		}
		// Hooks and entries are read one after the other: they must fit.
		again := make([]byte, xtInfoSize)
		copy(again, name)
		if err := l.option(optInfo, again); err != nil {
			return nil, err
		}
		if bytes.Equal(buf, again) {
			return parseLegacy(info, entries[xtEntriesOffset:], l.family.layout())
		}
	}
	return nil, errors.New("it changes all the time")
}

func (l *legacy) option(option int, buf []byte) error {
	level := unix.IPPROTO_IP
	if l.family.six {
		level = unix.IPPROTO_IPV6
	}
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
