package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vxlan-cni/vxlan-cni/deploy"
	"github.com/vxlan-cni/vxlan-cni/internal/atomicfile"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// pluginType is what a conflist calls our plugin.
const pluginType = "vxlan-cni"

// writeConflist makes the runtime's network configuration what it should be, if
// there is a folder for it: kubelet calls the node ready as soon as it is there, so
// nobody but us may write it, and we not before pods can have an address. A file
// that says the same already is left alone. The daemon's end removes nothing, for
// running pods must be detached as they were attached.
func (c Config) writeConflist() error {
	if c.CNIConfDir == "" {
		return nil
	}
	path := filepath.Join(c.CNIConfDir, deploy.ConflistName)
	want, err := c.conflist()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm() == conflistMode {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
			return nil
		}
	}
	if err := atomicfile.Write(path, conflistMode, bytes.NewReader(want)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// conflistMode lets everybody read a conflist, as runtimes' packages do.
const conflistMode fs.FileMode = 0o644

// conflist is the text of the network configuration. The operator's file is read
// each time, for it may change; ours leads to the run folder.
func (c Config) conflist() ([]byte, error) {
	if c.CNIConfTemplate != "" {
		text, err := os.ReadFile(c.CNIConfTemplate)
		if err == nil {
			err = checkConflist(text)
		}
		if err != nil {
			return nil, fmt.Errorf("--cni-conf-template %s: %w", c.CNIConfTemplate, err)
		}
		return text, nil
	}
	if c.RunDir == subnet.RunDir {
		return deploy.Conflist, nil
	}
	dir, err := json.Marshal(c.RunDir)
	if err != nil {
		return nil, err
	}
	ours := []byte(`"type": "` + pluginType + `"`)
	return bytes.Replace(deploy.Conflist, ours, slices.Concat(ours, []byte(`, "runDir": `), dir), 1), nil
}

// checkConflist returns an error for what no runtime would take, or what has no
// plugin of ours.
func checkConflist(text []byte) error {
	var list struct {
		CNIVersion, Name string
		Plugins          []struct{ Type string }
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("want a CNI network configuration list: %w", err)
	}
	switch {
	case list.Name == "":
		return errors.New(`want a CNI network configuration list with a "name"`)
	case list.CNIVersion == "":
		return errors.New(`want a CNI network configuration list with a "cniVersion"`)
	}
	for _, p := range list.Plugins {
		if p.Type == pluginType {
			return nil
		}
	}
	return fmt.Errorf("want a CNI network configuration list with %s among its plugins", pluginType)
}
