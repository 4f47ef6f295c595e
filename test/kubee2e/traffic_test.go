package kubee2e

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// manyPods is how many pods the tests of traffic run.
const manyPods = 30

func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// testPairs: every pod reaches every other one, by each family that it has, and
// is seen under its own address.
func testPairs(t *testing.T) {
	c := open(t)
	s := c.space(t)
	began := time.Now()
	s.deployment("web", manyPods, server())
	pods := s.pods("web", manyPods)
	t.Logf("figure: %d pods applied → Ready: %s", manyPods, time.Since(began).Round(100*time.Millisecond))
	byNode := map[string]int{}
	for _, p := range pods {
		byNode[p.Spec.NodeName]++
	}
	if nodes := len(c.nodes(t)); len(byNode) != nodes {
		t.Errorf("pods are on %d nodes, want %d: %v", len(byNode), nodes, byNode)
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, from := range pods {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			s.reachAll(from, pods)
		})
	}
	all.Wait()
}

// reachAll probes every pod from one.
func (s *space) reachAll(from corev1.Pod, pods []corev1.Pod) {
	var urls, names []string
	for _, to := range pods {
		for _, ip := range to.Status.PodIPs {
			urls = append(urls, "http://"+at(ip.IP, httpPort)+"/", "udp://"+at(ip.IP, udpPort))
			names = append(names, to.Name, "")
		}
	}
	list := s.probe(from.Name, urls...)
	var own []string
	for _, ip := range from.Status.PodIPs {
		own = append(own, ip.IP)
	}
	for i, r := range list {
		if names[i] == "" || r.Error != "" {
			continue
		}
		var a answer
		if err := json.Unmarshal([]byte(r.Text), &a); err != nil {
			s.t.Errorf("%s: %v", r.URL, err)
		}
		if a.Host != names[i] {
			s.t.Errorf("%s at %s is %s, want %s", from.Name, r.URL, a.Host, names[i])
		}
		// A node has many addresses; the route chooses.
		if !from.Spec.HostNetwork && a.Host != from.Name && !slices.Contains(own, a.Remote) {
			s.t.Errorf("%s reaches %s as %s, want one of %v", from.Name, names[i], a.Remote, own)
		}
	}
}

// testLargePackets: what does not fit into one packet arrives as well.
func testLargePackets(t *testing.T) {
	c := open(t)
	s := c.space(t)
	from, to := s.two(server())
	for _, ip := range to.Status.PodIPs {
		s.probe(from.Name,
			"tcp://"+at(ip.IP, tcpPort)+"?size=1000000",
			"udp://"+at(ip.IP, udpPort)+"?size=1400",
			"udp://"+at(ip.IP, udpPort)+"?size=8000")
	}
}

// two runs two pods on different nodes.
func (s *space) two(c corev1.Container) (a, b corev1.Pod) {
	s.t.Helper()
	nodes := s.nodes(s.t)
	if len(nodes) < 2 {
		s.t.Fatalf("%d nodes, want 2 or more", len(nodes))
	}
	s.pod("a", nodes[0].Name, c, nil)
	s.pod("b", nodes[1].Name, c, nil)
	return s.pods("a", 1)[0], s.pods("b", 1)[0]
}

// testNodeToPod: the network of every node reaches every pod, and pods reach
// every node. Pods with the node's network stand for the node.
func testNodeToPod(t *testing.T) {
	c := open(t)
	s := c.space(t)
	nodes := c.nodes(t)
	var pods, hosts []corev1.Pod
	for i, n := range nodes {
		s.pod(fmt.Sprint("pod", i), n.Name, server(), nil)
		s.pod(fmt.Sprint("host", i), n.Name, server(), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	}
	for i := range nodes {
		pods = append(pods, s.pods(fmt.Sprint("pod", i), 1)...)
		hosts = append(hosts, s.pods(fmt.Sprint("host", i), 1)...)
	}
	for _, from := range hosts {
		s.reachAll(from, pods)
	}
	for _, from := range pods {
		var urls []string
		for _, to := range hosts {
			urls = append(urls, "http://"+at(to.Status.HostIP, httpPort)+"/", "udp://"+at(to.Status.HostIP, udpPort))
		}
		s.probe(from.Name, urls...)
	}
}

// testServices: ClusterIP, NodePort and headless, from pods and from nodes, by
// both families, whatever mode kube-proxy is in.
func testServices(t *testing.T) {
	c := open(t)
	s := c.space(t)
	nodes := c.nodes(t)
	s.deployment("web", int32(2*len(nodes)), server())
	dual := corev1.IPFamilyPolicyPreferDualStack
	web := s.service("web", "web", func(v *corev1.Service) {
		v.Spec.Type, v.Spec.IPFamilyPolicy = corev1.ServiceTypeNodePort, &dual
	})
	for i, n := range nodes {
		s.pod(fmt.Sprint("client", i), n.Name, server(), nil)
		s.pod(fmt.Sprint("node", i), n.Name, server(), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	}
	pods := s.pods("web", 2*len(nodes))
	var clients []corev1.Pod
	for i := range nodes {
		clients = append(clients, s.pods(fmt.Sprint("client", i), 1)[0], s.pods(fmt.Sprint("node", i), 1)[0])
	}
	var urls []string
	for _, ip := range web.Spec.ClusterIPs {
		// Enough that no endpoint is missed: of 6, one in 60,000 runs.
		for range 60 {
			urls = append(urls, "http://"+at(ip, 80)+"/")
		}
		urls = append(urls, "tcp://"+at(ip, tcpPort), "udp://"+at(ip, udpPort))
	}
	var nodePorts []string
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				nodePorts = append(nodePorts, "http://"+at(a.Address, int(web.Spec.Ports[0].NodePort))+"/")
			}
		}
	}
	settle(s, clients, urls[0])
	for _, from := range clients {
		// kube-proxy hears of endpoints one after the other.
		eventually(t, time.Minute, fmt.Sprintf("from %s the Service leads to all %d pods", from.Name, len(pods)), func() bool {
			return len(hosts(t, httpOnly(s.probe(from.Name, urls...)))) == len(pods)
		})
		s.probe(from.Name, nodePorts...)
	}
}

// settle waits until kube-proxy of every client's node knows the Service.
func settle(s *space, clients []corev1.Pod, url string) {
	s.t.Helper()
	for _, from := range clients {
		eventually(s.t, time.Minute, url+" from "+from.Name, func() bool { return s.try(from.Name, url)[0].Error == "" })
	}
}

func httpOnly(list []result) []result {
	return slices.DeleteFunc(slices.Clone(list), func(r result) bool { return r.URL[:5] != "http:" })
}

// testHairpin: a pod reaches itself by its own Service.
func testHairpin(t *testing.T) {
	c := open(t)
	s := c.space(t)
	for i, n := range c.nodes(t) {
		app := fmt.Sprint("self", i)
		s.pod(app, n.Name, server(), nil)
		v := s.service(app, app, nil)
		p := s.pods(app, 1)[0]
		url := "http://" + at(v.Spec.ClusterIP, 80) + "/"
		settle(s, []corev1.Pod{p}, url)
		if got := hosts(t, s.probe(p.Name, url, url, url)); got[app] != 3 {
			t.Errorf("on %s: %v, want itself", n.Name, got)
		}
	}
}

// testHostPort: a port of the node leads to the pod, from other nodes, from the
// node itself and from pods; and no longer when the pod is gone.
func testHostPort(t *testing.T) {
	c := open(t)
	s := c.space(t)
	nodes := c.nodes(t)
	const port = 9090
	h := server()
	h.Ports = []corev1.ContainerPort{{ContainerPort: httpPort, HostPort: port}}
	s.pod("ported", nodes[0].Name, h, nil)
	ported := s.pods("ported", 1)[0]
	var clients []corev1.Pod
	for i, n := range nodes {
		s.pod(fmt.Sprint("pod", i), n.Name, server(), nil)
		s.pod(fmt.Sprint("node", i), n.Name, server(), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
		clients = append(clients, s.pods(fmt.Sprint("pod", i), 1)[0], s.pods(fmt.Sprint("node", i), 1)[0])
	}
	url := "http://" + at(ported.Status.HostIP, port) + "/"
	for _, from := range clients {
		if got := hosts(t, s.probe(from.Name, url)); got["ported"] != 1 {
			t.Errorf("from %s: %v, want the pod", from.Name, got)
		}
	}
	s.delete("ported")
	eventually(t, time.Minute, "the port closed", func() bool { return s.try(clients[3].Name, url)[0].Error != "" })
}

// testBandwidth: the annotations of the plugin bandwidth hold in both
// directions.
func testBandwidth(t *testing.T) {
	c := open(t)
	s := c.space(t)
	const limit = 20e6 // bits per second
	nodes := c.nodes(t)
	s.pod("free", nodes[0].Name, server(), nil)
	s.pod("slow", nodes[1].Name, server(), func(p *corev1.Pod) {
		p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "20M"}
	})
	free, slow := s.pods("free", 1)[0], s.pods("slow", 1)[0]
	var both sync.WaitGroup
	for _, way := range []struct{ from, to corev1.Pod }{{free, slow}, {slow, free}} {
		both.Go(func() {
			out, err := s.exec(way.from.Name, "push", "3", at(way.to.Status.PodIP, sinkPort))
			var rate float64
			if err == nil {
				_, err = fmt.Sscan(out, &rate)
			}
			// The token bucket's burst and the sockets' buffers come on top.
			if err != nil || rate > 2*limit || rate < limit/10 {
				t.Errorf("%s → %s: %.1f Mb/s, %v, want about %.0f", way.from.Name, way.to.Name, rate/1e6, err, limit/1e6)
			}
		})
	}
	both.Wait()
}

// delete deletes a pod and waits until it is gone.
func (s *space) delete(name string) {
	s.t.Helper()
	if err := s.client.CoreV1().Pods(s.name).Delete(s.t.Context(), name, deleteNow); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, podsWithin, name+" gone", func() bool { return !s.exists(name) })
}
