// Package kube tests pkg/subnet/kube on a real kube-apiserver.
//
// No kubelet and no controller-manager runs: the tests register Nodes and
// assign podCIDRs themselves.
package kube
