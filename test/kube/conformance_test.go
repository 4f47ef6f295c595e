package kube

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/kube"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/subnettest"
	"github.com/vxlan-cni/vxlan-cni/test/apitest"
)

// TestConformance runs the suite on one API server, of which each case gets the
// Nodes to itself.
//
// Who gets which subnet is the controller-manager's decision in Kubernetes, and
// here that of cluster.allocate. So what the cases "preferred subnet", "many
// nodes at once" and "exhaustion" say of the choice of subnets they say of this
// fixture; of the Manager they say that it takes what was assigned, 60 at once,
// and nothing else. PutRaw is left out, for a record with any key cannot be
// stored in Kubernetes: TestHostileAnnotations is its place.
func TestConformance(t *testing.T) {
	server := apitest.New(t)
	subnettest.Conformance(t, func(t *testing.T, cfg subnet.Config) subnettest.Fixture {
		c := onServer(t, server, cfg)
		t.Cleanup(func() {
			for name := range c.subnets {
				c.delete(t, name)
			}
		})
		return subnettest.Fixture{
			Manager: func(t *testing.T) subnet.Manager { return &joining{Manager: c.manager(t, nil), t: t, c: c} },
			Expire:  c.expire,
			Delete:  func(t *testing.T, key string) { c.delete(t, c.holder(t, key)) },
			Outage: func(t *testing.T, on bool) {
				if on {
					server.Stop()
				} else {
					server.Start(t)
				}
			},
			Restart: func(t *testing.T) {
				server.Stop()
				server.Start(t)
			},
		}
	})
}

// joining is the Manager of a node whose kubelet registers it first.
type joining struct {
	subnet.Manager
	t *testing.T
	c *cluster
}

func (j *joining) Acquire(ctx context.Context, want subnet.Request) (subnet.Lease, error) {
	if want.Node != "" {
		if err := j.c.join(j.t, want.Node, want.Want); err != nil {
			return subnet.Lease{}, err
		}
	}
	return j.Manager.Acquire(ctx, want)
}

func (j *joining) Withdraw(ctx context.Context, node string) error {
	return j.Manager.(*kube.Manager).Withdraw(ctx, node)
}

// join registers a Node and assigns its subnets, unless that was done.
func (c *cluster) join(t *testing.T, name string, want []netip.Prefix) error {
	c.mu.Lock()
	_, known := c.subnets[name]
	c.mu.Unlock()
	podCIDRs, err := c.allocate(name, want)
	if err != nil || known {
		return err
	}
	if !c.Reachable() {
		// A kubelet waits too.
		go func() {
			for !c.Reachable() {
				time.Sleep(20 * time.Millisecond)
			}
			c.register(t, name, podCIDRs...)
		}()
		return nil
	}
	c.register(t, name, podCIDRs...)
	return nil
}

// expire deletes a Node and registers it again: of a Node with the same name
// nothing but the age tells that it is another. That is in seconds.
func (c *cluster) expire(t *testing.T, name string) {
	before := c.get(t, name)
	c.delete(t, name)
	for time.Now().Unix() <= before.Metadata.CreationTimestamp.Unix() {
		time.Sleep(10 * time.Millisecond)
	}
	c.register(t, name, before.Spec.PodCIDRs...)
}
