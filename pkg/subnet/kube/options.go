package kube

import (
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

const (
	// DefaultAnnotationPrefix is flannel's.
	DefaultAnnotationPrefix = "flannel.alpha.coreos.com"

	// DefaultConfigPath is where the network's configuration is mounted.
	DefaultConfigPath = "/etc/vxlan-cni/net-conf.json"
)

// Options say which API server, and where things are in it.
type Options struct {
	// Kubeconfig is a file, and APIURL a server such as https://192.0.2.1:6443
	// that counts more than the file's. Without both it is the service account
	// of the pod.
	Kubeconfig, APIURL string

	// AnnotationPrefix is put before the annotations' names, as flannel does:
	// "example.com" means example.com/backend-type, "example.com/net" means
	// example.com/net-backend-type. DefaultAnnotationPrefix if empty.
	AnnotationPrefix string

	ConfigPath string // file of the network's configuration, DefaultConfigPath if empty

	// StartupTaint is the key of the taint that Announce takes from the Node,
	// whatever its effect. None if empty.
	StartupTaint string

	Log *slog.Logger // discarded if nil
}

// complete fills in what was not given, and checks the rest. Errors name the
// field.
func (o Options) complete() (Options, error) {
	if o.AnnotationPrefix == "" {
		o.AnnotationPrefix = DefaultAnnotationPrefix
	}
	if o.ConfigPath == "" {
		o.ConfigPath = DefaultConfigPath
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.APIURL != "" {
		u, err := url.Parse(o.APIURL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
			return o, fmt.Errorf("kube: APIURL %q: want a URL such as https://192.0.2.1:6443", o.APIURL)
		}
	}
	if o.StartupTaint != "" && !qualifiedName.MatchString(o.StartupTaint) {
		return o, fmt.Errorf("kube: StartupTaint %q: want the key of a taint, such as node.example.com/overlay-not-ready", o.StartupTaint)
	}
	var err error
	o.AnnotationPrefix, err = fullPrefix(o.AnnotationPrefix)
	return o, err
}

var (
	qualifiedName = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)

	// Flannel 0.28, pkg/subnet/kube/annotations.go, but matched as a whole and
	// with what Kubernetes refuses left out.
	annotationPrefix = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]*[a-z0-9])?/([a-z0-9][-a-z0-9_]*-)?$`)
)

// fullPrefix makes what can stand before a name: ends in a slash, or in a dash
// after one.
func fullPrefix(p string) (string, error) {
	full := p
	if !strings.Contains(full, "/") {
		full += "/"
	}
	if !strings.HasSuffix(full, "/") && !strings.HasSuffix(full, "-") {
		full += "-"
	}
	if !annotationPrefix.MatchString(full) {
		return p, fmt.Errorf("kube: AnnotationPrefix %q: want a domain such as %s, or one with a slash and a word after it", p, DefaultAnnotationPrefix)
	}
	return full, nil
}

// connect makes a client for Nodes. It does not talk to the server.
func (o Options) connect(d *outage.Dialer) (*rest.RESTClient, runtime.ParameterCodec, error) {
	var c *rest.Config
	var err error
	if o.Kubeconfig == "" && o.APIURL == "" {
		c, err = rest.InClusterConfig()
	} else {
		c, err = clientcmd.BuildConfigFromFlags(o.APIURL, o.Kubeconfig)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("kube: Kubeconfig %q, APIURL %q: %w", o.Kubeconfig, o.APIURL, err)
	}
	scheme := newScheme()
	c.APIPath = "/api"
	c.GroupVersion = &version
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeJSON
	c.AcceptContentTypes = runtime.ContentTypeJSON // the fields that node leaves out are never built
	c.WarningHandler = rest.NoWarnings{}
	c.UserAgent = "overlayd"
	c.Dial = d.DialContext
	c.Timeout = 0 // would end watches; requests have their own
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, nil, fmt.Errorf("kube: Kubeconfig %q, APIURL %q: %w", o.Kubeconfig, o.APIURL, err)
	}
	return client, runtime.NewParameterCodec(scheme), nil
}

// requestTimeout is for one request that is not a watch.
const requestTimeout = 10 * time.Second
