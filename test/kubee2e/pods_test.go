package kubee2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
)

// Ports of `etool serve`.
const (
	httpPort = 8080
	tcpPort  = 8081
	udpPort  = 8082
	sinkPort = 8083
	holdPort = 8090
)

// podsWithin bounds what some pods take to become ready. It is seconds on a
// machine that has nothing else to do.
const podsWithin = 3 * time.Minute

// image is that of etool. A cluster that is not the lab needs it in a registry.
func image() string { return cmp.Or(os.Getenv("E2E_IMAGE"), kubelab.ToolImage) }

// A space is a namespace of the cluster that goes with the test.
type space struct {
	*cluster
	t    testing.TB
	name string
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

func (c *cluster) space(t testing.TB) *space {
	t.Helper()
	name := notInName.ReplaceAllString(strings.ToLower(strings.TrimPrefix(t.Name(), "TestCluster/")), "-")
	s := &space{c, t, "e2e-" + strings.Trim(name, "-")}
	s.name = s.name[:min(len(s.name), 50)]
	_, err := c.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.describe()
		}
		ctx, cancel := context.WithTimeout(context.Background(), podsWithin)
		defer cancel()
		if err := c.client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
			return
		}
		// The next test counts what is left on the nodes.
		for ctx.Err() == nil {
			pods, err := c.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
			if err == nil && len(pods.Items) == 0 {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("namespace %s still has pods", s.name)
	})
	eventually(t, podsWithin, "service account of "+s.name, func() bool {
		_, err := c.client.CoreV1().ServiceAccounts(s.name).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	return s
}

// describe logs what an operator would look at.
func (s *space) describe() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pods, err := s.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Log(err)
		return
	}
	for _, p := range pods.Items {
		s.t.Log("pod", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.PodIPs, podReady(&p))
	}
	events, err := s.client.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Log(err)
		return
	}
	for _, e := range events.Items {
		if e.Type != corev1.EventTypeNormal {
			s.t.Log("event", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

// container is etool with args.
func container(args ...string) corev1.Container {
	return corev1.Container{
		Name: "etool", Image: image(), Args: args, ImagePullPolicy: corev1.PullIfNotPresent,
	}
}

// server is a container that serves, and says so when it does.
func server() corev1.Container {
	c := container("serve")
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(httpPort)}},
		PeriodSeconds: 1, TimeoutSeconds: 5,
	}
	return c
}

// second is how long a pod has to end: those of the tests need no time.
var second = int64(1)

// pod is a pod of one container; change may be nil.
func (s *space) pod(name, node string, c corev1.Container, change func(*corev1.Pod)) {
	s.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: &second, Containers: []corev1.Container{c}},
	}
	if change != nil {
		change(p)
	}
	if _, err := s.client.CoreV1().Pods(s.name).Create(s.t.Context(), p, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// deployment runs n pods of app, spread evenly over the nodes.
func (s *space) deployment(app string, n int32, c corev1.Container) {
	s.t.Helper()
	labels := map[string]string{"app": app}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: app},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &second, Containers: []corev1.Container{c},
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
					}},
				},
			},
		},
	}
	if _, err := s.client.AppsV1().Deployments(s.name).Create(s.t.Context(), d, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// service makes a Service for app; change may be nil.
func (s *space) service(name, app string, change func(*corev1.Service)) *corev1.Service {
	s.t.Helper()
	v := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": app},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)},
				{Name: "tcp", Port: tcpPort, TargetPort: intstr.FromInt32(tcpPort)},
				{Name: "udp", Port: udpPort, TargetPort: intstr.FromInt32(udpPort), Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if change != nil {
		change(v)
	}
	v, err := s.client.CoreV1().Services(s.name).Create(s.t.Context(), v, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

var deleteNow = metav1.DeleteOptions{GracePeriodSeconds: &second}

// exists says whether there is a pod of that name.
func (s *space) exists(pod string) bool {
	_, err := s.client.CoreV1().Pods(s.name).Get(s.t.Context(), pod, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		s.t.Fatal(err)
	}
	return err == nil
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// pods waits until n pods of app are ready, and returns them.
func (s *space) pods(app string, n int) []corev1.Pod {
	s.t.Helper()
	return s.podsOf("app="+app, n)
}

// podsOf waits until all pods that selector finds are ready and n in number.
func (s *space) podsOf(selector string, n int) (all []corev1.Pod) {
	s.t.Helper()
	eventually(s.t, podsWithin, fmt.Sprintf("%d pods of %s ready", n, selector), func() bool {
		list, err := s.client.CoreV1().Pods(s.name).List(s.t.Context(), metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			s.t.Fatal(err)
		}
		all = nil
		for _, p := range list.Items {
			if podReady(&p) {
				all = append(all, p)
			}
		}
		return len(all) == n && len(list.Items) == n
	})
	return all
}

// exec runs etool in a pod and returns what it wrote to standard output.
func (s *space) exec(pod string, args ...string) (string, error) {
	return s.execIn(s.t.Context(), s.name, pod, append([]string{"/bin/etool"}, args...)...)
}

// execIn runs argv in the first container of a pod.
func (c *cluster) execIn(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
	req := c.client.CoreV1().RESTClient().Get().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	x, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var out, text bytes.Buffer
	if err := x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &text}); err != nil {
		return out.String(), fmt.Errorf("exec in %s: %q: %w: %s", pod, argv, err, &text)
	}
	return out.String(), nil
}

// A result is what `etool probe` says of a URL.
type result struct {
	URL, Error, Text string
	Took             time.Duration
}

// An answer is what `etool serve` says to GET.
type answer struct{ Host, Remote string }

// probe tries URLs from a pod. All have to answer.
func (s *space) probe(pod string, urls ...string) []result {
	s.t.Helper()
	list := s.try(pod, urls...)
	for _, r := range list {
		if r.Error != "" {
			s.t.Errorf("from %s: %s: %s", pod, r.URL, r.Error)
		}
	}
	return list
}

// try tries URLs from a pod. It may be called on any goroutine.
func (s *space) try(pod string, urls ...string) []result {
	s.t.Helper()
	list := make([]result, 0, len(urls))
	out, err := s.exec(pod, append([]string{"probe"}, urls...)...)
	for dec := json.NewDecoder(strings.NewReader(out)); err == nil && dec.More(); {
		var r result
		if err = dec.Decode(&r); err == nil {
			list = append(list, r)
		}
	}
	if err == nil && len(list) != len(urls) {
		err = fmt.Errorf("from %s: %d answers", pod, len(list))
	}
	if err != nil {
		s.t.Error(err)
		list = list[:0]
		for _, u := range urls {
			list = append(list, result{URL: u, Error: err.Error()})
		}
	}
	return list
}

// hosts are the names of those that answered probes of HTTP.
func hosts(t testing.TB, list []result) map[string]int {
	t.Helper()
	count := map[string]int{}
	for _, r := range list {
		if r.Error != "" {
			continue
		}
		var a answer
		if err := json.Unmarshal([]byte(r.Text), &a); err != nil {
			t.Fatal(err)
		}
		count[a.Host]++
	}
	return count
}
