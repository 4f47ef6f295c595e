package node

import (
	"context"
	"time"
)

// An Announcer is a Manager that can tell the cluster whether pods on this node
// reach others, such as by a condition of its Kubernetes Node.
type Announcer interface {
	Announce(ctx context.Context, ready bool) error
}

const (
	// Refused announcements are made again, after tellFirst, then after twice as
	// long each time, up to tellMax.
	tellFirst = 500 * time.Millisecond
	tellMax   = 30 * time.Second
)

// tell announces that the node is ready, once it is. No failure of that harms
// the node itself. The end of the daemon is not announced: traffic goes on.
func (n *node) tell(ctx context.Context, a Announcer) error {
	select {
	case <-n.up:
	case <-ctx.Done():
		return nil
	}
	for wait := tellFirst; ; wait = min(2*wait, tellMax) {
		err := a.Announce(ctx, true)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		n.log.Warn("the node's readiness cannot be announced, trying again", "in", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}
