package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at is when the goldens are looked at.
var at = time.Date(2026, 11, 22, 16, 30, 0, 0, time.FixedZone("EET", 2*60*60))

// tones writes colours so that they can be read in a golden.
var tones = strings.NewReplacer(string(good), "<good>", string(warn), "<warn>", string(bad), "<bad>", endTone, "</>")

// diff compares text line by line, so that a golden that broke is easy to see.
func diff(t *testing.T, got, want string) {
	t.Helper()
	got, want = tones.Replace(got), strings.TrimPrefix(want, "\n")
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		line := func(of []string) string {
			if i < len(of) {
				return of[i]
			}
			return "(no line)"
		}
		if line(g) != line(w) {
			t.Errorf("line %d:\n got %q\nwant %q", i+1, line(g), line(w))
		}
	}
}

func TestTableAligns(t *testing.T) {
	table := newTable("A", "LONG HEAD", "C")
	table.add(plain, "longer cell", "", "x")
	table.add(bad, "ü", "y", "z")
	diff(t, table.text(look{}), `
A            LONG HEAD  C
longer cell  -          x
ü            y          z
`)
	// Colours change no widths, and end with their line.
	diff(t, table.text(look{colour: true}), `
A            LONG HEAD  C
longer cell  -          x
<bad>ü            y          z</>
`)
}

// TestHostileCells: what a stored lease says cannot break the table nor reach
// the terminal as a control sequence.
func TestHostileCells(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "-",
		"node-a":                 "node-a",
		"Knoten ä, 節点":           "Knoten ä, 節点",
		"a\tb\nc":                `a\tb\nc`,
		"\x1b]0;owned\a\x1b[2J":  `\x1b]0;owned\a\x1b[2J`,
		"\u009b2J":               `\u009b2J`,
		"abc\u202egnp.exe":       `abc\u202egnp.exe`, // right-to-left override
		"\xff\xfe":               `\xff\xfe`,
		"no-break\u00a0space \\": `no-break\u00a0space \\`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour:                      "0s", // a clock that is behind
		0:                               "0s",
		900 * time.Millisecond:          "0s",
		59 * time.Second:                "59s",
		time.Minute:                     "1m0s",
		59*time.Minute + 59*time.Second: "59m59s",
		time.Hour:                       "1h0m",
		47*time.Hour + 59*time.Minute:   "47h59m",
		48 * time.Hour:                  "2d0h",
		100*24*time.Hour + 5*time.Hour:  "100d5h",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestTimes(t *testing.T) {
	l := look{now: at}
	if got := l.ago(time.Time{}); got != "never" {
		t.Errorf("ago(0) = %q, want never", got)
	}
	if got := l.ago(at.Add(-90 * time.Second)); got != "1m30s ago" {
		t.Errorf("ago() = %q, want 1m30s ago", got)
	}
	// Shown in the reader's zone, whatever zone the daemon wrote.
	if got := l.clock(time.Date(2026, 11, 22, 14, 29, 59, 7e6, time.UTC)); got != "2026-11-22 16:29:59.007" {
		t.Errorf("clock() = %q, want 2026-11-22 16:29:59.007", got)
	}
}

// TestColourOnlyOnTerminals opens a pseudo-terminal to write to.
func TestColourOnlyOnTerminals(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()

	for _, c := range []struct {
		name          string
		out           *os.File
		noColour, tty string
		want          bool
	}{
		{"terminal", terminal, "", "xterm", true},
		{"NO_COLOR", terminal, "1", "xterm", false},
		{"dumb terminal", terminal, "", "dumb", false},
		{"file", file, "", "xterm", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", c.noColour)
			t.Setenv("TERM", c.tty)
			if got := lookFor(c.out).colour; got != c.want {
				t.Errorf("colour = %t, want %t", got, c.want)
			}
		})
	}
	if lookFor(&strings.Builder{}).colour {
		t.Error("colour for a buffer")
	}
}
