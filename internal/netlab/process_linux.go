package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ended is how long a process has to end after SIGTERM and after SIGKILL.
const ended = 5 * time.Second

// A Process is a process of the lab, told from a later one of the same number
// by the time at which it started.
type Process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/<pid>/stat
	Log   string `json:"log,omitempty"`
}

// start starts cmd in a process group of its own, so that a Ctrl-C at the
// terminal reaches the lab's owner only, and reaps it when it ends.
func start(name string, cmd *exec.Cmd, log string) (Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return Process{}, err
	}
	defer func() { _ = f.Close() }()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", name, err)
	}
	p := Process{Name: name, PID: cmd.Process.Pid, Log: log}
	p.Start, _ = startTime(p.PID) // until Wait the number cannot be given to another
	go func() { _ = cmd.Wait() }()
	return p, nil
}

// self is the calling process.
func self() Process { return ProcessOf("owner", os.Getpid()) }

// ProcessOf is a process that runs now, by its number.
func ProcessOf(name string, pid int) Process {
	p := Process{Name: name, PID: pid}
	p.Start, _ = startTime(pid)
	return p
}

// Alive says whether the process has not ended.
func (p Process) Alive() bool {
	at, state := startTime(p.PID)
	return at != 0 && at == p.Start && state != 'Z'
}

// Stop sends SIGTERM and waits; after 5 s it sends SIGKILL, and that is an
// error, because a process of ours must end when it is asked to.
func (p Process) Stop() error {
	fd, err := p.open()
	if fd < 0 || err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := p.send(fd, unix.SIGTERM); err != nil {
		return err
	}
	if err := p.wait(fd); err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("stop %s: still there %v after SIGTERM\n%s", p, ended, Tail(p.Log, 20)), p.Kill())
}

// Kill sends SIGKILL and waits until the process has ended.
func (p Process) Kill() error {
	fd, err := p.open()
	if fd < 0 || err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := p.send(fd, unix.SIGKILL); err != nil {
		return err
	}
	return p.wait(fd)
}

func (p Process) String() string { return fmt.Sprintf("%s (process %d)", p.Name, p.PID) }

// open returns a descriptor of the process, -1 if it has ended.
func (p Process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || err == nil && !p.Alive() {
		if err == nil {
			_ = unix.Close(fd)
		}
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", p, err)
	}
	return fd, nil
}

func (p Process) send(fd int, sig unix.Signal) error {
	err := unix.PidfdSendSignal(fd, sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to %s: %w", unix.SignalName(sig), p, err)
	}
	return nil
}

// wait blocks until the process behind fd has ended: a pidfd becomes readable
// then, also to those that are not its parent.
func (p Process) wait(fd int) error {
	until := time.Now().Add(ended)
	for {
		left := time.Until(until)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, left.Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for %s: %w", p, err)
		case n == 1:
			return nil
		case left <= 0:
			return fmt.Errorf("wait for %s: still there after %v", p, ended)
		}
	}
}

// eventually is Eventually for what p has to bring about: it gives up when p has
// ended, and its error holds the end of p's log.
func (p Process) eventually(limit time.Duration, fn func() error) error {
	gone := false
	err := Eventually(limit, func() error {
		alive := p.Alive() // before fn: what p did last must count
		err := fn()
		gone = err != nil && !alive
		if gone {
			return nil
		}
		return err
	})
	switch {
	case gone:
		return fmt.Errorf("%s has ended\n%s", p, Tail(p.Log, 20))
	case err != nil:
		return fmt.Errorf("%s: %w\n%s", p, err, Tail(p.Log, 20))
	}
	return nil
}

// startTime reads when the process started, in clock ticks since boot, and its
// state letter; 0 if there is none.
func startTime(pid int) (ticks uint64, state byte) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name, in brackets, may hold blanks and brackets of its own.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, 0
	}
	ticks, _ = strconv.ParseUint(fields[19], 10, 64)
	return ticks, fields[0][0]
}

// Tail returns the last lines of a file, and why it cannot where it cannot.
func Tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return path + ":\n  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// names reports whether text has what in it and not only a longer name that
// begins so.
func names(text, what string) bool {
	for {
		_, rest, found := strings.Cut(text, what)
		if !found {
			return false
		}
		if rest == "" || !strings.ContainsAny(rest[:1], "abcdefghijklmnopqrstuvwxyz0123456789") {
			return true
		}
		text = rest
	}
}

// processesNaming lists the processes, other than the caller, whose command
// line or environment names what.
func processesNaming(what string) []string {
	dirs, _ := os.ReadDir("/proc")
	var found []string
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if _, state := startTime(pid); state == 'Z' {
			continue
		}
		for _, f := range []string{"cmdline", "environ"} {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
			if names(string(b), what) {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				words := slices.DeleteFunc(strings.Split(string(line), "\x00"), func(s string) bool { return s == "" })
				found = append(found, fmt.Sprintf("process %d: %s", pid, strings.Join(words, " ")))
				break
			}
		}
	}
	return found
}
