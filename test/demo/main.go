// Command demo shows the overlay at work on one machine: three nodes, two pods
// on each, packets across, tables flushed and healed, everything removed.
//
//	demo [-bin folder]     run; with KEEP=1 in the environment the lab stays up
//	demo -down             remove the labs that were kept
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// limit bounds the whole demo, so that a fault ends in a message.
const limit = 2 * time.Minute

func main() {
	if exit, asked := cluster.Serve(); asked {
		os.Exit(exit)
	}
	bin := flag.String("bin", "bin", "folder of overlayd, overlayctl and vxlan-cni")
	remove := flag.Bool("down", false, "remove the labs that KEEP=1 left up")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: %q: takes no arguments, only flags; see -help\n", flag.Arg(0))
		os.Exit(2)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: needs root, to make network namespaces")
		os.Exit(1)
	}
	if *remove {
		os.Exit(down())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d := &demo{out: os.Stdout, began: time.Now(), bin: *bin, keep: os.Getenv("KEEP") == "1"}
	os.Exit(d.main(ctx))
}

// down removes every lab whose owner has ended.
func down() int {
	labs, err := netlab.Abandoned(true)
	for _, l := range labs {
		cerr := l.Close()
		if cerr == nil {
			fmt.Println("removed", l.ID)
		}
		err = errors.Join(err, cerr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo -down:", err)
		return 1
	}
	if len(labs) == 0 {
		fmt.Println("no lab is up")
	}
	return 0
}
