// Package program builds programs of others from the versions that a module of
// ours pins: kube-apiserver and its like.
//
// Go's build cache keeps them, by the hash of what they are made from: minutes
// the first time on a machine, then a second.
package program

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Path builds the command pkg in the module in folder dir, with the flags for
// the linker in its file ldflags, and returns where Go's cache has it.
func Path(ctx context.Context, dir, pkg string) (string, error) {
	flags, err := os.ReadFile(filepath.Join(dir, "ldflags"))
	if err != nil {
		return "", err
	}
	// `go run` keeps what it links, which `go build` does not; `go tool` does too,
	// but takes no flags. Where it had to link it runs, and names, a file of the
	// moment.
	for range 2 {
		out, err := Go(ctx, dir, "run", "-exec", "echo", "-buildvcs=false", "-ldflags="+strings.TrimSpace(string(flags)), pkg)
		if err != nil {
			return "", err
		}
		path := strings.TrimSpace(out)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("build %s: go run does not keep it", pkg)
}

// Go runs the go command in folder dir, without cgo, and returns what it wrote
// to standard output.
func Go(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, &text)
	}
	return out.String(), nil
}

// Module is the folder of the module of the tests, in which their processes
// start.
var Module = sync.OnceValues(func() (string, error) {
	out, err := Go(context.Background(), ".", "env", "GOMOD")
	return filepath.Dir(strings.TrimSpace(out)), err
})
