package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// networkUnavailable is the condition that keeps pods off a Node while it is
// True: https://kubernetes.io/docs/reference/node/node-status/#condition
const networkUnavailable = "NetworkUnavailable"

// reasonDown is why it is True after Withdraw and Release.
const reasonDown = "OverlayIsDown"

// Announce tells the cluster whether pods on this node can reach others: the
// condition NetworkUnavailable of the own Node becomes False, or True, and
// if ready the start-up taint goes. Nothing is written that is right already.
// After Announce(true) Run says it again whenever somebody says otherwise, or
// the Node is registered anew. It makes one attempt, and wants Acquire first.
func (m *Manager) Announce(ctx context.Context, ready bool) error {
	m.mu.Lock()
	m.announced = ready
	name := m.held.want.Node
	m.mu.Unlock()
	m.wake()
	if err := m.announce(ctx, name, ready); err != nil {
		return fmt.Errorf("announce on %s: %w", key(name), err)
	}
	return nil
}

func (m *Manager) announce(ctx context.Context, name string, ready bool) error {
	n, err := m.client.get(ctx, name)
	if err != nil {
		return err
	}
	if err := m.setCondition(ctx, n, ready); err != nil || !ready {
		return err
	}
	return m.removeTaint(ctx, n)
}

// setCondition writes the condition, if it is another.
func (m *Manager) setCondition(ctx context.Context, n *node, ready bool) error {
	want := condition{
		Type: networkUnavailable, Status: "True", Reason: reasonDown,
		Message: "the pod overlay was taken off this node",
	}
	if ready {
		want.Status, want.Reason, want.Message = "False", "OverlayIsUp", "the pod overlay's tables are in the kernel"
	}
	have := n.condition()
	if have.Status == want.Status && have.Reason == want.Reason {
		return nil
	}
	want.LastHeartbeatTime = metav1.NewTime(time.Now())
	want.LastTransitionTime = want.LastHeartbeatTime
	if have.Status == want.Status {
		want.LastTransitionTime = have.LastTransitionTime
	}
	// Conditions are merged by their type.
	body := map[string]any{"status": map[string]any{"conditions": []condition{want}}}
	_, err := m.client.patch(ctx, n.Name, types.StrategicMergePatchType, body, status)
	return err
}

func (n *node) condition() condition {
	for _, c := range n.Status.Conditions {
		if c.Type == networkUnavailable {
			return c
		}
	}
	return condition{}
}

// Forget takes the condition off the Node that Withdraw left there, for a node that
// says by itself that it has no network: one without a CNI configuration. The
// condition would keep pods off it whatever network it has next. It waits while the
// API server cannot be reached, until ctx ends.
func (m *Manager) Forget(ctx context.Context, name string) error {
	err := m.outage.RetryAndTell(ctx, func(ctx context.Context) error { return m.forget(ctx, name) })
	if err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}

func (m *Manager) forget(ctx context.Context, name string) error {
	n, err := m.client.get(ctx, name)
	var wait *outage.Wait
	if errors.As(err, &wait) && wait.State == stateNoNode {
		return nil
	}
	if err != nil || n.condition().Reason != reasonDown {
		return err
	}
	gone := map[string]string{"type": networkUnavailable, "$patch": "delete"}
	body := map[string]any{"status": map[string]any{"conditions": []map[string]string{gone}}}
	_, err = m.client.patch(ctx, name, types.StrategicMergePatchType, body, status)
	return err
}

// removeTaint takes the start-up taint from the Node, and no other: each place
// of the list is tested in the same request.
func (m *Manager) removeTaint(ctx context.Context, n *node) error {
	var ops []map[string]any
	for i, t := range slices.Backward(n.Spec.Taints) { // from the end, so that places stay right
		if t.Key == m.opts.StartupTaint && t.Key != "" {
			path := fmt.Sprintf("/spec/taints/%d", i)
			ops = append(ops, map[string]any{"op": "test", "path": path + "/key", "value": t.Key},
				map[string]any{"op": "remove", "path": path})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	_, err := m.client.patch(ctx, n.Name, types.JSONPatchType, ops)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		return &outage.Wait{State: stateRefused, Err: fmt.Errorf("take taint %s off: %w", m.opts.StartupTaint, err)}
	}
	return err
}

// told says whether a Node says of the network what Announce(true) said.
func (m *Manager) told(n *node) bool {
	return n.condition().Status == "False" && !slices.ContainsFunc(n.Spec.Taints, func(t taint) bool {
		return t.Key == m.opts.StartupTaint && t.Key != ""
	})
}
