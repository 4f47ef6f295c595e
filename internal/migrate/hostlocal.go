package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A grant is a file of host-local: an address and who has it.
type grant struct {
	addr      netip.Addr
	container string
	ifname    string
	age       time.Duration
	path      string
}

// readGrants reads host-local's folder of one network. A file is named after
// its address and holds "<container id>\r\n<interface>" (older ones the container
// id only); "lock" and "last_reserved_ip.<n>" are none. Source: containernetworking/
// plugins 1.9, plugins/ipam/host-local/backend/disk. A folder that is not there
// has none. A file without content is what a crash leaves: it is told as one
// without a container.
func readGrants(dir string, now time.Time) (list []grant, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read host-local's addresses: %w", err)
	}
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a pod has just gone
		}
		if err != nil {
			return nil, fmt.Errorf("read host-local's addresses: %w", err)
		}
		g := grant{addr: addr.Unmap(), path: path}
		if info, err := e.Info(); err == nil {
			g.age = now.Sub(info.ModTime())
		}
		container, ifname, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
		g.container, g.ifname = strings.TrimSpace(container), strings.TrimSpace(ifname)
		if g.container != "" && g.ifname == "" {
			g.ifname = "eth0" // what kubelet's pods have
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b grant) int { return a.addr.Compare(b.addr) })
	return list, nil
}

// podName finds the pod of a container in the cache that libcni keeps for the
// runtime: <folder>/<network>-<container>-<interface>. It is for people: empty if
// it is not to be had.
func podName(results, network string, g grant) string {
	data, err := os.ReadFile(filepath.Join(results, network+"-"+g.container+"-"+g.ifname))
	if err != nil {
		return ""
	}
	var cached struct {
		Args [][2]string `json:"cniArgs"`
	}
	if json.Unmarshal(data, &cached) != nil {
		return ""
	}
	args := map[string]string{}
	for _, a := range cached.Args {
		args[a[0]] = a[1]
	}
	if args["K8S_POD_NAMESPACE"] == "" || args["K8S_POD_NAME"] == "" {
		return ""
	}
	return args["K8S_POD_NAMESPACE"] + "/" + args["K8S_POD_NAME"]
}

// running returns the ids of the processes of a name that this pid namespace
// shows.
func running(proc, name string) (pids []string) {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(data)) == name {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}
