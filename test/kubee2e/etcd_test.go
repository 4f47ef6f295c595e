package kubee2e

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vxlan-cni/vxlan-cni/test/kubelab"
)

// testEtcdStore: the same with leases in etcd, by TLS, and the Helm chart. It begins
// on nodes that have nothing.
func testEtcdStore(t *testing.T) {
	c := open(t)
	nodes := c.nodes(t)
	node(t, nodes[0].Name) // skips elsewhere
	ca, cert, key := lab.EtcdFiles()
	putNetwork(t, ca, cert, key)
	data := map[string][]byte{}
	for name, path := range map[string]string{"ca.crt": ca, "tls.crt": cert, "tls.key": key} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[name] = b
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "vxlan-cni-etcd"}, Data: data}
	if _, err := c.client.CoreV1().Secrets(system).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	install := chart(t, map[string]any{
		"store": "etcd",
		"etcd":  map[string]any{"endpoints": []string{kubelab.EtcdURL}, "tlsSecret": secret.Name},
	})
	const config = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"vxlan-cni-uninstall","namespace":"` + system + `"},` +
		`"data":{"endpoints":"` + kubelab.EtcdURL + `"}}`
	remove := overlay(t, "uninstall/etcd", "patches:\n- patch: |\n    "+config+"\n")
	began := time.Now()
	kubectl(t, "apply", "-f", install)
	c.allReady(t)
	t.Logf("figure: manifest applied → all nodes Ready, etcd store: %s", time.Since(began).Round(100*time.Millisecond))
	s := c.space(t)
	s.deployment("web", int32(2*len(nodes)), server())
	pods := s.pods("web", 2*len(nodes))
	for _, from := range pods {
		s.reachAll(from, pods)
	}
	s.deleteDeployment("web")
	c.takeOff(t, []string{"-f", install}, []string{"-k", remove})
}

// deleteDeployment deletes a Deployment and waits until its pods are gone.
func (s *space) deleteDeployment(app string) {
	s.t.Helper()
	if err := s.client.AppsV1().Deployments(s.name).Delete(s.t.Context(), app, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, podsWithin, app+" gone", func() bool {
		list, err := s.client.CoreV1().Pods(s.name).List(s.t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		return err == nil && len(list.Items) == 0
	})
}

// putNetwork stores the network's configuration.
func putNetwork(t testing.TB, ca, cert, key string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	e, err := clientv3.New(clientv3.Config{
		Endpoints: []string{kubelab.EtcdURL}, DialTimeout: 20 * time.Second,
		TLS: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if _, err := e.Put(t.Context(), "/coreos.com/network/config", labNetwork); err != nil {
		t.Fatal(err)
	}
}
