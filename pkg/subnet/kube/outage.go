package kube

import (
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// What is waited for, as it stands in the log.
const (
	stateAway       = "Kubernetes API not reachable"
	stateRefused    = "Kubernetes API refuses"
	stateNoConfig   = "no network configuration"
	stateNoNode     = "Node not registered"
	stateUnassigned = "Node has no podCIDRs"
)

// served makes an outage.Wait of an error that says nothing of the request but
// that it was not served. What the caller must know of passes as it is: that
// something is not there, that a revision is too old or unknown, or that the
// server does not understand.
func served(err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &status):
		return &outage.Wait{State: stateAway, Err: err}
	case apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge):
		return err
	}
	switch code := status.Status().Code; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusTooManyRequests, code >= 500:
		return &outage.Wait{State: stateRefused, Err: err}
	}
	return err
}

// named says which Node an error is about.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key(name), err)
}
