// Package apitest runs a real kube-apiserver, and the etcd that it needs, as
// processes of the test.
//
// Both are one program, which is in ../k8s: minutes the first time on a machine,
// then a second.
package apitest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/test/program"
)

const (
	// startTimeout is how long a server may take until it serves: an apiserver
	// alone needs 4 s.
	startTimeout = 2 * time.Minute

	admin = "admin" // user that may do everything
)

// A Server is a running API server with its etcd, or one that can be started
// again.
type Server struct {
	dir     string
	program string
	etcd    process
	api     process
	host    string // a loopback address of its own
	port    string
	client  *http.Client
}

// Program builds the control plane and returns the path of the executable.
func Program(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		began := time.Now()
		var module string
		if module, built.err = program.Module(); built.err == nil {
			built.path, built.err = program.Path(context.Background(), filepath.Join(module, "k8s"), ".")
		}
		if took := time.Since(began); took > 10*time.Second {
			fmt.Fprintf(os.Stderr, "built kube-apiserver in %s\n", took.Round(time.Second))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

var built struct {
	once sync.Once
	path string
	err  error
}

// New runs an API server on a free loopback port until the test ends. Flags are
// added to its own.
func New(t testing.TB, flags ...string) *Server {
	t.Helper()
	s := &Server{dir: t.TempDir(), program: Program(t), client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it signed its certificate itself, on loopback
	}}}
	t.Cleanup(func() {
		s.api.stop()
		s.etcd.stop()
		if t.Failed() {
			t.Logf("kube-apiserver said last:\n%s", s.api.tail())
		}
	})
	if err := s.prepare(flags); err != nil {
		t.Fatal(err)
	}
	if err := s.startEtcd(); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	return s
}

// prepare writes the files that the servers need and chooses their addresses.
func (s *Server) prepare(flags []string) error {
	// Between this choice and the servers' start a port of 127.0.0.1 may become
	// the source of somebody's connection. Nobody connects from 127.x.y.z.
	s.host = fmt.Sprintf("127.%d.%d.%d", 1+mathrand.N(254), mathrand.N(256), 1+mathrand.N(254))
	ports := make([]string, 3)
	for i := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(s.host, "0"))
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }() // all are held until all are known
		_, ports[i], _ = net.SplitHostPort(l.Addr().String())
	}
	s.port = ports[0]
	etcd, peer := "http://"+s.host+":"+ports[1], "http://"+s.host+":"+ports[2]
	key, public, err := signingKey()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"sa.key": key, "sa.pub": public, "tokens.csv": token(admin) + "," + admin + "," + admin + ",system:masters\n",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	s.etcd = process{dir: s.dir, args: []string{s.program, "etcd",
		"--data-dir", filepath.Join(s.dir, "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		"--heartbeat-interval", "10", "--election-timeout", "100", "--unsafe-no-fsync", "--log-level", "error"}}
	s.api = process{dir: s.dir, args: append([]string{s.program, "kube-apiserver",
		"--etcd-servers", etcd, "--bind-address", s.host, "--secure-port", s.port,
		"--cert-dir", filepath.Join(s.dir, "cert"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-key-file", filepath.Join(s.dir, "sa.pub"), "--service-account-signing-key-file", filepath.Join(s.dir, "sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--authorization-mode", "RBAC",
		"--token-auth-file", filepath.Join(s.dir, "tokens.csv"),
		"--disable-admission-plugins", "ServiceAccount,NamespaceLifecycle",
		"--endpoint-reconciler-type", "none", "--profiling=false", "-v", "0"}, flags...)}
	return nil
}

func signingKey() (private, public string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", "", err
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})), nil
}

func token(user string) string { return "token-of-" + user }

func (s *Server) startEtcd() error { return s.etcd.start() }

// Start runs the API server again, after Stop, and waits until it is ready.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.api.start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		if s.ready() {
			return
		}
		select {
		case <-s.api.done:
			t.Fatalf("kube-apiserver has ended:\n%s", s.api.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("kube-apiserver is not ready after %s:\n%s", startTimeout, s.api.tail())
}

// Stop kills the API server. Its data, in etcd, and its address stay.
func (s *Server) Stop() { s.api.stop() }

// Wipe loses everything, as with a new etcd: revisions begin at 1 again. The
// API server comes back empty.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	s.api.stop()
	s.etcd.stop()
	if err := os.RemoveAll(filepath.Join(s.dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if err := s.startEtcd(); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

// URL is the server's address.
func (s *Server) URL() string { return "https://" + s.host + ":" + s.port }

// Reachable says whether the server runs and is ready.
func (s *Server) Reachable() bool { return s.ready() }

func (s *Server) ready() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	// The hook that makes the RBAC roles is what takes longest.
	code, _, err := s.do(ctx, http.MethodGet, "/readyz", nil)
	return err == nil && code == http.StatusOK
}

// Do sends a request as the administrator and decodes the answer into out,
// unless that is nil. It returns the status, which is below 400 or 404. A PATCH
// is a merge patch.
func (s *Server) Do(t testing.TB, method, path string, body, out any) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	code, data, err := s.do(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if code >= 400 && code != http.StatusNotFound {
		t.Fatalf("%s %s: %d %s", method, path, code, data)
	}
	if out != nil && code < 400 {
		if err := json.Unmarshal(data, out); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, data)
		}
	}
	return code
}

func (s *Server) do(ctx context.Context, method, path string, body any) (int, []byte, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL()+path, bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token(admin))
	kind := "application/json"
	if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	req.Header.Set("Content-Type", kind)
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

// Kubeconfig writes the file of a user; of the administrator if empty. Another
// user has the rights that RBAC objects give him, by impersonation.
func (s *Server) Kubeconfig(t testing.TB, user string) string {
	t.Helper()
	as := ""
	if user != "" {
		as = `"as":"` + user + `",`
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{%s"token":%q}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`, s.URL(), as, token(admin))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A process is a child that dies with the test.
type process struct {
	dir  string
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  string
}

func (p *process) start() error {
	p.log = filepath.Join(p.dir, p.args[1]+".log")
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Dir = p.dir
	done := make(chan struct{})
	p.done = done
	started := make(chan error)
	// Pdeathsig goes by the thread that started the child, not by the process:
	// it has to live as long.
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
		close(done)
	}()
	return <-started
}

// stop kills the process. Stopping it twice is fine.
func (p *process) stop() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail is what the process wrote last.
func (p *process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(data[max(0, len(data)-most):])
}
