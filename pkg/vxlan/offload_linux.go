package vxlan

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernels before 5.7 leave a wrong checksum in encapsulated packets that were
// rewritten by NAT on their way (Linux commit ea64d8d6c675): ClusterIPs answer
// after 63 s. Without checksum offload on the device they do not.
const goodMajor, goodMinor = 5, 7

// badChecksums reports whether a kernel of that release has the fault. What
// cannot be read as a version has it not: the cure costs throughput.
func badChecksums(release string) bool {
	first, rest, _ := strings.Cut(release, ".")
	second := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		second = rest[:i]
	}
	major, err := strconv.Atoi(first)
	minor, merr := strconv.Atoi(second)
	if err != nil || merr != nil {
		return false
	}
	return major < goodMajor || major == goodMajor && minor < goodMinor
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return string(u.Release[:bytes.IndexByte(u.Release[:], 0)])
}

// ethtoolValue is struct ethtool_value (linux/ethtool.h).
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in its union.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// txChecksum reads, or with a command to set changes, checksum offload of a
// link. Netlink has it only in kernels without the fault.
func txChecksum(link string, cmd, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	v := ethtoolValue{cmd, value}
	req := ethtoolRequest{data: unsafe.Pointer(&v)}
	copy(req.name[:unix.IFNAMSIZ-1], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return 0, fmt.Errorf("ethtool %s, command %#x: %w", link, cmd, errno)
	}
	return v.data, nil
}

// mendChecksums switches checksum offload off on the device where the kernel
// needs it, and returns what it did, in words.
func (d *Device) mendChecksums(release string) (string, error) {
	if !badChecksums(release) {
		return "", nil
	}
	on, err := txChecksum(d.cfg.Name, unix.ETHTOOL_GTXCSUM, 0)
	if err != nil || on == 0 {
		return "", err
	}
	_, err = txChecksum(d.cfg.Name, unix.ETHTOOL_STXCSUM, 0)
	return "set tx checksum offload off", err
}
