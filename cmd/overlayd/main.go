// Command overlayd is the node daemon of the vxlan-cni overlay: it leases a pod
// subnet and keeps the VXLAN device, routes, neighbours and FDB entries right.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/vxlan-cni/vxlan-cni/internal/node"
)

// Exit codes.
const (
	failed = 1
	usage  = 2
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(o.help())
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "overlayd: %v (see overlayd --help)\n", err)
		return usage
	case o.version:
		fmt.Println("overlayd", o.node.Version)
		return 0
	}
	log := o.logger(os.Stderr)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// The second signal ends the process at once.
	context.AfterFunc(ctx, stop)

	manager, err := o.store(log)
	if err != nil {
		fmt.Fprintf(os.Stderr, "overlayd: %v (see overlayd --help)\n", err)
		return usage
	}
	if o.cleanup {
		err := node.Cleanup(ctx, o.node, manager, func(did string) { fmt.Println(did) })
		if err = errors.Join(err, manager.Close()); err != nil {
			fmt.Fprintf(os.Stderr, "overlayd: %v\n", err)
			return failed
		}
		fmt.Println("nothing of the overlay is left on this node")
		return 0
	}
	log.Info("overlayd starts", "version", o.node.Version, "node", o.node.Node)
	err = errors.Join(node.Run(ctx, o.node, manager, log), manager.Close())
	if err != nil {
		log.Error("overlayd ends", "error", err)
		return failed
	}
	log.Info("overlayd ends, the data plane stays")
	return 0
}
