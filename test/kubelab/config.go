package kubelab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Addresses of a lab: of the underlay those that nobody has (RFC 5737, RFC 3849).
const (
	controlIP  = "192.0.2.1" // API server and etcd, on the underlay's bridge
	controlIP6 = "2001:db8::1"
	apiServer  = "https://" + controlIP + ":6443"

	// EtcdURL is where the nodes reach the control plane's etcd, with the files of
	// EtcdFiles.
	EtcdURL = "https://" + controlIP + ":2379"

	// PodCIDR and PodCIDR6 are the cluster's pod networks; each node has a /24
	// and a /64 of them.
	PodCIDR  = "10.244.0.0/16"
	PodCIDR6 = "fd00:10:244::/56"

	serviceCIDR = "10.96.0.0/16,fd00:10:96::/112"
	serviceIP   = "10.96.0.1" // of the Service kubernetes

	// DNSService is the address of the cluster's DNS.
	DNSService = "10.96.0.10"
)

func (l *Lab) bin(name string) string { return filepath.Join(l.Dir, "bin", name) }

// pki is a file of the certificates' folder.
func (l *Lab) pki(name string) string { return filepath.Join(l.Dir, "pki", name) }

// EtcdFiles are what a client of the control plane's etcd needs.
func (l *Lab) EtcdFiles() (ca, cert, key string) {
	return l.pki("ca.crt"), l.pki("etcd-client.crt"), l.pki("etcd-client.key")
}

// certify writes the control plane's certificates and kubeconfigs.
func (l *Lab) certify(a *authority) error {
	if err := a.signer(); err != nil {
		return err
	}
	masters := []string{"system:masters"}
	for _, s := range []subject{
		{file: "apiserver", name: "kube-apiserver",
			names: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"},
			addrs: []netip.Addr{netip.MustParseAddr(controlIP), netip.MustParseAddr(serviceIP), netip.MustParseAddr("127.0.0.1")}},
		{file: "etcd", name: "etcd", addrs: []netip.Addr{netip.MustParseAddr(controlIP)}},
		{file: "etcd-client", name: "overlayd"},
		{file: "kubelet-client", name: "kube-apiserver-kubelet-client", groups: masters},
	} {
		if _, _, err := a.issue(s); err != nil {
			return err
		}
	}
	for _, s := range []subject{
		{file: "admin", name: "admin", groups: masters},
		{file: "manager", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
		{file: "proxy", name: "system:kube-proxy"},
	} {
		if err := a.kubeconfig(apiServer, s); err != nil {
			return err
		}
	}
	return nil
}

// AuditLog is where the API server writes which requests the users of
// Options.Audit made: a JSON object a line.
// https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/
func (l *Lab) AuditLog() string { return filepath.Join(l.Dir, "audit.log") }

func (l *Lab) auditPolicy() string { return filepath.Join(l.Dir, "audit-policy.json") }

func (l *Lab) writeAuditPolicy() error {
	rules := []map[string]any{{"level": "None"}}
	if len(l.audited) > 0 { // a rule without users is for all
		rules = append([]map[string]any{{"level": "Metadata", "users": l.audited}}, rules...)
	}
	b, err := json.Marshal(map[string]any{
		"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": []string{"RequestReceived"}, "rules": rules,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(l.auditPolicy(), b, 0o644)
}

// controlUnits is what the control plane runs.
func (l *Lab) controlUnits() []Unit {
	data := filepath.Join(l.Dir, "control", "etcd")
	ready := "https://127.0.0.1:6443/readyz"
	manager, scheduler := l.pki("manager.kubeconfig"), l.pki("scheduler.kubeconfig")
	return []Unit{
		{Name: "etcd", Argv: []string{l.bin("etcd"), "--data-dir", data, "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-client-urls", "http://127.0.0.1:2379," + EtcdURL, "--advertise-client-urls", EtcdURL,
			"--cert-file", l.pki("etcd.crt"), "--key-file", l.pki("etcd.key"),
			"--trusted-ca-file", l.pki("ca.crt"), "--client-cert-auth",
			"--listen-peer-urls", "http://127.0.0.1:2380"}},
		{Name: "apiserver", Argv: []string{l.bin("kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379",
			"--advertise-address", controlIP, "--bind-address", "0.0.0.0", "--secure-port", "6443",
			"--service-cluster-ip-range", serviceCIDR, "--allow-privileged", "--authorization-mode", "Node,RBAC",
			"--client-ca-file", l.pki("ca.crt"), "--tls-cert-file", l.pki("apiserver.crt"), "--tls-private-key-file", l.pki("apiserver.key"),
			"--kubelet-client-certificate", l.pki("kubelet-client.crt"), "--kubelet-client-key", l.pki("kubelet-client.key"),
			"--kubelet-preferred-address-types", "InternalIP",
			"--service-account-key-file", l.pki("sa.pub"), "--service-account-signing-key-file", l.pki("sa.key"),
			"--service-account-issuer", "https://kubernetes.default.svc",
			"--audit-policy-file", l.auditPolicy(), "--audit-log-path", l.AuditLog(), "--audit-log-mode", "blocking",
			"--enable-admission-plugins", "NodeRestriction", "--event-ttl", "30m", "--profiling=false"}},
		{Name: "manager", Await: ready, Argv: []string{l.bin("kube-controller-manager"),
			"--kubeconfig", manager, "--authentication-kubeconfig", manager, "--authorization-kubeconfig", manager,
			"--service-account-private-key-file", l.pki("sa.key"), "--root-ca-file", l.pki("ca.crt"),
			"--use-service-account-credentials", "--leader-elect=false", "--bind-address", "127.0.0.1",
			// Its own limit of 20 requests a second makes a start of 10 pods 6 s longer.
			"--kube-api-qps", "500", "--kube-api-burst", "1000",
			"--allocate-node-cidrs", "--cluster-cidr", PodCIDR + "," + PodCIDR6, "--service-cluster-ip-range", serviceCIDR,
			"--node-monitor-grace-period", "20s"}},
		{Name: "scheduler", Await: ready, Argv: []string{l.bin("kube-scheduler"),
			"--kubeconfig", scheduler, "--authentication-kubeconfig", scheduler, "--authorization-kubeconfig", scheduler,
			"--leader-elect=false", "--bind-address", "127.0.0.1"}},
	}
}

// units is what a node runs.
func (n *Node) units() []Unit {
	l := n.lab
	path := []string{"PATH=" + filepath.Join(l.Dir, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	list := []Unit{{Name: "containerd", Env: path, Argv: []string{l.bin("containerd"), "--config", "/etc/containerd/config.toml"}}}
	for i, image := range l.images {
		list = append(list, Unit{Name: fmt.Sprintf("import%d", i), Once: true, Argv: n.importing(image)})
	}
	return append(list,
		Unit{Name: "kubelet", Env: path, Argv: []string{l.bin("kubelet"), "--config", "/etc/kubernetes/kubelet.yaml",
			"--kubeconfig", l.pki(n.Name + ".kubeconfig"), "--node-ip", n.Addr.String() + "," + n.Addr6.String(),
			"--hostname-override", n.Name, "--root-dir", "/var/lib/kubelet", "--v=2"}},
		Unit{Name: "kube-proxy", Env: path, Argv: []string{l.bin("kube-proxy"), "--config", "/etc/kubernetes/kube-proxy.yaml", "--v=2"}},
	)
}

// importing is the command that gives the node an image.
func (n *Node) importing(archive string) []string {
	return []string{n.lab.bin("ctr"), "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io", "images", "import", archive}
}

// files is what a node finds in /etc.
func (n *Node) files() map[string]string {
	kubelet := strings.ReplaceAll(kubeletConfig, "@CA@", n.lab.pki("ca.crt"))
	if n.lab.taint != "" {
		kubelet += "registerWithTaints: [{key: " + n.lab.taint + ", effect: NoSchedule}]\n"
	}
	return map[string]string{
		"/etc/hostname":                   n.Name + "\n",
		"/etc/hosts":                      fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", n.Addr, n.Name),
		"/etc/resolv.conf":                "nameserver " + DNSService + "\n",
		"/etc/containerd/config.toml":     containerdConfig,
		"/etc/kubernetes/kubelet.yaml":    kubelet,
		"/etc/kubernetes/kube-proxy.yaml": fmt.Sprintf(proxyConfig, n.lab.pki("proxy.kubeconfig"), n.Proxy, PodCIDR+","+PodCIDR6, n.Name, n.Addr),
	}
}

// kubeletConfig differs from a usual one in what this machine cannot give: a
// file system that the kubelet knows the size of, and cgroup v2.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: @CA@}}
authorization: {mode: Webhook}
clusterDNS: [` + DNSService + `]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
fileCheckFrequency: 5s
httpCheckFrequency: 5s
shutdownGracePeriod: 0s
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 500
kubeAPIBurst: 1000
maxPods: 250
oomScoreAdj: 0
maxOpenFiles: 20000
`

// Without CAP_SYS_RESOURCE, as in a container, no process may be made dearer to
// the kernel than it is: restrict_oom_score_adj.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "` + PauseImage + `"

[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    use_internal_loopback = true
`

// The limits of connection tracking are the whole machine's: 0 leaves them.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
mode: %s
clusterCIDR: %q
hostnameOverride: %s
bindAddress: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
