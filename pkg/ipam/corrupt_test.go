package ipam

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

const victimSubnets = "10.244.1.0/28 fd00::/64"

// A victim is a slot file to damage: slot 2 held, 3 released, 4 cancelled
// after a release, the others never used.
type victim struct {
	*testing.T
	dir, path string
	good      []byte
	held      Slot
}

func newVictim(t *testing.T) victim {
	c := &fakeClock{time.Hour}
	v := victim{T: t, dir: t.TempDir()}
	v.path = slotPath(t, v.dir, victimSubnets)
	p := newPool(t, v.dir, victimSubnets, c)
	v.held = acquire(t, p, 2)
	acquire(t, p, 3)
	acquire(t, p, 4)
	release(t, p, 3)
	release(t, p, 4)
	if err := p.Cancel(t.Context(), acquire(t, p, 5, p.layout.addrs(4)[0])); err != nil {
		t.Fatal(err)
	}
	v.good = read(t, v.path)
	return v
}

// refused does every operation with the file as bytes, and wants each to end
// in an error that names path and offset, and the bytes unchanged.
func (v victim) refused(name string, damaged []byte, offset int64, reason string) {
	v.Helper()
	// In place: other processes have the very file open.
	f, err := os.OpenFile(v.path, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.Write(damaged)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		v.Fatal(err)
	}
	v.operationsFail(name, offset, reason)
	if !bytes.Equal(read(v, v.path), damaged) {
		v.Errorf("%s: the file was written to", name)
	}
}

func (v victim) operationsFail(name string, offset int64, reason string) {
	v.Helper()
	before := fileNames(v, v.dir)
	p := newPool(v, v.dir, victimSubnets, &fakeClock{2 * time.Hour})
	defer p.Close()
	for op, do := range operations(v.dir, p, v.held) {
		err := do(v.Context())
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.Path != v.path || corrupt.Offset != offset || !strings.Contains(corrupt.Reason, reason) {
			v.Errorf("%s: %s: %v, want %s, offset %d: %s", name, op, err, v.path, offset, reason)
		}
	}
	if after := fileNames(v, v.dir); after != before {
		v.Errorf("%s: folder has %s, want %s", name, after, before)
	}
}

func TestEveryByteMatters(t *testing.T) {
	v := newVictim(t)
	step := 1
	if testing.Short() {
		step = 37
	}
	for _, c := range []struct {
		name  string
		start int64
	}{{"header", 0}, {"held", offset(2)}, {"free", offset(3)}, {"free without holder", offset(4)}, {"unused", offset(9)}, {"last", offset(15)}} {
		for n := 0; n < recordSize; n += step {
			at, want := c.start+int64(n), c.start
			if c.name == "header" && n >= 8 && n < 12 {
				want = 8 // the version is looked at before the checksum
			}
			b := bytes.Clone(v.good)
			b[at] ^= 1 << (n % 8)
			v.refused(c.name+" byte "+hex.EncodeToString([]byte{byte(n >> 8), byte(n)}), b, want, "")
			if t.Failed() {
				return
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	v := newVictim(t)
	for size := range len(v.good) {
		if r := size % recordSize; r > 2 && r < recordSize-2 && r != 100 {
			continue
		}
		v.refused("truncated", v.good[:size], int64(size), "ends")
	}
	v.refused("one more byte", append(bytes.Clone(v.good), 0), int64(len(v.good)), "1 bytes follow the last slot")
	v.refused("one more record", append(bytes.Clone(v.good), zero[:]...), int64(len(v.good)), "512 bytes follow")
}

func TestForeignContent(t *testing.T) {
	v := newVictim(t)
	v.refused("text", []byte(strings.Repeat("nameserver 10.96.0.10\n", 400)), 0, `begins with "nameserv", want "vxcslots"`)
	v.refused("zeros", make([]byte, len(v.good)), 0, "not a slot file")
	other, _ := newLayout(prefixes(t, "10.244.9.0/28"))
	v.refused("another subnet's", append(other.header(), v.good[recordSize:]...), offSubnets, "is the file of subnet 10.244.9.0/28")
	larger, _ := newLayout(prefixes(t, "10.244.1.0/24"))
	v.refused("another length's", append(larger.header(), v.good[recordSize:]...), offSubnets, "is the file of subnet 10.244.1.0/24")
	swapped := bytes.Clone(v.good)
	copy(swapped[offset(2):], v.good[offset(3):offset(4)])
	copy(swapped[offset(3):], v.good[offset(2):offset(3)])
	v.refused("swapped records", swapped, offset(2), "record is that of slot 3")
	torn := bytes.Clone(v.good)
	copy(torn[offset(2)+256:], v.good[offset(9):offset(9)+256])
	v.refused("half a record", torn, offset(2), "checksum")
	v.refused("damaged twice", append(bytes.Clone(torn[:offset(9)]), bytes.Repeat([]byte{1}, 7*recordSize)...), offset(2), "checksum")
}

func TestNotAFile(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(path string) error
		reason string
	}{
		{"directory", func(path string) error { return os.Mkdir(path, 0o755) }, "is a directory"},
		{"symbolic link", func(path string) error { return os.Symlink("/etc/hostname", path) }, "is a symbolic link"},
		{"dangling link", func(path string) error { return os.Symlink("nowhere", path) }, "is a symbolic link"},
		{"pipe", func(path string) error { return unix.Mkfifo(path, 0o600) }, "want a regular file"},
	} {
		v := newVictim(t)
		if err := errors.Join(os.Remove(v.path), c.make(v.path)); err != nil {
			t.Fatal(err)
		}
		v.operationsFail(c.name, 0, c.reason)
	}
}

// A damaged file costs itself; Acquire warns of it, for it may share addresses.
// Everything else goes on.
func TestDamageOfAnotherFile(t *testing.T) {
	v := newVictim(t)
	c := &fakeClock{3 * time.Hour}
	good := newPool(t, v.dir, "10.244.2.0/24", c)
	acquire(t, good, 2)
	acquire(t, good, 7)
	before := bytes.Clone(v.good)
	before[offset(2)+20]++
	write(t, v.path, before)

	d := folder{v.dir, c.now}
	all, err := d.list(t.Context())
	if len(all) != 2 {
		t.Errorf("listed %v, want both slots of the good file", all)
	}
	found, err2 := d.releaseAll(t.Context(), key(2))
	freed, err3 := d.retain(t.Context(), func(Slot) bool { return false }, prefixes(t, "10.244.3.0/24"))
	if !found || len(freed) != 1 {
		t.Errorf("released %v, %v, want both slots of the good file freed", found, freed)
	}
	var err4 error
	good.Warn = func(err error) { err4 = err }
	if _, err := good.Acquire(t.Context(), Request{Key: key(8)}); err != nil {
		t.Errorf("acquire from the good file: %v", err)
	}
	if err2 != nil {
		t.Errorf("release what stands in the good file: %v", err2)
	}
	if _, err := good.Import(t.Context(), []Request{{Key: key(9), Addrs: []netip.Addr{good.layout.addrs(9)[0]}}}); err == nil {
		t.Error("imported although a file cannot be read")
	}
	found, err2 = d.releaseAll(t.Context(), key(99))
	if found {
		t.Error("found what nobody holds")
	}
	for _, err := range []error{err, err2, err3, err4} {
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.Path != v.path || corrupt.Offset != offset(2) || !strings.Contains(err.Error(), "drain the node and delete the file") {
			t.Errorf("error %v, want that of %s", err, v.path)
		}
	}
	if u, err := good.Usage(t.Context()); err != nil || u.Resting != 2 {
		t.Errorf("usage %+v, %v, want two slots that rest", u, err)
	}
	if !bytes.Equal(read(t, v.path), before) {
		t.Error("the damaged file was written to")
	}
}

// asNobody calls fn on a thread without root's power over files.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		_, _ = unix.SetfsgidRetGid(65534)
		_, err := unix.SetfsuidRetUid(65534)
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyFolder(t *testing.T) {
	netlab.NeedRoot(t)
	v := newVictim(t)
	if err := os.Chmod(filepath.Dir(v.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(v.dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	p, q := newPool(t, v.dir, victimSubnets, &fakeClock{time.Hour}), newPool(t, empty, victimSubnets, &fakeClock{time.Hour})
	asNobody(t, func() {
		for name, do := range operations(v.dir, p, v.held) {
			if err := do(t.Context()); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), v.path) {
				t.Errorf("%s: %v, want %v that names the file", name, err, os.ErrPermission)
			}
		}
		_, err := q.Acquire(t.Context(), Request{Key: key(1)})
		if want := "create slot file " + slotPath(t, empty, victimSubnets); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), want) {
			t.Errorf("Acquire in an empty folder: %v, want %q", err, want)
		}
	})
	if !bytes.Equal(read(t, v.path), v.good) || fileNames(t, empty) != "" {
		t.Error("something was written")
	}
}

// What a killed creator left is replaced; whatever it is, it is not written to.
func TestLeftoverOfCreation(t *testing.T) {
	dir := t.TempDir()
	path := slotPath(t, dir, "10.244.1.0/24")
	precious := filepath.Join(dir, "precious")
	write(t, precious, []byte("do not touch"))
	if err := os.Link(precious, path+".new"); err != nil {
		t.Fatal(err)
	}
	acquire(t, newPool(t, dir, "10.244.1.0/24", &fakeClock{time.Hour}), 1)
	if got := string(read(t, precious)); got != "do not touch" {
		t.Errorf("file became %q", got)
	}
	if got, want := fileNames(t, dir), "precious slots-10.244.1.0-24"; got != want {
		t.Errorf("folder has %s, want %s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 < st.Size {
		t.Errorf("%d of %d bytes are allocated, %v, want all", st.Blocks*512, st.Size, err)
	}
}
