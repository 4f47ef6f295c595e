// overlayctl shows what the overlayd of this node knows and does. It is a thin
// client of the daemon's Unix socket: it reads, prints and changes nothing. The
// commands that do are migrate, install and uninstall, which are carried out by
// internal/migrate and internal/install while no daemon runs, and lease release, which the
// daemon carries out.
//
// Called kubectl-overlay it is a plugin of kubectl, which runs overlayctl on the
// nodes: kubectl.go.
//
// How it reads: command.go is the command line, table.go how tables look,
// status.go and lists.go turn each answer of the daemon into text.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Exit statuses, as `overlayctl --help` documents them.
const (
	exitOK       = 0
	exitError    = 1
	exitUsage    = 2
	exitNotReady = 3
)

func main() {
	ctx := context.Background()
	if filepath.Base(os.Args[0]) == pluginName {
		os.Exit(runPlugin(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	p := newProgram(lookFor(stdout))
	text, err := p.execute(ctx, args)
	if _, writeErr := io.WriteString(stdout, text); writeErr != nil {
		err = fmt.Errorf("write the answer: %w", writeErr)
	}
	if err == nil && p.installation.stay {
		stay, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		<-stay.Done()
		stop()
	}
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNotReady): // the text has said why
		return exitNotReady
	case errors.As(err, &usage):
		_, _ = fmt.Fprintln(stderr, "overlayctl:", err) // nowhere left to complain
		return exitUsage
	}
	_, _ = fmt.Fprintln(stderr, "overlayctl:", err)
	return exitError
}
