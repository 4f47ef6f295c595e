package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// A look is how text is shaped: for a reader at which time, in which zone (that
// of the time), and with colours or without.
type look struct {
	now    time.Time
	colour bool
}

// lookFor returns the look for what is written to w: colours are for people
// only, so for terminals, and not where NO_COLOR (no-color.org) forbids them.
func lookFor(w io.Writer) look {
	l := look{now: time.Now()}
	if f, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		l.colour = err == nil
	}
	return l
}

// A tone is what a line tells its reader.
type tone string

// Tones, as ECMA-48 (ANSI) colours.
const (
	plain tone = ""
	good  tone = "\x1b[32m"
	warn  tone = "\x1b[33m"
	bad   tone = "\x1b[31m"
)

const endTone = "\x1b[0m"

// toneIf is t where it applies, else plain.
func toneIf(applies bool, t tone) tone {
	if applies {
		return t
	}
	return plain
}

// A table is lines of cells under a head.
type table struct {
	lines [][]string
	tones []tone
}

// newTable returns a table with a head; without one if there are no names.
func newTable(head ...string) *table {
	t := &table{}
	if len(head) > 0 {
		t.add(plain, head...)
	}
	return t
}

// add appends a line. A cell is shown on that line and without control
// characters, whatever it holds: names come from other nodes' leases, and must
// not be able to speak to the reader's terminal.
func (t *table) add(tone tone, cells ...string) {
	shown := make([]string, len(cells))
	for i, c := range cells {
		shown[i] = printable(c)
	}
	t.lines, t.tones = append(t.lines, shown), append(t.tones, tone)
}

// text aligns the cells. Colours are added to whole lines afterwards: tabwriter
// would count them as width.
func (t *table) text(l look) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, cells := range t.lines {
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // a bytes.Buffer takes everything
	}
	_ = w.Flush() // as above
	if !l.colour {
		return b.String()
	}
	var coloured strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n") {
		if t.tones[i] != plain {
			line = string(t.tones[i]) + line + endTone
		}
		coloured.WriteString(line + "\n")
	}
	return coloured.String()
}

// printable is s with everything that is not a visible character or a space
// escaped as in Go, and "-" for nothing.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// list joins values by commas.
func list[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}

// validity is what netip's addresses and prefixes have in common.
type validity interface {
	IsValid() bool
	String() string
}

// known is the text of v, and nothing where v was never set.
func known(v validity) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// ago is how long before now t was.
func (l look) ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return short(l.now.Sub(t)) + " ago"
}

// clock is t to the millisecond, in the reader's zone.
func (l look) clock(t time.Time) string {
	return t.In(l.now.Location()).Format("2006-01-02 15:04:05.000")
}

// short is d to two units, or 0s where clocks disagree.
func short(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 2*day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}
