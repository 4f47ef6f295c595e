package ipam

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// Rest is how long a released slot is not given to another pod, unless it is
// asked for by its address.
const Rest = 120 * time.Second

// A Key names the attachment that holds a slot. One Key holds at most one slot
// of a file, but for slots that were imported: see [Pool.Import] and [Key.Owners].
type Key struct {
	Container string // container id, 1 to 180 bytes
	IfName    string // interface inside the pod, 1 to 15 bytes
}

func (k Key) String() string {
	if k.IfName == sharedIfName {
		return k.Container
	}
	return k.Container + "/" + k.IfName
}

// A Slot is one slot's addresses and who holds them.
type Slot struct {
	Index int          // distance of the addresses from their subnets' first
	Key   Key          // holder; of a free slot the last one, or empty
	Pod   string       // namespace/name, "" if unknown; a long one ends in "…"
	Addrs []netip.Addr // one per family, IPv4 first, as given to the pod
	Held  bool
	Age   time.Duration // since acquire or import; of a free slot since release

	// Imported is a slot that Import entered: its pod was attached by another
	// plugin, so it has no link of ours by which it could be known to live.
	Imported bool

	MAC      net.HardwareAddr // that the Request asked for; nil: none
	Filtered bool             // held, and the Request said so

	acquired time.Duration // tells this hold of the slot from another by the same key
	fresh    bool          // held since the Acquire that returned it
}

// A Request asks for a slot.
type Request struct {
	Key   Key
	Pod   string       // namespace/name, for people; may be empty, and is cut if too long
	Addrs []netip.Addr // addresses to get, at most one per family; empty: any

	// For who comes after a restart, or after somebody has emptied the kernel's
	// tables: what else the attachment is made with.
	MAC      net.HardwareAddr // nil: it follows from the addresses
	Filtered bool             // it may send by its MAC and addresses only
}

// Usage counts slots.
type Usage struct {
	Total   int           // that can be given
	Held    int           // of these, in use
	Resting int           // of these, released less than Rest ago
	Next    time.Duration // until the first of the resting is free
}

// Free returns how many slots can be given now.
func (u Usage) Free() int { return u.Total - u.Held - u.Resting }

// A Pool gives out the slots of one node's subnets. It is safe for concurrent
// use, by any number of goroutines and processes.
type Pool struct {
	// Warn, if set before the first operation, is called with the *CorruptError of
	// each file of another subnet that Acquire did without.
	Warn func(error)

	dir    string
	layout layout
	now    func() time.Duration // since boot; never goes back

	// turn is held by the goroutine that uses what follows: the file's lock
	// is no bar between goroutines that share the open file.
	turn   chan struct{}
	file   *slotFile // nil: open it first
	closed bool
}

// Open returns the Pool of the node's subnets, one per family and IPv4 first.
// It only checks these: the first operation opens the slot file and, if there
// is none, makes it, and dir too.
func Open(dir string, subnets []netip.Prefix) (*Pool, error) {
	l, err := newLayout(subnets)
	if err != nil {
		return nil, err
	}
	return &Pool{dir: dir, layout: l, now: bootTime, turn: make(chan struct{}, 1)}, nil
}

// Close closes the file. What is held stays held.
func (p *Pool) Close() error {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	p.closed = true
	if p.file == nil {
		return nil
	}
	err := p.file.close()
	p.file = nil
	return err
}

// locked calls fn with the slot file, locked. A file that was removed in the
// meantime is made anew.
func (p *Pool) locked(ctx context.Context, fn func(*slotFile) error) (err error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return fmt.Errorf("lock %s: %w", p.dir, context.Cause(ctx))
	}
	if p.closed {
		return fmt.Errorf("slot file of %s: %w", p.layout.subnets[0], os.ErrClosed)
	}
	for {
		if p.file == nil {
			if p.file, err = openOrCreate(ctx, p.dir, p.layout); err != nil {
				return err
			}
		}
		if err = p.file.locked(ctx, fn); !errors.Is(err, errReplaced) {
			return err
		}
		_ = p.file.close()
		p.file = nil
	}
}

// Acquire gives a slot to req.Key. If that holds one already, it is that one.
// Otherwise it is the one with req.Addrs; or, if that is empty, of those that
// do not rest the first never used, or else the longest released.
//
// Errors are *RequestError, *ExhaustedError, *CorruptError, the cause of ctx's
// end, or one of the file system; after any of them nothing new is held.
func (p *Pool) Acquire(ctx context.Context, req Request) (s Slot, err error) {
	want, err := p.layout.wanted(req)
	if err != nil {
		return Slot{}, err
	}
	others, err := p.others(ctx)
	// An old file that is damaged must not keep the node from having new pods. The
	// addresses that it shares with ours, if any, cannot be told.
	unreadable, err := splitCorrupt(err)
	if err != nil {
		return Slot{}, err
	}
	for _, err := range unreadable {
		if p.Warn != nil {
			p.Warn(err)
		}
	}
	err = p.locked(ctx, func(f *slotFile) error {
		now := p.now()
		v, err := p.layout.survey(f, now, req.Key, want, others)
		if err != nil {
			return err
		}
		if v.mine.state == held {
			s = v.mine.slot(now)
			return s.covers(req)
		}
		c, err := v.choose(p.layout, others)
		if err != nil {
			return err
		}
		if err := f.writeHeader(p.layout); err != nil {
			return err
		}
		e := entry{
			state: held, index: c.index, key: req.Key, pod: req.Pod,
			addrs: p.layout.addrs(c.index), acquired: now, released: c.released,
			filtered: req.Filtered,
		}
		copy(e.mac[:], req.MAC)
		if err := f.write(e); err != nil {
			return err
		}
		s = e.slot(now)
		s.fresh = true
		return nil
	})
	if err != nil {
		return Slot{}, err
	}
	return s, nil
}

// Release frees the slot that key holds; it rests from now on. found is false
// if there is none, and that is no error.
func (p *Pool) Release(ctx context.Context, key Key) (found bool, err error) {
	err = p.locked(ctx, func(f *slotFile) (err error) {
		found, err = f.release(p.now(), key)
		return err
	})
	return found, err
}

// Cancel undoes the Acquire that returned s: the slot is as it was before, and
// does not rest for what no pod ever used. If the key held it before that
// Acquire, a pod may have used it, so it is released and rests. If it is not
// held any more, or anew, Cancel does nothing.
func (p *Pool) Cancel(ctx context.Context, s Slot) error {
	return p.locked(ctx, func(f *slotFile) error {
		var e entry
		err := f.scan(func(i int, r record) {
			if i == s.Index && r.holds(s.Key) && r.acquired() == s.acquired {
				e = r.entry()
			}
		})
		switch {
		case err != nil || e.state != held:
			return err
		case !s.fresh:
			e = e.freed(p.now())
		case e.released == 0:
			e = entry{state: unused, index: e.index}
		default:
			e = entry{state: free, index: e.index, released: e.released}
		}
		return f.write(e)
	})
}

// Usage counts the slots.
func (p *Pool) Usage(ctx context.Context) (u Usage, err error) {
	err = p.locked(ctx, func(f *slotFile) error {
		v, err := p.layout.survey(f, p.now(), Key{}, noSlot, nil)
		u = v.usage
		return err
	})
	return u, err
}

// release frees what key holds: one slot, or none, or several that were
// imported.
func (s *slotFile) release(now time.Duration, key Key) (bool, error) {
	var entries []entry
	err := s.scan(func(_ int, r record) {
		if r.holds(key) {
			entries = append(entries, r.entry())
		}
	})
	if err != nil {
		return false, err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, s.write(e.freed(now)))
	}
	return len(entries) > 0, errors.Join(errs...)
}

// freed is e after its release.
func (e entry) freed(now time.Duration) entry {
	e.state, e.released, e.imported, e.filtered = free, now, false, false
	return e
}

// slot returns what users see of e.
func (e entry) slot(now time.Duration) Slot {
	since := e.acquired
	if e.state != held {
		since = e.released
	}
	s := Slot{
		Index: e.index, Key: e.key, Pod: e.pod, Held: e.state == held,
		Age: max(0, now-since), Imported: e.imported, Filtered: e.filtered, acquired: e.acquired,
	}
	if e.mac != [6]byte{} {
		s.MAC = net.HardwareAddr(e.mac[:])
	}
	for _, a := range e.addrs {
		if a.IsValid() {
			s.Addrs = append(s.Addrs, a)
		}
	}
	return s
}
