package node

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// minSweep is the least time between two observations, which is the least age of
// a slot to be swept. A plugin that holds a slot and is still making the link ends
// before: its waits are bounded by 20 s.
const minSweep = 30 * time.Second

// A sweeper frees the slots of pods that are gone although no DEL ever came:
// the runtime undoes a chain in reverse and stops at the first failure. A slot
// without a link in two observations is nobody's.
//
// Links are known by their aliases, for people rename them. While one of our group
// does not tell whose it is, nothing is freed.
//
// The slot of a pod that another plugin attached has no link of ours: it is
// nobody's if besides no port of the bridge can be that pod's.
type sweeper struct {
	dir     string
	bridge  string
	every   time.Duration // from one observation to the next
	log     *slog.Logger
	journal *journal
}

func (s sweeper) run(ctx context.Context) error {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	suspects := map[ipam.Key]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			suspects = s.sweep(ctx, suspects, s.every)
		}
	}
}

// sweep frees what was suspect before and still is, and returns the suspects of
// this observation.
func (s sweeper) sweep(ctx context.Context, before map[ipam.Key]bool, age time.Duration) map[ipam.Key]bool {
	current, err := subnet.ReadNodeFile(s.dir)
	if err != nil {
		return before // no lease yet, so no pod of ours
	}
	ports, err := pod.List()
	if err != nil {
		s.log.Warn("addresses not swept", "error", err)
		return before
	}
	names, keys := map[string]bool{}, map[ipam.Key]bool{}
	for _, p := range ports {
		if !p.Tells() {
			s.log.Warn("addresses not swept: a link of our group does not tell whose it is", "link", p.HostName)
			return before
		}
		names[p.HostName] = true
		keys[ipam.Key{Container: p.Container, IfName: p.IfName}] = true // also of one that was renamed
	}
	// Without knowledge of the bridge imported slots stay.
	bridge, _, err := pod.ReadBridge(s.bridge)
	known := err == nil
	if !known {
		s.log.Warn("addresses of pods that another plugin attached not swept", "error", err)
	}
	suspects := map[ipam.Key]bool{}
	freed, err := ipam.Retain(ctx, s.dir, func(slot ipam.Slot) bool {
		if slot.Age < age || keys[slot.Key] || names[pod.HostName(slot.Key.Container, slot.Key.IfName)] {
			return true
		}
		if slot.Imported && (!known || bridge.MayLive(slot.Addrs, current.Subnets)) {
			return true
		}
		suspects[slot.Key] = true
		return !before[slot.Key]
	}, current.Subnets...)
	if err != nil {
		s.log.Warn("addresses not swept", "error", err)
	}
	for _, slot := range freed {
		delete(suspects, slot.Key)
		addrs := make([]string, 0, len(slot.Addrs))
		for _, a := range slot.Addrs {
			addrs = append(addrs, a.String())
		}
		text := "freed " + strings.Join(addrs, " ") + " of container " + slot.Key.Container + " " + slot.Pod + ": it has no link and no DEL came"
		s.log.Info(text)
		s.journal.event("sweep", text)
	}
	return suspects
}
