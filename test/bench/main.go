// Command bench measures the overlay on this machine, beside the reference
// plugins bridge and host-local in the same run, and prints a table with the
// targets. A target that is missed is said, not hidden, and is no failure: the
// figures of a shared machine are noise around a ratio.
//
//	bench [-bin folder] [-plugins folder] [-o table|json]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// limit bounds the whole run.
const limit = 15 * time.Minute

// A Figure is one line of the table.
type Figure struct {
	Name      string  `json:"name"`
	Unit      string  `json:"unit"`
	Ours      float64 `json:"ours"`
	Reference float64 `json:"reference,omitempty"` // bridge + host-local, same run; 0: there is none
	Target    string  `json:"target"`
	Met       bool    `json:"met"`
}

// A bench knows where binaries are and collects figures.
type bench struct {
	bin, plugins string
	figures      []Figure
}

func main() {
	if exit, asked := cluster.Serve(); asked {
		os.Exit(exit)
	}
	var b bench
	flag.StringVar(&b.bin, "bin", "bin", "folder of overlayd, overlayctl and vxlan-cni")
	flag.StringVar(&b.plugins, "plugins", "bin/plugins", "folder of bridge and host-local")
	format := flag.String("o", "table", "table or json")
	flag.Parse()
	if flag.NArg() > 0 || *format != "table" && *format != "json" {
		fmt.Fprintln(os.Stderr, "bench: takes -bin, -plugins and -o table|json; see -help")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := b.run(ctx)
	if perr := b.print(os.Stdout, *format); perr != nil {
		err = errors.Join(err, perr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) error {
	var errs []error
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"pods: ADD and DEL, one after the other and 30 at once", b.pods},
		{"addresses: acquire and release with 250 held", b.addresses},
		{"leases: 1,000 from the start of the process to all routes", b.leases},
		{"misses: first packets to peers in on-miss mode", b.misses},
	} {
		fmt.Fprintln(os.Stderr, "measuring", part.name)
		if err := part.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	return errors.Join(errs...)
}

// add notes a figure.
func (b *bench) add(f Figure) { b.figures = append(b.figures, f) }

func (b *bench) print(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(b.figures)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "FIGURE\tOURS\tREFERENCE\tUNIT\tRATIO\tTARGET\t")
	for _, f := range b.figures {
		reference, ratio, met := "-", "-", "met"
		if f.Reference != 0 {
			reference, ratio = fmt.Sprintf("%.4g", f.Reference), fmt.Sprintf("%.2f", f.Ours/f.Reference)
		}
		if !f.Met {
			met = "MISSED"
		}
		_, _ = fmt.Fprintf(t, "%s\t%.4g\t%s\t%s\t%s\t%s\t%s\n", f.Name, f.Ours, reference, f.Unit, ratio, f.Target, met)
	}
	return t.Flush()
}

// quantile returns the q-quantile of times in milliseconds.
func quantile(times []time.Duration, q float64) float64 {
	if len(times) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(times))
	return float64(s[min(len(s)-1, int(q*float64(len(s))))].Microseconds()) / 1000
}
