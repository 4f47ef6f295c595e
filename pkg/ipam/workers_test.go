package ipam

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Some tests need processes to kill. They are this test binary again, told by
// its environment which part to play; a worker ends when its standard input
// does, so that none outlives the test.
const (
	roleVariable = "IPAM_TEST_ROLE" // name in roles
	dirVariable  = "IPAM_TEST_DIR"
	bootVariable = "IPAM_TEST_BOOT" // ns since boot at which the workers' clock begins
)

var roles = map[string]func(*worker) error{
	"pods":   func(w *worker) error { return w.pods(15) },
	"brief":  func(w *worker) error { return w.pods(1) },
	"sweep":  (*worker).sweep,
	"remove": (*worker).remove,
	"one":    (*worker).one,
	"make":   (*worker).make,
}

func TestMain(m *testing.M) {
	play, ok := roles[os.Getenv(roleVariable)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := play(newWorker()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const (
	workerSubnets = "10.244.2.0/25 fd00::/64"
	claimsDir     = "claims"  // in the folder of a test: who uses which address
	recreatedFile = "renewed" // made by remove once it saw another file in place of one it removed
)

// A worker is the process under test.
type worker struct {
	dir     string
	subnets []netip.Prefix
	start   time.Duration
	rand    *rand.Rand
	stop    atomic.Bool
	begun   chan struct{} // closed when a line came or the input ended
}

func newWorker() *worker {
	start, _ := strconv.ParseInt(os.Getenv(bootVariable), 10, 64)
	w := &worker{dir: os.Getenv(dirVariable), start: time.Duration(start), begun: make(chan struct{})}
	w.rand = rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(start)))
	for s := range strings.FieldsSeq(workerSubnets) {
		w.subnets = append(w.subnets, netip.MustParsePrefix(s))
	}
	go func() {
		in := bufio.NewReader(os.Stdin)
		_, _ = in.ReadString('\n')
		close(w.begun)
		_, _ = in.ReadString('\n')
		w.stop.Store(true)
	}()
	return w
}

// now runs 20,000 times as fast as the kernel's clock: a slot rests for 6 ms.
func (w *worker) now() time.Duration { return time.Hour + (bootTime()-w.start)*20000 }

func (w *worker) open() (*Pool, error) {
	p, err := Open(w.dir, w.subnets)
	if err == nil {
		p.now = w.now
	}
	return p, err
}

// claim notes that key uses an address, and finds out if another does. One
// system call, so that a kill leaves no half of it.
func (w *worker) claim(s Slot) error {
	for _, a := range s.Addrs {
		if err := os.Symlink(s.Key.Container, w.claimPath(a)); err != nil {
			other, _ := os.Readlink(w.claimPath(a))
			return fmt.Errorf("%s was given to %s, and %s uses it: %w", a, s.Key, other, err)
		}
	}
	return nil
}

func (w *worker) unclaim(s Slot) error {
	var errs []error
	for _, a := range s.Addrs {
		errs = append(errs, os.Remove(w.claimPath(a)))
	}
	return errors.Join(errs...)
}

func (w *worker) claimPath(a netip.Addr) string {
	return filepath.Join(w.dir, claimsDir, strings.ReplaceAll(a.String(), ":", "-"))
}

// pods acquires and releases, up to most slots at a time.
func (w *worker) pods(most int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := w.open()
	if err != nil {
		return err
	}
	var mine []Slot
	for n := 0; !w.stop.Load(); n++ {
		if len(mine) < most && w.rand.IntN(2) == 0 {
			s, err := p.Acquire(ctx, Request{Key: Key{fmt.Sprintf("%d-%d", os.Getpid(), n), "eth0"}})
			if errors.Is(err, ErrExhausted) {
				continue
			}
			if err == nil {
				err = w.claim(s)
			}
			if err != nil {
				return err
			}
			mine = append(mine, s)
		} else if len(mine) > 0 {
			at := w.rand.IntN(len(mine))
			s := mine[at]
			mine = slices.Delete(mine, at, at+1)
			if err := errors.Join(w.unclaim(s), w.free(ctx, p, s)); err != nil {
				return err
			}
		}
	}
	return nil
}

// free gives a slot back, one way or another.
func (w *worker) free(ctx context.Context, p *Pool, s Slot) (err error) {
	found := true
	switch w.rand.IntN(3) {
	case 0:
		found, err = p.Release(ctx, s.Key)
	case 1:
		found, err = folder{w.dir, w.now}.releaseAll(ctx, s.Key)
	case 2:
		err = p.Cancel(ctx, s)
	}
	if err == nil && !found {
		err = fmt.Errorf("slot %d of %s was lost", s.Index, s.Key)
	}
	return err
}

// alive says whether the worker that made key lives.
func alive(k Key) bool {
	pid, _, _ := strings.Cut(k.Container, "-")
	n, err := strconv.Atoi(pid)
	return err == nil && unix.Kill(n, 0) == nil
}

// keep keeps what living workers hold.
func (w *worker) keep(s Slot) bool {
	if alive(s.Key) {
		return true
	}
	_ = w.unclaim(s) // before the slot is free; what was not yet claimed cannot be
	return false
}

// sweep frees what killed workers left.
func (w *worker) sweep() error {
	d := folder{w.dir, w.now}
	for !w.stop.Load() {
		_, err := d.retain(context.Background(), w.keep, w.subnets)
		if err == nil {
			_, err = d.list(context.Background())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove sweeps, and takes the file for one of an old subnet.
func (w *worker) remove() error {
	path := filepath.Join(w.dir, fileName(w.subnets[0]))
	var last fs.FileInfo
	for !w.stop.Load() {
		_, err := folder{w.dir, w.now}.retain(context.Background(), w.keep, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if last != nil && !os.SameFile(last, info) {
			if err := os.WriteFile(filepath.Join(w.dir, recreatedFile), nil, 0o600); err != nil {
				return err
			}
		}
		last = info
	}
	return nil
}

// one acquires one slot when told to, and says which.
func (w *worker) one() error {
	<-w.begun
	p, err := w.open()
	if err != nil {
		return err
	}
	s, err := p.Acquire(context.Background(), Request{Key: Key{strconv.Itoa(os.Getpid()), "eth0"}})
	_, _ = fmt.Fprintln(os.Stdout, s.Index)
	return err
}

// make makes slot files, each in a folder of its own.
func (w *worker) make() error {
	for n := 0; !w.stop.Load(); n++ {
		p, err := Open(filepath.Join(w.dir, fmt.Sprintf("%d-%d", os.Getpid(), n)), []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20")})
		if err == nil {
			_, err = p.Usage(context.Background())
		}
		if err == nil {
			err = p.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A child is a worker as its test sees it.
type child struct {
	*exec.Cmd
	in       io.WriteCloser
	out, err bytes.Buffer
}

// start runs a worker in dir.
func start(t *testing.T, role, dir string, boot time.Duration) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0])}
	c.Env = append(os.Environ(),
		"GORACE=atexit_sleep_ms=0", // else one with -race sleeps for a second when it ends
		roleVariable+"="+role, dirVariable+"="+dir, fmt.Sprintf("%s=%d", bootVariable, boot))
	c.Stdout, c.Stderr = &c.out, &c.err
	in, err := c.StdinPipe()
	if err == nil {
		c.in, err = in, c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// end lets a worker finish and wants it to have done well.
func (c *child) end(t *testing.T) {
	t.Helper()
	_ = c.in.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("worker: %v: %s", err, c.err.String())
	}
}

// kill kills a worker -9, unless it failed before.
func (c *child) kill(t *testing.T) {
	t.Helper()
	_ = c.Process.Kill()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Errorf("worker: %v: %s", err, c.err.String())
	}
}

// shoot runs workers for a while, killing one after the other at random, and
// returns how many were killed.
func shoot(t *testing.T, dir string, boot, lasting time.Duration, cast []string) int {
	t.Helper()
	children := make([]*child, len(cast))
	for i, role := range cast {
		children[i] = start(t, role, dir, boot)
	}
	random := rand.New(rand.NewPCG(1, uint64(boot)))
	killed := 0
	for deadline := time.Now().Add(lasting); time.Now().Before(deadline) && !t.Failed(); killed++ {
		// Not to wait for something: a kill shall hit anywhere.
		<-time.After(time.Duration(random.IntN(60)) * time.Millisecond)
		i := random.IntN(len(cast))
		children[i].kill(t)
		children[i] = start(t, cast[i], dir, boot)
	}
	for _, c := range children { // in this order: what outlives the first sweeper stays held
		c.end(t)
	}
	return killed
}

// accounted wants each claim to be of a slot that its key holds, no key and no
// address twice, and every slot counted. It returns the number of held slots.
func accounted(t *testing.T, dir string) int {
	t.Helper()
	held, err := List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	byAddr, byKey := map[string]Key{}, map[Key]int{}
	for _, e := range held {
		if at, twice := byKey[e.Key]; twice {
			t.Errorf("%s holds slots %d and %d", e.Key, at, e.Index)
		}
		byKey[e.Key] = e.Index
		for _, a := range e.Addrs {
			byAddr[strings.ReplaceAll(a.String(), ":", "-")] = e.Key
		}
	}
	claims, err := os.ReadDir(filepath.Join(dir, claimsDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range claims {
		user, err := os.Readlink(filepath.Join(dir, claimsDir, c.Name()))
		if err != nil || byAddr[c.Name()].Container != user {
			t.Errorf("%s is used by %s (%v), and held by %v", c.Name(), user, err, byAddr[c.Name()])
		}
	}
	return len(held)
}

// TestKillAnywhere: processes acquire, release, cancel and sweep side by side,
// and are killed at random.
func TestKillAnywhere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, claimsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	killed := shoot(t, dir, bootTime(), 3*time.Second, []string{"sweep", "pods", "pods", "pods", "pods"})
	held := accounted(t, dir)
	t.Logf("%d workers killed, %d slots held at the end", killed, held)
	if killed < 10 || held == 0 {
		t.Errorf("%d workers were killed and %d slots are held, want 10 or more, and some", killed, held)
	}
	freed, err := Retain(t.Context(), dir, func(Slot) bool { return false })
	if err != nil || len(freed) != held {
		t.Errorf("freed %d, %v, want %d", len(freed), err, held)
	}
	p, err := Open(dir, prefixes(t, workerSubnets))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := p.Usage(t.Context())
	if err != nil || u.Total != 125 || u.Held != 0 || u.Resting < held {
		t.Errorf("usage %+v, %v, want 125 slots of which none is held and %d or more rest", u, err, held)
	}
}

// TestRemoveUnderWriters: the file is removed whenever nothing in it is held,
// and nobody writes into a removed one.
func TestRemoveUnderWriters(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, claimsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	shoot(t, dir, bootTime(), 2*time.Second, []string{"remove", "brief", "brief", "remove"})
	accounted(t, dir)
	if _, err := os.Stat(filepath.Join(dir, recreatedFile)); err != nil {
		t.Errorf("the file was never removed and made again, so nothing was tested: %v", err)
	}
}

// TestCreateRace: many processes begin with an empty folder at the same time.
func TestCreateRace(t *testing.T) {
	for range 4 {
		dir := t.TempDir()
		children := make([]*child, 10)
		for i := range children {
			children[i] = start(t, "one", dir, bootTime())
		}
		for _, c := range children {
			_, _ = io.WriteString(c.in, "go\n")
		}
		var got []int
		for _, c := range children {
			c.end(t)
			n, err := strconv.Atoi(strings.TrimSpace(c.out.String()))
			if err != nil {
				t.Error(err)
			}
			got = append(got, n)
		}
		slices.Sort(got)
		if want := []int{2, 3, 4, 5, 6, 7, 8, 9, 10, 11}; !slices.Equal(got, want) {
			t.Errorf("slots %v, want %v", got, want)
		}
		if got, want := fileNames(t, dir), "slots-10.244.2.0-25"; got != want {
			t.Errorf("folder has %s, want %s", got, want)
		}
	}
}

// TestKillCreators: a file is there whole, or not at all.
func TestKillCreators(t *testing.T) {
	dir := t.TempDir()
	killed := shoot(t, dir, bootTime(), time.Second, []string{"make", "make"})
	folders, err := os.ReadDir(dir)
	if err != nil || len(folders) < killed {
		t.Fatalf("%d folders, %v, after %d workers", len(folders), err, killed)
	}
	halves := 0
	for _, f := range folders {
		sub := filepath.Join(dir, f.Name())
		if strings.Contains(fileNames(t, sub), ".new") {
			halves++
		}
		if _, err := List(t.Context(), sub); err != nil {
			t.Error(err)
		}
		p, err := Open(sub, prefixes(t, "10.244.0.0/20"))
		if err != nil {
			t.Fatal(err)
		}
		if u, err := p.Usage(t.Context()); err != nil || u.Free() != 4093 {
			t.Errorf("%s: %+v, %v, want 4093 free slots", sub, u, err)
		}
		_ = p.Close()
		if got, want := fileNames(t, sub), "slots-10.244.0.0-20"; got != want {
			t.Errorf("%s has %s, want %s", sub, got, want)
		}
	}
	t.Logf("%d creators killed, %d half files found", killed, halves)
}
