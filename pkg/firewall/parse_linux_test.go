package firewall

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

// readLegacy opens and reads a table as bytes, for seeds.
func readLegacy(t testing.TB, ns *netlab.Namespace, f family) (info, entries []byte) {
	t.Helper()
	must(t, ns.Do(func() error {
		l, err := openLegacy(f, slog.Default())
		if err != nil {
			return err
		}
		defer func() { _ = l.close() }()
		info = make([]byte, xtInfoSize)
		copy(info, "filter")
		if err := l.option(optInfo, info); err != nil {
			return err
		}
		i, err := parseInfo(info)
		if err != nil {
			return err
		}
		entries = make([]byte, xtEntriesOffset+int(i.size))
		copy(entries, "filter")
		binary.NativeEndian.PutUint32(entries[xtNameSize:], i.size)
		return l.option(optEntries, entries)
	}))
	return info, entries[xtEntriesOffset:]
}

// What the kernel holds is read as iptables prints it.
func TestLegacyIsReadAsWritten(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			ns := netlab.TestNamespace(t)
			ipt, net := "iptables-legacy", "10.244.0.0/16"
			if f.six {
				ipt, net = "ip6tables-legacy", "fd00::/48"
			}
			run(t, ns, strings.NewReplacer("IPT", ipt, "NET", net).Replace(`
IPT -P FORWARD DROP; IPT -N A; IPT -N B
IPT -A FORWARD -m comment --comment hello -j A; IPT -A FORWARD -i eth0 -j B; IPT -A FORWARD -m conntrack --ctstate INVALID -j DROP
IPT -A FORWARD -s NET -j ACCEPT; IPT -A FORWARD; IPT -A FORWARD -p udp -j RETURN; IPT -A FORWARD -j REJECT
IPT -A A -g B; IPT -A B -j LOG`))
			info, entries := readLegacy(t, ns, f)
			i, err := parseInfo(info)
			must(t, err)
			got, err := parseLegacy(i, entries, f.layout())
			must(t, err)
			want := `FORWARD true: A false, B true, DROP true, ACCEPT true,  false, RETURN true, REJECT false
INPUT false:
OUTPUT false:
A false: >B false
B false: LOG false
`
			var text strings.Builder
			for _, name := range []string{"FORWARD", "INPUT", "OUTPUT", "A", "B"} {
				c := got[name]
				if c == nil {
					t.Fatalf("chain %s is missing in %v", name, got)
				}
				var rules []string
				for _, r := range c.rules {
					target := r.target
					if r.leaves {
						target = ">" + target
					}
					rules = append(rules, fmt.Sprint(" ", target, " ", r.conditional))
				}
				fmt.Fprintf(&text, "%s %t:%s\n", name, c.drop, strings.Join(rules, ","))
			}
			if len(got) != 5 || text.String() != want {
				t.Errorf("%d chains:\n%swant\n%s", len(got), text.String(), want)
			}
			// What is counted changes nothing; a rule that is another one does.
			sum := got.content(forwardChain)
			run(t, ns, strings.ReplaceAll("IPT -I A -j ACCEPT; IPT -D A 1; IPT -Z", "IPT", ipt))
			info, entries = readLegacy(t, ns, f)
			i, err = parseInfo(info)
			must(t, err)
			again, err := parseLegacy(i, entries, f.layout())
			must(t, err)
			if again.content(forwardChain) != sum {
				t.Errorf("the same rules are other ones:\n%s\n%s", again.content(forwardChain), sum)
			}
		})
	}
}

// To look at what is not there does not make it.
func TestLookingMakesNoTable(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		ns := netlab.TestNamespace(t)
		ensure(t, ns, open(t, ns, v.mode), Rules{})
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			out, err := ns.Output("cat", "/proc/net/"+file)
			must(t, err)
			if out != "" {
				t.Errorf("%s has %q", file, out)
			}
		}
		if got := ruleset(t, ns); got != "" {
			t.Errorf("no rules are wished for, and there are\n%s", got)
		}
	})
}

func FuzzParseLegacy(f *testing.F) {
	f.Add(make([]byte, xtInfoSize), make([]byte, layout4.size+xtStandardSize), false)
	if os.Geteuid() == 0 {
		ns := netlab.TestNamespace(f)
		run(f, ns, "for i in iptables-legacy ip6tables-legacy; do $i -N A; $i -A FORWARD -m comment --comment x -j A; $i -A FORWARD -j REJECT; done")
		for _, fam := range families {
			info, entries := readLegacy(f, ns, fam)
			f.Add(info, entries, fam.six)
		}
	}
	f.Fuzz(func(t *testing.T, info, entries []byte, six bool) {
		i, err := parseInfo(info)
		if err != nil {
			return
		}
		table, err := parseLegacy(i, entries, family{six: six}.layout())
		if err != nil {
			return
		}
		table.blocker(forwardChain)
		for name := range table {
			table.content(name)
		}
		_ = restore(Rules{}.xchains(families[0]), map[string]xtable{"filter": table}, true)
	})
}

func FuzzNotification(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 14, 0, 1, 0, 'v', 'x', 'l', 'a', 'n', '-', 'c', 'n', 'i', 0, 0, 0}, "xtables.lock")
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'a', 'b', 0, 0}, "ab")
	f.Fuzz(func(_ *testing.T, b []byte, name string) {
		concerns(b)
		mentions(b, name)
		_, _ = parseGeneration(b)
	})
}

// The lock file may come later, be another one, or have another name in a folder
// that is not ours, as behind a container's mount: ours then tells nothing.
func TestLockFile(t *testing.T) {
	usePrograms(t, false)
	for _, c := range []struct {
		name string
		file func(t *testing.T, seen, real string) // sees to it that seen is what real is
	}{
		{"made later", func(*testing.T, string, string) {}},
		{"there before", func(t *testing.T, seen, real string) { must(t, os.WriteFile(real, nil, 0o600)) }},
		{"of the host", func(t *testing.T, seen, real string) {
			must(t, os.WriteFile(real, nil, 0o600))
			must(t, os.Link(real, seen))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := filepath.Join(t.TempDir(), "xtables.lock")
			real := seen
			if c.name == "of the host" {
				real = filepath.Join(t.TempDir(), "xtables.lock")
			}
			c.file(t, seen, real)
			t.Setenv("XTABLES_LOCKFILE", seen)
			ns := netlab.TestNamespace(t)
			f := open(t, ns, Auto)
			start(t, f)
			ensure(t, ns, f, testRules())
			for i := range 3 {
				run(t, ns, "XTABLES_LOCKFILE="+real+" iptables-legacy -P FORWARD DROP")
				awaitNews(t, f)
				ensure(t, ns, f, testRules())
				run(t, ns, "XTABLES_LOCKFILE="+real+" iptables-legacy -P FORWARD ACCEPT")
				awaitNews(t, f)
				ensure(t, ns, f, testRules())
				if i == 1 && c.name != "of the host" {
					must(t, os.Remove(real))
				}
			}
		})
	}
}
