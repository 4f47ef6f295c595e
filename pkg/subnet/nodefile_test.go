package subnet

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func goodNodeFile() NodeFile {
	return NodeFile{
		Schema: 1, Node: "node-1", Networks: prefixes("10.244.0.0/16", "fd00:244::/48"),
		Subnets: prefixes("10.244.7.0/24", "fd00:244:0:7::/64"), MTU: 1450, Bridge: "cni0",
	}
}

const goodNodeText = `{"schema":1,"node":"node-1","networks":["10.244.0.0/16","fd00:244::/48"],"subnets":["10.244.7.0/24","fd00:244:0:7::/64"],"mtu":1450,"bridge":"cni0"}` + "\n"

func TestNodeFile(t *testing.T) {
	old := syscall.Umask(0o077) // overlayd's may be anything
	defer syscall.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, NodeFileName)
	if f, err := ReadNodeFile(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no file: %+v, %v; want %v", f, err, fs.ErrNotExist)
	}
	want := goodNodeFile()
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadNodeFile(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != goodNodeText {
		t.Errorf("the file: %s, %v\nwant      %s", data, err, goodNodeText)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if first.Mode() != 0o644 {
		t.Errorf("mode %v, want %v", first.Mode(), fs.FileMode(0o644))
	}

	// The same again does not touch the file; another one replaces it whole.
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(path); err != nil || !os.SameFile(first, second) || second.ModTime() != first.ModTime() {
		t.Errorf("written again though nothing changed: %v", err)
	}
	want.MTU = 1400
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	if third, err := os.Stat(path); err != nil || os.SameFile(first, third) {
		t.Errorf("a change was written into the old file: %v", err)
	}
	if got, err := ReadNodeFile(dir); err != nil || got.MTU != 1400 {
		t.Errorf("after the change: %+v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

// TestNodeFileAfterKill: a writer that was killed half way leaves its temporary
// file, which neither hinders the next nor is ever read.
func TestNodeFileAfterKill(t *testing.T) {
	dir := t.TempDir()
	temp := filepath.Join(dir, ".node.json.tmp")
	if err := os.WriteFile(temp, []byte(`{"schema":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadNodeFile(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the next write: %v, want %v", err, fs.ErrNotExist)
	}
	if err := goodNodeFile().Write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadNodeFile(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file: %v, want %v", err, fs.ErrNotExist)
	}
}

// TestNodeFileWriteFails leaves the old file and no other.
func TestNodeFileWriteFails(t *testing.T) {
	if err := goodNodeFile().Write(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder that is not there: %v, want %v", err, fs.ErrNotExist)
	}
	dir := t.TempDir()
	bad := goodNodeFile()
	bad.MTU = 7
	err := bad.Write(dir)
	if err == nil {
		t.Fatal("a bad file: no error")
	}
	wantWords(t, "write", err, "write "+dir+"/node.json: mtu 7: want 1280")
	// A folder stands where the file belongs: the rename fails.
	if err := os.MkdirAll(filepath.Join(dir, NodeFileName, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := goodNodeFile().Write(dir); err == nil {
		t.Error("over a folder: no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

// TestNodeFileIsNeverTorn reads while another writes.
func TestNodeFileIsNeverTorn(t *testing.T) {
	dir := t.TempDir()
	if err := goodNodeFile().Write(dir); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 300 {
			f := goodNodeFile()
			f.MTU += i % 2
			f.Node += strings.Repeat("x", i%2*200) // a different length
			if err := f.Write(dir); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		for range 1000 {
			f, err := ReadNodeFile(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if (f.MTU == 1450) != (f.Node == "node-1") {
				t.Errorf("half of one, half of another: %+v", f)
				return
			}
		}
	})
	wg.Wait()
}

func TestReadNodeFileTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, NodeFileName)
	whole := strings.TrimSuffix(goodNodeText, "\n")
	for n := range len(whole) {
		if err := os.WriteFile(path, []byte(whole[:n]), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := ReadNodeFile(dir)
		if err == nil {
			t.Fatalf("cut to %d bytes: %+v, want an error", n, f)
		}
		wantWords(t, whole[:n], err, path+": byte")
		if got, err := os.ReadFile(path); err != nil || string(got) != whole[:n] {
			t.Fatalf("cut to %d bytes: the file is now %q, %v", n, got, err)
		}
	}
}

func TestParseNodeFileErrors(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(goodNodeText, old) {
			t.Fatalf("no %s in %s", old, goodNodeText)
		}
		return strings.Replace(goodNodeText, old, new, 1)
	}
	const nets, subs = `["10.244.0.0/16","fd00:244::/48"]`, `["10.244.7.0/24","fd00:244:0:7::/64"]`
	for _, c := range []struct{ text, words string }{
		{"", `byte 0: empty`},
		{strings.Repeat("\x00", 100), `byte 1: invalid character`}, // as a file system leaves after a crash
		{"null", `byte 0: want a JSON object`},
		{goodNodeText + "{}", `after the end`},
		{`{"cniVersion":"1.0.0","name":"cni0"}`, `byte 36: schema 0: want 1; is this a node file`},
		{with(`"schema":1`, `"schema":2`), `byte 10: schema 2: want 1`},
		{with(`"schema":1`, `"schema":"1"`), `byte 10: schema "1": want a whole number`},
		{with(`"schema":1`, `"schema":1,"Schema":1`), `schema: given twice`},
		{with(`"node-1"`, `""`), `byte 19: node: missing`},
		{with(`"node":"node-1",`, ``), `node: missing`},
		{with(`"node-1"`, `"a\tb"`), `byte 19: node "a\tb": want`},
		{with(nets, `[]`), `byte 39: networks: none`},
		{with(nets, `null`), `networks: none`},
		{with(nets, `"10.244.0.0/16"`), `networks "10.244.0.0/16": want a list of strings`},
		{with(nets, `[7]`), `networks [7]: want a list of strings`},
		{with(nets, `["10.244.0.0"]`), `networks: "10.244.0.0": want a network`},
		{with(nets, `["10.244.0.1/16"]`), `networks: 10.244.0.1/16: has host bits set, want 10.244.0.0/16`},
		{with(nets, `["fd00:244::/48","10.244.0.0/16"]`), `networks: at most one IPv4 then at most one IPv6`},
		{with(nets, `["10.244.0.0/16","10.245.0.0/16"]`), `networks: at most one IPv4`},
		{with(nets, `["::ffff:10.244.0.0/112"]`), `networks: want an IPv4 or IPv6 network`},
		{with(subs, `[]`), `subnets: none`},
		{with(subs, `["10.245.7.0/24"]`), `subnets: 10.245.7.0/24: want one inside`},
		{with(subs, `["0.0.0.0/0"]`), `subnets: 0.0.0.0/0: want one inside`},
		{with(subs, `["fd00:245::/64"]`), `subnets: fd00:245::/64: want one inside`},
		{with(subs, `["10.244.7.0/31"]`), `subnets: 10.244.7.0/31: too small want /30`},
		{with(subs, `["fd00:244::/127"]`), `subnets: fd00:244::/127: too small want /126`},
		{with(subs, `["10.244.7.0/24","10.244.8.0/24"]`), `subnets: at most one IPv4`},
		{with(`1450`, `0`), `mtu 0: want 1280 to 65535`},
		{with(`1450`, `1279`), `mtu 1279: want 1280`},
		{with(`1450`, `65536`), `mtu 65536: want 1280 to 65535`},
		{with(`1450`, `"1450"`), `mtu "1450": want a whole number`},
		{with(`1450`, `1e99`), `mtu 1e99: want a whole number`},
		{with(`"cni0"`, `""`), `bridge "": want the name of a link`},
		{with(`"cni0"`, `"."`), `bridge ".": want`},
		{with(`"cni0"`, `".."`), `bridge "..": want`},
		{with(`"cni0"`, `"a/b"`), `bridge "a/b": want`},
		{with(`"cni0"`, `"a:b"`), `bridge "a:b": want`},
		{with(`"cni0"`, `"a b"`), `bridge want`},
		{with(`"cni0"`, `"cni0","bridgeMAC":"x"`), `bridgeMAC: MAC "x": want six`},
		{with(`"cni0"`, `"cni0","bridgeMAC":"01:00:5e:00:00:01"`), `bridgeMAC: is a group address`},
		{with(`"cni0"`, `"cni0","bridgeMAC":7`), `bridgeMAC 7: want a string`},
		{with(`"cni0"`, `"abcdefghijklmnop"`), `bridge "abcdefghijklmnop": want 1 to 15 bytes`},
	} {
		f, err := ParseNodeFile([]byte(c.text))
		if err == nil {
			t.Errorf("%s: got %+v, want an error", c.text, f)
			continue
		}
		wantWords(t, c.text, err, "byte")
		wantWords(t, c.text, err, c.words)
		if !reflect.DeepEqual(f, NodeFile{}) {
			t.Errorf("%s: a node file beside the error: %+v", c.text, f)
		}
	}
	for name, text := range map[string]string{
		"keys of a newer overlayd": with(`"mtu"`, `"gateway":{"mac":[1]},"mtu"`),
		"small MTU without IPv6":   strings.NewReplacer(nets, `["10.244.0.0/16"]`, subs, `["10.244.7.0/24"]`, `1450`, `576`).Replace(goodNodeText),
		"IPv6 alone":               strings.NewReplacer(nets, `["fd00:244::/48"]`, subs, `["fd00:244::/126"]`).Replace(goodNodeText),
		"longest bridge name":      with(`"cni0"`, `"abcdefghijklmno"`),
	} {
		if _, err := ParseNodeFile([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseNodeFile(f *testing.F) {
	f.Add([]byte(goodNodeText))
	f.Add([]byte(`{"schema":1}`))
	f.Add([]byte(`{"schema":1,"node":"n","networks":["fd00::/48"],"subnets":["fd00::/64"],"mtu":1280,"bridge":"b"}`))
	f.Add([]byte(`{"SCHEMA":1,"subnets":[null],"networks":[""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := ParseNodeFile(data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "byte ") || len(err.Error()) > 2000 {
				t.Fatalf("%q: error without offset, or no log line: %q", data, err)
			}
			return
		}
		out, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseNodeFile(out); err != nil || !reflect.DeepEqual(again, file) {
			t.Fatalf("%q\nwritten as %s\nread as %+v, %v", data, out, again, err)
		}
	})
}

// TestNodeFileBridgeMAC: it is there only where a bridge was taken over.
func TestNodeFileBridgeMAC(t *testing.T) {
	f, err := ParseNodeFile([]byte(goodNodeText))
	if err != nil {
		t.Fatal(err)
	}
	for text, m := range map[string]MAC{goodNodeText: {}, strings.Replace(goodNodeText, `"cni0"`, `"cni0","bridgeMAC":"9a:0b:11:22:33:44"`, 1): mac("9a:0b:11:22:33:44")} {
		dir := t.TempDir()
		f.BridgeMAC = m
		if err := f.Write(dir); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, NodeFileName)); err != nil || string(data) != text {
			t.Errorf("written as %s, %v\nwant       %s", data, err, text)
		}
		if got, err := ReadNodeFile(dir); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("read as %+v, %v\nwant    %+v", got, err, f)
		}
	}
	f.BridgeMAC = MAC{1}
	if err := f.Write(t.TempDir()); err == nil || !strings.Contains(err.Error(), "group address") {
		t.Errorf("a group address is written: %v", err)
	}
}

// TestNodeFileThatIsNone: nobody waits for a pipe's writer, or reads without end; Write replaces both.
func TestNodeFileThatIsNone(t *testing.T) {
	for name, test := range map[string]struct {
		make func(path string) error
		want string
	}{
		"pipe":  {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "want a regular file"},
		"large": {func(path string) error { return os.WriteFile(path, make([]byte, maxNodeFile+1), 0o600) }, "more than 1048576 bytes"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, NodeFileName)
		if err := test.make(path); err != nil {
			t.Fatal(err)
		}
		within(t, name+": read", func() {
			if _, err := ReadNodeFile(dir); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: error %v, want %q and the path", name, err, test.want)
			}
		})
		within(t, name+": write", func() {
			if err := goodNodeFile().Write(dir); err != nil {
				t.Errorf("%s: write: %v", name, err)
			}
		})
		if f, err := ReadNodeFile(dir); err != nil || !reflect.DeepEqual(f, goodNodeFile()) {
			t.Errorf("%s: after writing: %+v, %v", name, f, err)
		}
	}
}

// within fails the test if fn does not end soon.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: hangs", what)
	}
}
