package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"time"
)

// Import enters addresses that another plugin gave to pods which live, so that
// they are not given twice. Each Request names addresses of one slot; one Key may
// have several slots, and several Keys one slot, for the other plugin may have
// taken a pod's addresses from each family by itself. Such a slot is entered once,
// under a key of its own: see [Key.Owners]. A slot that rests is taken: whoever is
// said to have it has it.
//
// It enters all or nothing. What an owner holds there already is left as it is,
// so it may be repeated; what was imported for another becomes a slot of both.
// added is how many slots were not held before. Errors are joined *RequestErrors,
// one for each address that somebody else holds or that no pod can have, or those
// of Acquire.
func (p *Pool) Import(ctx context.Context, list []Request) (added int, err error) {
	wanted, errs := p.layout.checkImports(list)
	if len(errs) > 0 {
		return 0, errors.Join(errs...)
	}
	others, err := p.others(ctx)
	if err != nil {
		return 0, err
	}
	err = p.locked(ctx, func(f *slotFile) error {
		entries, before, err := p.layout.imports(f, p.now(), imported{list, wanted, others})
		if err != nil || len(entries) == 0 {
			return err
		}
		if err := f.writeHeader(p.layout); err != nil {
			return err
		}
		for n, e := range entries {
			if err := f.write(e); err != nil {
				return errors.Join(err, f.restore(before[:n+1]))
			}
		}
		added = len(entries)
		for _, e := range before {
			if e.state == held {
				added--
			}
		}
		return nil
	})
	return added, err
}

// CheckImport returns the error that Import would, and writes nothing: it does
// not make the slot file either.
func (p *Pool) CheckImport(ctx context.Context, list []Request) error {
	wanted, errs := p.layout.checkImports(list)
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	others, err := p.others(ctx)
	if err != nil {
		return err
	}
	want, looked := imported{list, wanted, others}, false
	err = visitFile(ctx, filepath.Join(p.dir, fileName(p.layout.subnets[0])), func(f *slotFile) error {
		looked = true
		_, _, err := p.layout.imports(f, p.now(), want)
		return err
	})
	if err != nil || looked {
		return err
	}
	_, _, err = p.layout.imports(nil, p.now(), want)
	return err
}

// SlotOf returns the slot of an address, and whether a pod can be given it.
func (p *Pool) SlotOf(a netip.Addr) (slot int, ok bool) {
	slot, ok = p.layout.index(a)
	return slot, ok && slot >= firstSlot && slot < p.layout.end()
}

// imported is what Import is to enter.
type imported struct {
	list   []Request
	wanted []int         // the slot of each
	others map[int]entry // what other files have of ours
}

// imports returns the entries to write and what stands in their place now. f is
// nil if there is no file.
func (l layout) imports(f *slotFile, now time.Duration, want imported) (entries, before []entry, err error) {
	old := make(map[int]entry, len(want.list))
	for _, i := range want.wanted {
		old[i] = entry{index: i}
	}
	if f != nil {
		err = f.scan(func(i int, r record) {
			if _, ok := old[i]; ok && !blank(r) {
				old[i] = r.entry()
			}
		})
	}
	if err != nil {
		return nil, nil, err
	}
	next := maps.Clone(old)
	var changed []int // in the order of the list
	var errs []error
	for n, req := range want.list {
		i := want.wanted[n]
		holder := next[i]
		if by := want.others[i]; by.state == held && holder.state != held {
			holder, holder.imported = by, false // of another file, which stays as it is
		}
		if holder.state == held && holder.key.OwnedBy(req.Key) {
			continue
		}
		e := entry{
			state: held, index: i, key: req.Key, pod: req.Pod, addrs: l.addrs(i),
			acquired: now, released: old[i].released, imported: true,
		}
		if holder.state == held {
			if err := e.join(holder, req.Addrs[0]); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		next[i] = e
		if !slices.Contains(changed, i) {
			changed = append(changed, i)
		}
	}
	for _, i := range changed {
		entries, before = append(entries, next[i]), append(before, old[i])
	}
	return entries, before, errors.Join(errs...)
}

// join makes e, which asks for addr, the slot of its holder too.
func (e *entry) join(holder entry, addr netip.Addr) error {
	key := holder.key.with(e.key)
	switch {
	case !holder.imported:
		return &RequestError{"address", addr.String(), fmt.Sprintf("of %s: its slot was given to %s, pod %q", e.key, holder.key, holder.pod)}
	case len(key.Container) > maxContainer:
		return &RequestError{"address", addr.String(), fmt.Sprintf("of %s: shares a slot with %s, and both ids are longer than %d bytes together", e.key, holder.key, maxContainer)}
	}
	e.key = key
	if holder.pod != e.pod {
		e.pod = holder.pod + " and " + e.pod
	}
	return nil
}

// restore writes back what stood there.
func (s *slotFile) restore(before []entry) error {
	var errs []error
	for _, e := range before {
		errs = append(errs, s.write(e))
	}
	return errors.Join(errs...)
}
