package kube

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var version = schema.GroupVersion{Version: "v1"}

// A node is what this package reads of a Kubernetes Node. The module k8s.io/api,
// which knows the whole of it, and everything else in Kubernetes, is not linked.
type node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   nodeSpec   `json:"spec"`
	Status nodeStatus `json:"status"`
}

type nodeSpec struct {
	PodCIDR  string   `json:"podCIDR"`
	PodCIDRs []string `json:"podCIDRs"`
	Taints   []taint  `json:"taints"`
}

type taint struct {
	Key string `json:"key"`
}

type nodeStatus struct {
	Conditions []condition `json:"conditions"`
}

type condition struct {
	Type               string      `json:"type"`
	Status             string      `json:"status"`
	Reason             string      `json:"reason"`
	Message            string      `json:"message"`
	LastHeartbeatTime  metav1.Time `json:"lastHeartbeatTime"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime"`
}

type nodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []node `json:"items"`
}

// newScheme knows Nodes, and what every answer may be.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypeWithName(version.WithKind("Node"), &node{})
	s.AddKnownTypeWithName(version.WithKind("NodeList"), &nodeList{})
	metav1.AddToGroupVersion(s, version)
	return s
}

func (n *node) DeepCopyObject() runtime.Object {
	c := *n
	n.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	c.Spec.PodCIDRs = slices.Clone(n.Spec.PodCIDRs)
	c.Spec.Taints = slices.Clone(n.Spec.Taints)
	c.Status.Conditions = slices.Clone(n.Status.Conditions)
	return &c
}

func (l *nodeList) DeepCopyObject() runtime.Object {
	c := *l
	l.ListMeta.DeepCopyInto(&c.ListMeta)
	c.Items = make([]node, len(l.Items))
	for i := range l.Items {
		c.Items[i] = *l.Items[i].DeepCopyObject().(*node)
	}
	return &c
}

// strip drops what is not needed: all but name, revision, age, podCIDRs and the
// annotations that keep accepts, and for the own Node its taints and the one
// condition.
func (n *node) strip(own string, keep func(key string) bool) {
	maps.DeleteFunc(n.Annotations, func(key, _ string) bool { return !keep(key) })
	n.ObjectMeta = metav1.ObjectMeta{
		Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion,
		CreationTimestamp: n.CreationTimestamp, Annotations: n.Annotations,
	}
	// Bookmarks say by an annotation that the first stream is over: it is not
	// ours to drop, and keep knows it.
	if n.Name != own {
		n.Spec.Taints, n.Status.Conditions = nil, nil
		return
	}
	n.Status.Conditions = slices.DeleteFunc(n.Status.Conditions, func(c condition) bool { return c.Type != networkUnavailable })
}
