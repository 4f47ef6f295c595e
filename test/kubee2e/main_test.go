package kubee2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
	"github.com/vxlan-cni/vxlan-cni/test/program"
)

const (
	kindEnv   = "E2E"        // lab or cluster; down removes labs that were kept
	labEnv    = "E2E_LAB"    // folder of a lab that is there already
	insideEnv = "E2E_INSIDE" // set where the lab's API server can be reached
	keepEnv   = "KEEP"       // leave the lab up

	archivesEnv = "E2E_ARCHIVES" // write the images of the tests' pods here, and end
)

// labNodes is how many nodes the lab has.
const labNodes = 3

// lab is where the tests run, if it is a lab.
var lab *kubelab.Lab

func TestMain(m *testing.M) {
	if exit, asked := kubelab.Serve(); asked {
		os.Exit(exit)
	}
	exit, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		exit = 1
	}
	os.Exit(exit)
}

func run(m *testing.M) (exit int, err error) {
	switch kind := os.Getenv(kindEnv); {
	case os.Getenv(archivesEnv) != "":
		return 0, kubelab.WriteImages(context.Background(), os.Getenv(archivesEnv))
	case kind == "":
		return m.Run(), nil
	case kind == "cluster":
		if os.Getenv("KUBECONFIG") == "" {
			return 1, errors.New("E2E=cluster: want KUBECONFIG, the cluster's file")
		}
		return m.Run(), nil
	case kind == "down":
		return 0, sweep(true)
	case kind != "lab":
		return 1, fmt.Errorf("E2E=%q: want lab, cluster or down", kind)
	case os.Getenv(insideEnv) != "":
		if lab, err = kubelab.Open(os.Getenv(labEnv)); err != nil {
			return 1, err
		}
		if err := os.Setenv("KUBECONFIG", lab.Kubeconfig()); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}
	if dir := os.Getenv(labEnv); dir != "" {
		l, err := kubelab.Open(dir)
		if err != nil {
			return 1, err
		}
		return inside(l)
	}
	return withLab()
}

// withLab runs the tests in a new lab.
func withLab() (exit int, err error) {
	if err := sweep(false); err != nil {
		return 1, err
	}
	root, err := program.Module()
	if err != nil {
		return 1, err
	}
	archive := filepath.Join(root, "../bin/image/vxlan-cni.tar")
	if _, err := os.Stat(archive); err != nil {
		return 1, fmt.Errorf("%w; `make image` builds it", err)
	}
	before, err := kubelab.Machine()
	if err != nil {
		return 1, err
	}
	defer func() {
		after, e := kubelab.Machine()
		if e == nil && after != before {
			e = fmt.Errorf("the machine was\n%s\nand is\n%s", before, after)
		}
		err = errors.Join(err, e)
	}()
	began := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := kubelab.New(ctx, kubelab.Options{
		Name: "k8s", Nodes: labNodes, Images: []string{archive}, Keep: os.Getenv(keepEnv) != "", Audit: accounts(), Taint: startupTaint,
	})
	if err != nil {
		return 1, err
	}
	fmt.Fprintf(os.Stderr, "e2e: %d nodes with Kubernetes, built and started in %s\n", labNodes, time.Since(began).Round(100*time.Millisecond))
	if os.Getenv(keepEnv) != "" {
		fmt.Fprintf(os.Stderr, "e2e: kept: E2E_LAB=%s\n", l.Dir)
	} else {
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	return inside(l)
}

// sweep removes what an earlier run left that was killed, or was to be kept.
func sweep(kept bool) error {
	labs, err := kubelab.Abandoned(kept)
	for _, l := range labs {
		err = errors.Join(err, l.Close())
	}
	return err
}

// inside runs the tests in a process that is in the network namespace of the
// control plane.
func inside(l *kubelab.Lab) (exit int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	cmd := l.Within(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1", labEnv+"="+l.Dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// go test ends a test that takes too long with SIGQUIT, to the parent alone.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode(), nil
	}
	return 0, err
}
