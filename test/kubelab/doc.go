// Package kubelab is a real Kubernetes on one machine: a control plane and nodes
// with kubelet, containerd, runc and kube-proxy, each in namespaces of its own.
//
// The programs come from the Go module proxy, by way of the modules ../k8s and
// ../ctrd; runc is the machine's. A node's root is an overlay over the machine's,
// its cgroups are below one of its own, and the settings of the kernel that a
// kubelet would change are files of its own. So nothing of the machine changes,
// and killing one process is the end of a node and of all that runs on it.
//
// A program that makes labs calls Serve first: it is pid 1 of the guests too.
package kubelab
