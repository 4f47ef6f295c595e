package kubelab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// An authority signs the certificates of one lab.
type authority struct {
	dir  string // where they are written, with their keys
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	tmpl := template("lab-ca")
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := keyPEM(a.key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.file("ca.key"), key, 0o600); err != nil {
		return nil, err
	}
	return a, os.WriteFile(a.file("ca.crt"), a.pem, 0o600)
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func template(name string, groups ...string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(0, 1, 0),
	}
}

// A subject is whom a certificate is for.
type subject struct {
	file   string // <file>.crt and <file>.key
	name   string
	groups []string
	names  []string
	addrs  []netip.Addr
}

// issue writes a certificate for client and server use, and its key.
func (a *authority) issue(s subject) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := template(s.name, s.groups...)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	tmpl.DNSNames = s.names
	for _, addr := range s.addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if key, err = keyPEM(k); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(a.file(s.file+".crt"), cert, 0o600); err != nil {
		return nil, nil, err
	}
	return cert, key, os.WriteFile(a.file(s.file+".key"), key, 0o600)
}

func keyPEM(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// signer writes the key pair of service account tokens: sa.key and sa.pub.
func (a *authority) signer() error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := keyPEM(k)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return err
	}
	pub := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(a.file("sa.pub"), pub, 0o600); err != nil {
		return err
	}
	return os.WriteFile(a.file("sa.key"), key, 0o600)
}

// kubeconfig writes <file>.kubeconfig for a subject, with all that it needs
// inside.
func (a *authority) kubeconfig(server string, s subject) error {
	cert, key, err := a.issue(s)
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: %[1]s}}]
clusters: [{name: lab, cluster: {server: %[2]q, certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {client-certificate-data: %[4]s, client-key-data: %[5]s}}]
`, s.file, server, b64(a.pem), b64(cert), b64(key))
	return os.WriteFile(a.file(s.file+".kubeconfig"), []byte(text), 0o600)
}

// openAuthority reads an authority that newAuthority wrote.
func openAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	var err error
	if a.pem, err = os.ReadFile(a.file("ca.crt")); err != nil {
		return nil, err
	}
	key, err := os.ReadFile(a.file("ca.key"))
	if err != nil {
		return nil, err
	}
	cert, _ := pem.Decode(a.pem)
	k, _ := pem.Decode(key)
	if cert == nil || k == nil {
		return nil, fmt.Errorf("%s holds no certificate and key", dir)
	}
	if a.cert, err = x509.ParseCertificate(cert.Bytes); err != nil {
		return nil, err
	}
	a.key, err = x509.ParseECPrivateKey(k.Bytes)
	return a, err
}
