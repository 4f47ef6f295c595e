package node

import (
	"slices"
	"sync"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// A ring keeps the newest entries.
type ring[T any] struct {
	mu   sync.Mutex
	all  []T
	next int
}

// ringSize is how many entries a ring keeps.
const ringSize = 256

func (r *ring[T]) add(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) < ringSize {
		r.all = append(r.all, v)
		return
	}
	r.all[r.next] = v
	r.next = (r.next + 1) % ringSize
}

// newest returns the entries, newest first; never nil, so that JSON shows [].
func (r *ring[T]) newest() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := append(slices.Clone(r.all[r.next:]), r.all[:r.next]...)
	slices.Reverse(out)
	return append([]T{}, out...)
}

// journal is what the node tells of its past.
type journal struct {
	events ring[api.Event]
	misses ring[api.Miss]
}

func (j *journal) event(kind, text string) {
	j.events.add(api.Event{Time: time.Now(), Kind: kind, Text: text})
}
