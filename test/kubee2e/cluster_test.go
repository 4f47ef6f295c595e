package kubee2e

import (
	"context"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A cluster is what the tests run on.
type cluster struct {
	config *rest.Config
	client kubernetes.Interface
}

func open(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{}
	var err error
	if c.config, err = clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")); err != nil {
		t.Fatal(err)
	}
	c.config.QPS, c.config.Burst = 500, 1000
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.logs(t)
		}
	})
	return c
}

// logs shows what every overlayd said last.
func (c *cluster) logs(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pods := c.client.CoreV1().Pods(system)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + daemonSet})
	if err != nil {
		t.Log(err)
		return
	}
	lines := int64(10)
	for _, p := range list.Items {
		b, err := pods.GetLogs(p.Name, &corev1.PodLogOptions{TailLines: &lines}).DoRaw(ctx)
		t.Logf("%s on %s: %v\n%s", p.Name, p.Spec.NodeName, err, b)
	}
}

// nodes lists all nodes.
func (c *cluster) nodes(t testing.TB) []corev1.Node {
	t.Helper()
	list, err := c.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// eventually waits until ok.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", limit, what)
		}
	}
}

// TestCluster is all tests, in the order in which they can follow each other: the
// first installs, the last take it off again.
func TestCluster(t *testing.T) {
	if os.Getenv(kindEnv) == "" {
		t.Skip("`make e2e` and `make e2e-cluster` run it")
	}
	for _, tt := range []testCase{
		{"Install", testInstall},
		{"KubectlOverlay", testKubectlOverlay},
		{"Pairs", testPairs},
		{"Traffic", atOnce(
			testCase{"LargePackets", testLargePackets},
			testCase{"Hairpin", testHairpin},
			testCase{"DNS", testDNS},
			testCase{"Bandwidth", testBandwidth},
			testCase{"Node", inOrder( // all listen on the nodes' own ports
				testCase{"NodeToPod", testNodeToPod},
				testCase{"Services", testServices},
				testCase{"HostPort", testHostPort},
			)},
		)},
		{"Conformance", testConformance},
		{"Events", testEvents},
		{"OpenConnections", testOpenConnections},
		{"Trouble", atOnce( // each has a node of its own
			testCase{"UnreadyNode", testUnreadyNode},
			testCase{"PowerCut", testPowerCut},
		)},
		{"Pods", atOnce(
			testCase{"Sweep", testSweep}, // on the first node
			testCase{"Others", inOrder( // and these on the others
				testCase{"StartTimes", testStartTimes},
				testCase{"Churn", testChurn},
			)},
		)},
		{"NoLeaks", testNoLeaks},
		{"NodeComesAndGoes", testNodeComesAndGoes},
		{"Uninstall", testUninstall},
		{"EtcdStore", testEtcdStore},
		{"Rights", testRights},
	} {
		if !t.Run(tt.name, tt.fn) && tt.name == "Install" {
			t.FailNow()
		}
	}
}

type testCase struct {
	name string
	fn   func(*testing.T)
}

// inOrder runs cases one after the other.
func inOrder(cases ...testCase) func(*testing.T) {
	return func(t *testing.T) {
		for _, tt := range cases {
			t.Run(tt.name, tt.fn)
		}
	}
}

// atOnce runs cases at the same time.
func atOnce(cases ...testCase) func(*testing.T) {
	return func(t *testing.T) {
		for _, tt := range cases {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				tt.fn(t)
			})
		}
	}
}
