package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet/outage"
)

// Reasons of the Events that are this package's own.
const (
	eventNoPodCIDR   = "NoPodCIDR"
	eventAnnotations = "AnnotationsChanged"
)

const (
	// What is reported again within eventSame is counted in the Event that there is.
	eventSame = 10 * time.Minute

	// Of each reason eventBurst Events are written, and then one each eventRest: a
	// node with trouble must not become the API server's.
	eventBurst = 5
	eventRest  = time.Minute

	eventQueue   = 64                      // reports that wait for the API server
	eventRetry   = 5 * time.Second         // until the next attempt to reach it
	eventFlush   = 3 * time.Second         // what Close waits
	eventMessage = 1024                    // bytes, as the API bounds newer Events
	component    = "overlayd"              // as which Events are reported
	eventsOf     = metav1.NamespaceDefault // Nodes have no namespace
)

// An event is the part of a Kubernetes Event that is written. client-go's recorder
// would link the module k8s.io/api; see node.
type event struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Involved  reference   `json:"involvedObject"`
	Source    source      `json:"source"`
	Component string      `json:"reportingComponent"`
	Instance  string      `json:"reportingInstance"`
	Type      string      `json:"type"`
	Reason    string      `json:"reason"`
	Message   string      `json:"message"`
	First     metav1.Time `json:"firstTimestamp"`
	Last      metav1.Time `json:"lastTimestamp"`
	Count     int         `json:"count"`
}

type reference struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Name       string    `json:"name"`
	UID        types.UID `json:"uid"`
}

type source struct {
	Component string `json:"component"`
	Host      string `json:"host"`
}

// A report is what becomes an Event, or counts in one.
type report struct {
	node               string
	kind, reason, text string
	at                 time.Time
}

// same is what two reports share that become one Event.
func (r report) same() report {
	r.at = time.Time{}
	return r
}

// events writes reports as Events on Nodes, one after the other.
type events struct {
	client *client
	log    *slog.Logger

	// Of the writing goroutine alone.
	limits map[string]*rate.Limiter // by reason
	known  map[report]*event        // by report.same

	mu     sync.Mutex // guards what follows
	queue  chan report
	closed bool
	done   chan struct{} // nil as long as there was no report
	cancel context.CancelFunc
}

func newEvents(c *client, log *slog.Logger) *events {
	return &events{
		client: c, log: log, limits: map[string]*rate.Limiter{},
		known: map[report]*event{}, queue: make(chan report, eventQueue),
	}
}

// Report makes an Event on a Node, or counts in one. It returns at once: the Event
// is written as soon as the API server takes it. One that it refuses, or that finds
// too many before it, is dropped.
func (m *Manager) Report(node string, warning bool, reason, text string) {
	kind := "Normal"
	if warning {
		kind = "Warning"
	}
	if len(text) > eventMessage {
		text = strings.ToValidUTF8(text[:eventMessage-len("…")], "") + "…"
	}
	m.events.add(report{node, kind, reason, text, time.Now()})
}

func (e *events) add(r report) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	if e.done == nil {
		ctx, cancel := context.WithCancel(context.Background())
		e.done, e.cancel = make(chan struct{}), cancel
		go e.write(ctx)
	}
	select {
	case e.queue <- r:
	default:
		e.log.Debug("Event dropped, too many wait", "reason", r.reason)
	}
}

// close waits until all is written, or eventFlush.
func (e *events) close() {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	done := e.done
	if first {
		close(e.queue)
	}
	e.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(eventFlush):
	}
	e.cancel()
	<-done
}

// write writes what comes until the queue is closed.
func (e *events) write(ctx context.Context) {
	defer close(e.done)
	for r := range e.queue {
		old := e.known[r.same()]
		if old != nil && r.at.Sub(old.Last.Time) >= eventSame {
			old = nil
		}
		if old != nil { // written now, or with the next one
			old.Count, old.Last = old.Count+1, metav1.NewTime(r.at)
		}
		if !e.allowed(r) {
			e.log.Debug("Event not written, there were many", "reason", r.reason)
			continue
		}
		e.persist(ctx, r, old)
	}
}

// allowed says whether there may be one more request about a report's reason.
func (e *events) allowed(r report) bool {
	l := e.limits[r.reason]
	if l == nil {
		l = rate.NewLimiter(rate.Every(eventRest), eventBurst)
		e.limits[r.reason] = l
	}
	return l.AllowN(r.at, 1)
}

// persist writes a report, as soon as the API server can. What that forbids is
// dropped.
func (e *events) persist(ctx context.Context, r report, old *event) {
	for ctx.Err() == nil {
		err := e.put(ctx, r, old)
		if err == nil {
			return
		}
		var wait *outage.Wait
		if !errors.As(err, &wait) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			e.log.Debug("Event refused", "reason", r.reason, "error", err)
			return
		}
		select {
		case <-time.After(eventRetry):
		case <-ctx.Done():
		}
	}
}

// put makes one attempt to write a report, or the count of the Event that there is.
func (e *events) put(ctx context.Context, r report, old *event) error {
	if old != nil {
		err := e.client.countEvent(ctx, old)
		if !apierrors.IsNotFound(err) { // they are deleted when they are old
			return err
		}
	}
	n := newEvent(r)
	if err := e.client.createEvent(ctx, n); err != nil {
		return err
	}
	e.forget(r.at)
	e.known[r.same()] = n
	return nil
}

// forget drops what can count no more.
func (e *events) forget(now time.Time) {
	for key, old := range e.known {
		if now.Sub(old.Last.Time) >= eventSame {
			delete(e.known, key)
		}
	}
}

func newEvent(r report) *event {
	at := metav1.NewTime(r.at)
	n := &event{
		Involved: reference{"v1", "Node", r.node, types.UID(r.node)}, // kubelet's Events have this uid too
		Source:   source{component, r.node}, Component: component, Instance: r.node,
		Type: r.kind, Reason: r.reason, Message: r.text, First: at, Last: at, Count: 1,
	}
	n.APIVersion, n.Kind = "v1", "Event"
	n.Namespace = eventsOf
	// As client-go names them. The longest name of a Node leaves no room for it.
	name := r.node[:min(len(r.node), 230)]
	n.Name = fmt.Sprintf("%s.%x", strings.TrimRight(name, ".-"), r.at.UnixNano())
	return n
}
