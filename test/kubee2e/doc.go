// Package kubee2e tests a whole cluster with vxlan-cni on it, by client-go.
//
// E2E=lab runs the tests on a cluster of their own in namespaces of this machine
// (see kubelab); E2E=cluster on the one of KUBECONFIG. They are
// `make e2e` and `make e2e-cluster`.
package kubee2e
