// Package api is what overlayd answers on its Unix socket: the JSON types of
// /v1/…, and a client for them. overlayd and overlayctl share it; it knows
// neither.
package api

import (
	"net/netip"
	"time"
)

// Paths of the socket API. All are GET and answer JSON, except Health and
// Ready (plain text; 200 or 503), Metrics (Prometheus text), and Release, which
// is a POST and exists on the Unix socket alone.
const (
	PathStatus  = "/v1/status"  // Status
	PathPeers   = "/v1/peers"   // []Peer
	PathLeases  = "/v1/leases"  // []Lease, and after them the records that are ignored
	PathPods    = "/v1/pods"    // []Pod
	PathMisses  = "/v1/misses"  // []Miss, newest first
	PathEvents  = "/v1/events"  // []Event, newest first
	PathRelease = "/v1/release" // Release → Released
	PathHealth  = "/healthz"    // 200 while the loop turns
	PathReady   = "/readyz"     // 200 once the own lease is held and the kernel was reconciled
	PathMetrics = "/metrics"

	// PathLeasesExpiry is PathLeases with the end of every lease, for which the
	// store is asked: a request for each. By itself overlayd knows only its own.
	PathLeasesExpiry = PathLeases + "?expiry=1"
)

// SocketName is the socket's name inside the run folder.
const SocketName = "overlayd.sock"

// Status is one node at a glance.
type Status struct {
	Node     string    `json:"node"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	NotReady []string  `json:"notReady,omitempty"` // what is missing, in words
	Warnings []string  `json:"warnings,omitempty"` // what makes pods fail although the node is ready, in words
	Store    Store     `json:"store"`
	Resolve  string    `json:"resolve"` // eager or on-miss
	Lease    Lease     `json:"lease"`
	Underlay Underlay  `json:"underlay"`
	Backend  string    `json:"backend"` // vxlan or host-gw
	Devices  []Device  `json:"devices"` // VXLAN, one per underlay family; none with host-gw
	PodMTU   int       `json:"podMTU"`  // bytes
	Peers    PeerCount `json:"peers"`
	Misses   MissCount `json:"misses"`
	Kernel   Kernel    `json:"kernel"`
	Dropped  Dropped   `json:"dropped"`
	Slots    Slots     `json:"slots"`
}

// Store is where the leases are kept.
type Store struct {
	Kind     string    `json:"kind"` // etcd
	Revision int64     `json:"revision"`
	Snapshot time.Time `json:"snapshot"` // when the newest picture came
	Ignored  []Ignored `json:"ignored,omitempty"`
}

// Ignored is a stored record that was not believed.
type Ignored struct {
	Key      string `json:"key"`
	Reason   string `json:"reason"`
	Conflict bool   `json:"conflict,omitempty"` // it makes sense by itself, but somebody else holds what it names
}

// Underlay is the node's own end of the network that carries the tunnels.
type Underlay struct {
	Interface string       `json:"interface"`
	Addresses []netip.Addr `json:"addresses"` // which other nodes send to, one per family, IPv4 first
	MTU       int          `json:"mtu"`       // bytes
	Reason    string       `json:"reason"`
	Lost      string       `json:"lost,omitempty"` // why it is not to be found now; then the rest is what was
}

// Device is the VXLAN device as the kernel holds it.
type Device struct {
	Name  string     `json:"name"`
	Index int        `json:"index"`
	Up    bool       `json:"up"`
	VNI   uint32     `json:"vni"`
	Port  uint16     `json:"port"`
	Local netip.Addr `json:"local"`
	MAC   string     `json:"mac"`
	MTU   int        `json:"mtu"` // bytes
}

// PeerCount says how many peers are leased and for how many the kernel holds
// all that was asked for.
type PeerCount struct {
	Total  int `json:"total"`
	InSync int `json:"inSync"`
}

// MissCount counts L2MISS and L3MISS notifications since the start.
type MissCount struct {
	Received uint64 `json:"received"`
	Answered uint64 `json:"answered"` // by setting entries
	Unknown  uint64 `json:"unknown"`  // asked for what no lease names
	Overruns uint64 `json:"overruns"` // ENOBUFS: some were lost, everything was reconciled
}

// Kernel counts what was written to the kernel since the start.
type Kernel struct {
	Operations uint64    `json:"operations"`
	Errors     uint64    `json:"errors"`
	Reconciles uint64    `json:"reconciles"`
	Foreign    uint64    `json:"foreign"` // changes by others that were undone
	Last       time.Time `json:"last"`    // last completed reconcile
	LastError  string    `json:"lastError,omitempty"`
}

// Dropped counts what the node's rules dropped since they were made.
type Dropped struct {
	VXLAN   uint64 `json:"vxlan"`   // packets of underlay addresses that no peer has
	Spoofed uint64 `json:"spoofed"` // frames of pods with a MAC or address that is not theirs

	Error string `json:"error,omitempty"` // why they cannot be counted
}

// Slots counts the node's pod addresses.
type Slots struct {
	Total   int `json:"total"`
	Held    int `json:"held"`
	Resting int `json:"resting"` // released less than the rest time ago

	Error string `json:"error,omitempty"` // why they cannot be counted
}

// Lease is one record of the store. One that is ignored has a reason, a key, and
// subnets if the key says some, and nothing else.
type Lease struct {
	Node     string         `json:"node"`
	Subnets  []netip.Prefix `json:"subnets"`
	VTEPs    []VTEP         `json:"vteps"`
	MTU      int            `json:"mtu,omitempty"`
	Own      bool           `json:"own,omitempty"`
	Reserved bool           `json:"reserved,omitempty"`
	Since    time.Time      `json:"since,omitzero"`  // when the node got these subnets, if the record says so
	Expiry   time.Time      `json:"expiry,omitzero"` // if known
	Revision int64          `json:"revision"`
	Key      string         `json:"key,omitempty"`
	Ignored  string         `json:"ignored,omitempty"`  // why it is not believed
	Conflict bool           `json:"conflict,omitempty"` // ignored, for somebody else holds what it names
}

// Release asks for the end of another node's lease.
type Release struct {
	Node     string `json:"node"`
	Revision int64  `json:"revision"` // that the lease must be at; 0: any
}

// Released is what came of it.
type Released struct {
	TakenBack bool `json:"takenBack,omitempty"` // the node took its lease again: its overlayd runs
}

// VTEP is a tunnel endpoint.
type VTEP struct {
	Underlay netip.Addr `json:"underlay"`
	MAC      string     `json:"mac,omitempty"` // none with host-gw
	VNI      uint32     `json:"vni,omitempty"`
}

// Peer is another node as this node's kernel holds it.
type Peer struct {
	Node     string         `json:"node"`
	Subnets  []netip.Prefix `json:"subnets"`
	Underlay netip.Addr     `json:"underlay"`
	MAC      string         `json:"mac,omitempty"`
	Direct   []netip.Prefix `json:"direct,omitempty"` // of the subnets, those that a plain route leads to
	MTU      int            `json:"mtu,omitempty"`    // of its pods, in bytes; 0: its lease does not say
	InSync   bool           `json:"inSync"`
	Missing  []string       `json:"missing,omitempty"` // entries that the kernel lacks, as `ip` would write them
	Misses   uint64         `json:"misses"`            // answered for this peer
}

// Pod is one held address and the link that it hangs on.
type Pod struct {
	Pod       string       `json:"pod,omitempty"` // namespace/name, if the runtime said it
	Container string       `json:"container"`
	IfName    string       `json:"ifName"`
	Addresses []netip.Addr `json:"addresses"`
	Link      string       `json:"link,omitempty"` // host end; empty: address held without a link
	Slot      int          `json:"slot"`
	AgeSecs   int64        `json:"ageSeconds"`
}

// Miss is one question of the kernel.
type Miss struct {
	Time     time.Time  `json:"time"`
	Kind     string     `json:"kind"`          // L2MISS or L3MISS
	Addr     netip.Addr `json:"addr,omitzero"` // asked for by L3MISS
	MAC      string     `json:"mac,omitempty"` // asked for by L2MISS
	Node     string     `json:"node,omitempty"`
	Answered bool       `json:"answered"`
	Micros   int64      `json:"micros"` // from reading the question to the kernel's acknowledgement of the answer
}

// Event is a change that overlayd saw or made.
type Event struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"` // reconcile, foreign, lease, underlay, setting, warning, sweep
	Text string    `json:"text"`
}
