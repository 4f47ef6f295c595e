package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

// Error codes of our own; the specification leaves 100 and above to plugins.
const (
	codeExhausted = 100 // every address of the node is held
	codeNodeFile  = 101 // the node file cannot be believed
	codeSlotFile  = 102 // a slot file cannot be believed
)

// fail makes an error with a code of the specification or one of ours.
func fail(code uint, format string, args ...any) error {
	return types.NewError(code, fmt.Errorf(format, args...).Error(), "")
}

// explain gives an error the code that tells the runtime, and the variable or
// key that tells its user, whose fault it is.
func explain(err error) error {
	var coded *types.Error
	var full *ipam.ExhaustedError
	var bad *ipam.RequestError
	var corrupt *ipam.CorruptError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		return fail(coded.Code, "%w", err)
	case errors.Is(err, pod.ErrNetns):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %w", err)
	case errors.Is(err, pod.ErrAttached), errors.Is(err, pod.ErrExists):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: %w", err)
	case errors.As(err, &bad) && bad.Field == "container id":
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID: %w", err)
	case errors.As(err, &bad):
		return fail(types.ErrInvalidNetworkConfig, "requested %w", err)
	case errors.As(err, &corrupt):
		return fail(codeSlotFile, "%w", err)
	case errors.As(err, &full) && full.Resting > 0:
		return fail(types.ErrTryAgainLater, "%w", err)
	case errors.Is(err, ipam.ErrExhausted):
		return fail(codeExhausted, "%w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(types.ErrTryAgainLater, "%w", err)
	}
	return fail(types.ErrIOFailure, "%w", err)
}

// retryable rewords an error so that go-cni, and with it containerd, tries
// again: it takes any text with one of these phrases for "is gone already".
func retryable(err error) error {
	var coded *types.Error
	if !errors.As(err, &coded) {
		return err
	}
	text := strings.NewReplacer("not found", "absent", "no such file or directory", "path is absent").Replace(coded.Msg)
	return types.NewError(coded.Code, text, coded.Details)
}
