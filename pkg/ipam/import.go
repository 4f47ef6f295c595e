package ipam

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Import enters addresses that another plugin gave to pods which live, so that
// they are not given twice. Each Request names the addresses of one slot; one
// Key may have several slots, for the other plugin may have taken a pod's
// addresses from each family by itself. A slot that rests is taken: whoever is
// said to have it has it.
//
// It enters all or nothing. What the same key holds there already is left as
// it is, so it may be repeated. added is how many slots were not held before.
// Errors are joined *RequestErrors, one for each address that somebody else
// holds or that no pod can have, or those of Acquire.
func (p *Pool) Import(ctx context.Context, list []Request) (added int, err error) {
	wanted := make([]int, len(list))
	var errs []error
	for i, req := range list {
		if len(req.Addrs) == 0 {
			errs = append(errs, &RequestError{"address", "", fmt.Sprintf("none of %s, want those that it has", req.Key)})
			continue
		}
		wanted[i], err = p.layout.wanted(req)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	others, err := p.others(ctx)
	if err != nil {
		return 0, err
	}
	err = p.locked(ctx, func(f *slotFile) error {
		entries, before, err := p.layout.imports(f, p.now(), list, wanted, others)
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
		return nil
	})
	return added, err
}

// imports returns the entries to write for a list of requests and the slots that
// they want, and what stands in their place now.
func (l layout) imports(f *slotFile, now time.Duration, list []Request, wanted []int, others map[int]entry) (entries, before []entry, err error) {
	have := make(map[int]entry, len(list))
	for _, i := range wanted {
		have[i] = entry{index: i}
	}
	err = f.scan(func(i int, r record) {
		if _, ok := have[i]; ok && !blank(r) {
			have[i] = r.entry()
		}
	})
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for n, req := range list {
		i := wanted[n]
		holder, taken := have[i], have[i].state == held
		if by := others[i]; by.state == held && !taken {
			holder, taken = by, true
		}
		switch {
		case taken && holder.key == req.Key:
		case taken:
			errs = append(errs, &RequestError{"address", req.Addrs[0].String(),
				fmt.Sprintf("of %s: its slot was given to %s, pod %q", req.Key, holder.key, holder.pod)})
		default:
			e := entry{
				state: held, index: i, key: req.Key, pod: req.Pod, addrs: l.addrs(i),
				acquired: now, released: have[i].released, imported: true,
			}
			entries, before = append(entries, e), append(before, have[i])
			have[i] = e // two requests for one slot
		}
	}
	return entries, before, errors.Join(errs...)
}

// restore writes back what stood there.
func (s *slotFile) restore(before []entry) error {
	var errs []error
	for _, e := range before {
		errs = append(errs, s.write(e))
	}
	return errors.Join(errs...)
}
