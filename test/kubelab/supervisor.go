package kubelab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"crypto/tls"

	"golang.org/x/sys/unix"
)

// socketName is where pid 1 of a guest listens, in the guest's folder.
const socketName = "guest.sock"

// restartAfter is how long a unit that ended stays away, as systemd's
// RestartSec.
const restartAfter = 200 * time.Millisecond

// A supervisor runs units, and reaps whatever is orphaned in the guest.
type supervisor struct {
	dir string

	mu    sync.Mutex
	units map[string]*running
}

type running struct {
	Unit
	PID      int // 0: not running
	Starts   int
	stopped  bool
	finished chan int // exit status, one for each end
}

func newSupervisor(dir string) *supervisor {
	return &supervisor{dir: dir, units: map[string]*running{}}
}

// start runs a unit, and returns when later units may start.
func (s *supervisor) start(u Unit) {
	r := &running{Unit: u, finished: make(chan int, 1)}
	s.mu.Lock()
	if old := s.units[u.Name]; old != nil && !old.stopped {
		s.mu.Unlock()
		return
	}
	s.units[u.Name] = r
	s.mu.Unlock()
	await(u.Await)
	if u.Once {
		for s.launch(r) != nil || <-r.finished != 0 {
			time.Sleep(restartAfter)
		}
		return
	}
	go func() {
		for {
			if err := s.launch(r); err != nil {
				fmt.Fprintf(os.Stderr, "guest: %v\n", err)
			} else {
				fmt.Fprintf(os.Stderr, "guest: %s ended: %d\n", u.Name, <-r.finished)
			}
			s.mu.Lock()
			stopped := r.stopped
			s.mu.Unlock()
			if stopped {
				return
			}
			time.Sleep(restartAfter)
		}
	}()
}

// await returns when url answers.
func await(url string) {
	if url == "" {
		return
	}
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the guest's own loopback
	}}
	for ; ; time.Sleep(50 * time.Millisecond) {
		if resp, err := c.Get(url); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
	}
}

// launch starts the unit's program.
func (s *supervisor) launch(r *running) error {
	log, err := os.OpenFile(filepath.Join(s.dir, r.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(r.Argv[0], r.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The lock is held until the number is known: it may end before.
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.stopped {
		return fmt.Errorf("start %s: it was stopped", r.Name)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", r.Name, err)
	}
	r.PID, r.Starts = cmd.Process.Pid, r.Starts+1
	return cmd.Process.Release() // reap waits for it
}

// reap collects every child that ends, also those that came to pid 1 because
// their parent ended.
func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil { // no child yet
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		for _, r := range s.units {
			if r.PID == pid {
				r.PID = 0
				exit := status.ExitStatus()
				if status.Signaled() {
					exit = 128 + int(status.Signal())
				}
				r.finished <- exit
			}
		}
		s.mu.Unlock()
	}
}

// handler is what the guest's socket answers.
func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /units", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.units)
	})
	mux.HandleFunc("POST /start", func(w http.ResponseWriter, req *http.Request) {
		var u Unit
		if err := json.NewDecoder(req.Body).Decode(&u); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.start(u)
	})
	mux.HandleFunc("POST /kill/{unit}", func(w http.ResponseWriter, req *http.Request) {
		if err := s.signal(req.PathValue("unit"), false); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("POST /stop/{unit}", func(w http.ResponseWriter, req *http.Request) {
		if err := s.signal(req.PathValue("unit"), true); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	return mux
}

// signal kills a unit, for good or until it is started again by itself.
func (s *supervisor) signal(name string, forGood bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.units[name]
	if r == nil || r.stopped {
		return errors.New(name + " does not run")
	}
	r.stopped = forGood
	if r.PID == 0 {
		return nil
	}
	return unix.Kill(r.PID, unix.SIGKILL)
}
