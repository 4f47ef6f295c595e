package kube

import (
	"context"
	"encoding/json"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

const (
	resource = "nodes"
	status   = "status"
)

// A client speaks to the API server of Nodes. Its errors are a *outage.Wait where
// the request was not served.
type client struct {
	rest   *rest.RESTClient
	params runtime.ParameterCodec
	notes  annotations
}

// get reads one Node. One that is not there is worth waiting for: kubelet makes
// it.
func (c *client) get(ctx context.Context, name string) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n := &node{}
	err := c.rest.Get().Resource(resource).Name(name).Do(ctx).Into(n)
	if apierrors.IsNotFound(err) {
		return nil, &outage.Wait{State: stateNoNode, Err: err}
	}
	if err != nil {
		return nil, served(err)
	}
	n.strip(name, c.notes.wanted)
	return n, nil
}

// patch changes one Node, and returns it as it is then.
func (c *client) patch(ctx context.Context, name string, kind types.PatchType, body any, subresource ...string) (*node, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n := &node{}
	err = c.rest.Patch(kind).Resource(resource).Name(name).SubResource(subresource...).Body(data).Do(ctx).Into(n)
	if apierrors.IsNotFound(err) {
		return nil, &outage.Wait{State: stateNoNode, Err: err}
	}
	if err != nil {
		return nil, served(err)
	}
	n.strip(name, c.notes.wanted)
	return n, nil
}

// annotate changes annotations, those with nil to nothing, of the Node as it
// was seen. It goes by way of the status: that is a right that reaches less far
// than the one to change Nodes, and the one that flannel has. errConflict says
// that the Node has changed since.
func (c *client) annotate(ctx context.Context, seen *node, diff map[string]*string) (*node, error) {
	body := map[string]any{"metadata": map[string]any{
		"uid": seen.UID, "resourceVersion": seen.ResourceVersion, "annotations": diff,
	}}
	n, err := c.patch(ctx, seen.Name, types.MergePatchType, body, status)
	if apierrors.IsConflict(err) {
		return nil, errConflict
	}
	return n, err
}

// createEvent writes a new Event.
func (c *client) createEvent(ctx context.Context, e *event) error {
	return c.event(ctx, c.rest.Post().SetHeader("Content-Type", runtime.ContentTypeJSON), e)
}

// countEvent writes how often there was an Event, and when last.
func (c *client) countEvent(ctx context.Context, e *event) error {
	count := map[string]any{"count": e.Count, "lastTimestamp": e.Last}
	return c.event(ctx, c.rest.Patch(types.MergePatchType).Name(e.Name), count)
}

func (c *client) event(ctx context.Context, r *rest.Request, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return served(r.Namespace(eventsOf).Resource("events").Body(data).Do(ctx).Error())
}

// revision asks how far the server is.
func (c *client) revision(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	l := &nodeList{}
	opts := metav1.ListOptions{Limit: 1}
	err := c.rest.Get().Resource(resource).VersionedParams(&opts, c.params).Do(ctx).Into(l)
	return revision(l.ResourceVersion), served(err)
}

// list and watch are for the Reflector: own is the Node of which more is kept.
// They wait while the server does not serve, since the Reflector would wait
// longer, and not notice the end of ctx.
func (c *client) list(ctx context.Context, o *outage.Reporter, own string, opts metav1.ListOptions) (runtime.Object, error) {
	var l *nodeList
	err := o.Retry(ctx, func(ctx context.Context) error {
		l = &nodeList{}
		return served(c.rest.Get().Resource(resource).VersionedParams(&opts, c.params).Do(ctx).Into(l))
	})
	if err != nil {
		return nil, err
	}
	for i := range l.Items {
		l.Items[i].strip(own, c.notes.wanted)
	}
	return l, nil
}

func (c *client) watch(ctx context.Context, o *outage.Reporter, own string, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch = true
	var w watch.Interface
	err := o.Retry(ctx, func(ctx context.Context) (err error) {
		w, err = c.rest.Get().Resource(resource).VersionedParams(&opts, c.params).Watch(ctx)
		return served(err)
	})
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if n, ok := e.Object.(*node); ok {
			n.strip(own, c.notes.wanted)
		}
		return e, true
	}), nil
}
