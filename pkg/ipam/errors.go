package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrExhausted is what an *ExhaustedError is, to errors.Is.
var ErrExhausted = errors.New("no free address")

// An ExhaustedError says that every slot is held or resting.
type ExhaustedError struct {
	Subnet netip.Prefix // the node's first subnet
	Usage
}

func (e *ExhaustedError) Error() string {
	s := fmt.Sprintf("no free address in %s: %d of %d held, %d resting", e.Subnet, e.Held, e.Total, e.Resting)
	if e.Resting > 0 {
		s += fmt.Sprintf(", the next is free in %s", e.Next.Round(time.Millisecond))
	}
	return s
}

// Is makes errors.Is(err, ErrExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// A RequestError says which part of a Request cannot be met, and why. Nothing
// was written.
type RequestError struct {
	Field  string // "container id", "interface name", "address", "MAC" or "source filter"
	Value  string
	Reason string // what was expected, or who is in the way
}

func (e *RequestError) Error() string { return fmt.Sprintf("%s %q: %s", e.Field, e.Value, e.Reason) }

// A CorruptError says that a file is not, or no longer, a slot file that can
// be believed. Nothing was written.
type CorruptError struct {
	Path   string
	Offset int64 // in bytes, where the damage begins
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("slot file %s: offset %d: %s; drain the node and delete the file", e.Path, e.Offset, e.Reason)
}
