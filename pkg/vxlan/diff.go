package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Diff returns the changes that turn have into want. Routes go in last and
// come out first, so no packet meets a route whose next hop is unknown.
func Diff(want, have State) []Op {
	fdb := func(m MAC, a netip.Addr) Entry { return FDB{m, a} }
	neigh := func(a netip.Addr, m MAC) Entry { return Neigh{a, m} }
	route := func(p netip.Prefix, r Route) Entry { return Subnet{p, r} }

	var ops []Op
	ops = stale(ops, have.Routes, want.Routes, route)
	ops = changed(ops, want.FDB, have.FDB, fdb)
	ops = changed(ops, want.Neighs, have.Neighs, neigh)
	ops = changed(ops, want.Routes, have.Routes, route)
	ops = stale(ops, have.Neighs, want.Neighs, neigh)
	ops = stale(ops, have.FDB, want.FDB, fdb)
	return ops
}

func changed[K, V comparable](ops []Op, want, have map[K]V, entry func(K, V) Entry) []Op {
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			ops = append(ops, Op{Entry: entry(k, v)})
		}
	}
	return ops
}

func stale[K, V comparable](ops []Op, have, want map[K]V, entry func(K, V) Entry) []Op {
	for k, v := range have {
		if _, ok := want[k]; !ok {
			ops = append(ops, Op{Del: true, Entry: entry(k, v)})
		}
	}
	return ops
}

// A Kernel reads and changes the state of one VXLAN device. Setting replaces;
// deleting what is absent is not an error.
type Kernel interface {
	State() (State, error)
	// Apply attempts every change in turn and joins the errors.
	Apply([]Op) error
}

// Reconcile makes k hold exactly what want returns for what k holds now, and
// returns the changes that it attempted. It attempts all of them and joins the
// errors, so one bad peer costs only itself.
func Reconcile(k Kernel, want func(have State) State) ([]Op, error) {
	return ReconcileAll([]Kernel{k}, []func(State) State{want})
}

// ReconcileAll is Reconcile for several devices between which routes may move: all
// routes that are to go from any of them go first, for the kernel refuses an
// IPv6 route whose gateway another device still leads to.
func ReconcileAll(kernels []Kernel, wants []func(have State) State) (all []Op, err error) {
	var errs []error
	rest := make([][]Op, len(kernels))
	for i, k := range kernels {
		have, err := k.State()
		if err != nil {
			errs = append(errs, fmt.Errorf("read vxlan state: %w", err))
			continue
		}
		ops := Diff(wants[i](have), have)
		all = append(all, ops...)
		out := slices.IndexFunc(ops, func(o Op) bool { return !isRouteOut(o) })
		if rest[i] = ops; out > 0 && len(kernels) > 1 {
			errs = append(errs, k.Apply(ops[:out]))
			rest[i] = ops[out:]
		}
	}
	for i, k := range kernels {
		if len(rest[i]) > 0 {
			errs = append(errs, k.Apply(rest[i]))
		}
	}
	return all, errors.Join(errs...)
}

func isRouteOut(o Op) bool {
	_, route := o.Entry.(Subnet)
	return o.Del && route
}

// Exactly makes Reconcile produce s, whatever the kernel holds.
func Exactly(s State) func(State) State { return func(State) State { return s } }

// An OpError is one change that the kernel refused.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string { return e.Op.String() + ": " + e.Err.Error() }

// Unwrap returns the kernel's refusal.
func (e *OpError) Unwrap() error { return e.Err }

// Refused returns the changes that err says were not carried out.
func Refused(err error) (ops []Op) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			ops = append(ops, Refused(e)...)
		}
		return ops
	}
	if op, ok := errors.AsType[*OpError](err); ok {
		ops = append(ops, op.Op)
	}
	return ops
}

// joinOpErrors pairs errs with their changes and joins those that are not nil.
func joinOpErrors(ops []Op, errs []error) error {
	var all []error
	for i, err := range errs {
		if err != nil {
			all = append(all, &OpError{ops[i], err})
		}
	}
	return errors.Join(all...)
}
