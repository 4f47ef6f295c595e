package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
	"github.com/vxlan-cni/vxlan-cni/internal/install"
	"github.com/vxlan-cni/vxlan-cni/pkg/firewall"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/vxlan"
)

// A Withdrawer is a Manager that can take a node out of the store for good: its
// lease, and what was announced. What is not there is a success.
type Withdrawer interface {
	Withdraw(ctx context.Context, node string) error
}

// A Forgetter is a Withdrawer that leaves in the store that the node has no network,
// until it is told that the node says so itself.
type Forgetter interface {
	Forget(ctx context.Context, node string) error
}

// withdrawWithin bounds what a store that does not answer may hold up.
const withdrawWithin = 15 * time.Second

// Cleanup takes everything off this node that bears our mark, and the node out of
// the store, and tells each thing that it did. Nothing else is touched. With a folder
// for it the runtime's network configuration goes, too: kubelet calls the node not
// ready some seconds later, and the store need not. It goes on
// after errors, and joins them. It refuses while a daemon runs, which would make
// everything anew.
func Cleanup(ctx context.Context, cfg Config, m subnet.Manager, tell func(string)) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	if _, err := os.Stat(cfg.RunDir); err == nil {
		folder, err := lock(cfg.RunDir)
		if err != nil {
			return err
		}
		defer folder.unlock()
	}
	here, err := present()
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	var errs []error
	// Peers stop sending before there is nobody to receive.
	if w, ok := m.(Withdrawer); ok {
		limited, cancel := context.WithTimeout(ctx, withdrawWithin)
		defer cancel()
		if err := w.Withdraw(limited, cfg.Node); err != nil {
			errs = append(errs, fmt.Errorf("node is not taken out of the store: %w", err))
		} else {
			tell("the store has no lease of " + cfg.Node)
		}
	}
	for _, remove := range []func() ([]string, error){
		func() ([]string, error) { return removeConflist(cfg.CNIConfDir) }, vxlan.RemoveRoutes, func() ([]string, error) { return vxlan.RemoveDevices() }, pod.RemoveAll, firewall.Remove,
		func() ([]string, error) { return removeFiles(cfg.RunDir) },
	} {
		did, err := remove()
		for _, d := range did {
			tell(d)
		}
		errs = append(errs, err)
	}
	if f, ok := m.(Forgetter); ok && cfg.CNIConfDir != "" && errors.Join(errs...) == nil {
		limited, cancel := context.WithTimeout(ctx, withdrawWithin)
		defer cancel()
		errs = append(errs, f.Forget(limited, cfg.Node))
	}
	return errors.Join(errs...)
}

// removeConflist removes the runtime's network configuration from its folder.
func removeConflist(dir string) (did []string, err error) {
	steps, err := install.Node{ConfDir: dir}.Uninstall()
	for _, s := range steps {
		did = append(did, s.Action+" "+s.Path)
	}
	return did, err
}

// removeFiles removes our files from the run folder, and if nothing else is in it the
// lock and the folder too: the lock is how others know whose the folder is.
func removeFiles(dir string) (did []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	left := 0
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Name() == lockName:
			continue
		case !ourFile(e.Name()):
			left++
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, err)
			continue
		}
		did = append(did, "removed "+path)
	}
	if left > 0 || len(errs) > 0 {
		return did, errors.Join(errs...)
	}
	errs = append(errs, os.RemoveAll(filepath.Join(dir, lockName)))
	if os.Remove(dir) == nil { // it may be a mount point
		did = append(did, "removed "+dir)
	}
	return did, errors.Join(errs...)
}

// turnsName is vxlan-cni's lock, by which it takes turns with itself.
const turnsName = "attach.lock"

func ourFile(name string) bool {
	switch name {
	case subnet.NodeFileName, refusedName, api.SocketName, turnsName:
		return true
	}
	return strings.HasPrefix(name, "slots-") || strings.HasPrefix(name, "."+subnet.NodeFileName)
}
