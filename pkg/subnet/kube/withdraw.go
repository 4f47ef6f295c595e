package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// Withdraw takes the node's own lease off its Node, for a node that is no more
// to be part of the network: the condition NetworkUnavailable becomes True,
// so that no more pods come, and then the annotations go, so that peers drop the
// node. The subnets stay the Node's, and so do annotations that a flannel which
// came back has written over ours. That there is no Node, or no lease on it, is
// a success. It waits while the API server cannot be reached, until ctx ends. A
// Run would write the annotations again: end it first. Forget takes the condition off.
func (m *Manager) Withdraw(ctx context.Context, name string) error {
	err := m.outage.RetryAndTell(ctx, func(ctx context.Context) error { return m.withdraw(ctx, name) })
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", name, err)
	}
	return nil
}

func (m *Manager) withdraw(ctx context.Context, name string) error {
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.unlock()
	for {
		n, err := m.client.get(ctx, name)
		var wait *outage.Wait
		if errors.As(err, &wait) && wait.State == stateNoNode {
			return nil
		}
		if err != nil {
			return err
		}
		gone := map[string]*string{}
		for _, w := range m.notes.ours(n) {
			gone[m.notes.prefix+w] = nil
		}
		gone = changes(n.Annotations, gone)
		if m.notes.isOurs(n) {
			if err := m.setCondition(ctx, n, false); err != nil {
				return err
			}
			if n, err = m.client.get(ctx, name); err != nil {
				return err
			}
		}
		if len(gone) > 0 {
			_, err = m.client.annotate(ctx, n, gone)
			if errors.Is(err, errConflict) {
				continue // the next look sees what they did
			}
			if err != nil {
				return err
			}
		}
		m.mu.Lock()
		m.held, m.announced = holding{}, false
		m.mu.Unlock()
		return nil
	}
}

// ours are the names of the annotations that this node may take away.
func (a annotations) ours(n *node) []string {
	if a.isOurs(n) {
		return written()
	}
	return []string{mtuAnnotation, schemaVersion}
}

// isOurs says whether the lease on a Node is one that overlayd wrote there, and
// flannel has not written over since: that leaves our own annotations as they
// are, but its MACs are random.
func (a annotations) isOurs(n *node) bool {
	if n.Annotations[a.prefix+managed] != managedByAgent || n.Annotations[a.prefix+schemaVersion] == "" {
		return false
	}
	for name, is4 := range map[string]bool{backendData: true, backendV6Data: false} {
		var end struct{ VtepMAC string }
		text := n.Annotations[a.prefix+name]
		if text == "" || text == "null" {
			continue
		}
		if err := json.Unmarshal([]byte(text), &end); err != nil || end.VtepMAC != subnet.VTEPMAC(n.Name, is4).String() {
			return false
		}
	}
	return true
}
