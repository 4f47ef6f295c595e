package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"time"
	"unicode"
	"unicode/utf8"
)

// RecordSchema is the version of what we add to flannel's records.
const RecordSchema = 1

// A Record is a lease as it was read from the store.
type Record struct {
	Key   string // where it is stored, as Key writes it
	Lease Lease  // if Err is not nil, only Subnets, and these only if Key could be read
	Err   error  // what is wrong with key or value
}

// ParseRecord reads a stored record from its key and value. The caller adds
// what the store knows beside them: Reserved, Expiry, Revision, Created.
func ParseRecord(key string, value []byte) Record {
	subnets, err := ParseKey(key)
	if err != nil {
		return Record{Key: key, Err: err}
	}
	lease, err := DecodeRecord(value)
	lease.Subnets = subnets
	return Record{Key: key, Lease: lease, Err: err}
}

// recordJSON is a record's value. The first five keys are flannel 0.28's
// (pkg/lease/lease.go, LeaseAttrs); flannel ignores the others.
type recordJSON struct {
	PublicIP      *string // flannel cannot read null: 0.0.0.0 if there is none
	PublicIPv6    *string
	BackendType   string       `json:",omitempty"`
	BackendData   *backendData `json:",omitempty"`
	BackendV6Data *backendData `json:",omitempty"`

	Node   string `json:",omitempty"`
	Schema int    `json:",omitempty"`
	MTU    int    `json:",omitempty"`
	Since  string `json:",omitempty"` // RFC 3339
}

// backendData is a VXLAN endpoint as flannel writes it.
type backendData struct {
	VNI     uint32
	VtepMAC string
}

// EncodeRecord writes the value of a lease's record: flannel's keys and our
// Node, Schema, MTU and Since. The subnets are not in it: they are the key. A lease
// that DecodeRecord would not read back is an error.
func EncodeRecord(l Lease) ([]byte, error) {
	if err := errors.Join(checkNode(l.Node), checkVTEPs(l.VTEPs, l.Backend == TypeHostGW)); err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	switch {
	case l.Node == "":
		return nil, errors.New("lease: node: missing, want the node id")
	case l.Backend != TypeVXLAN && l.Backend != TypeHostGW:
		return nil, fmt.Errorf("lease: backend %s: want %q or %q", quote(l.Backend), TypeVXLAN, TypeHostGW)
	case l.MTU < 0 || l.MTU > maxMTU:
		return nil, fmt.Errorf("lease: MTU %d: want 0 to %d", l.MTU, maxMTU)
	}
	none := netip.IPv4Unspecified().String()
	r := recordJSON{PublicIP: &none, BackendType: l.Backend, Node: l.Node, Schema: RecordSchema, MTU: l.MTU}
	if !l.Since.IsZero() {
		r.Since = l.Since.UTC().Format(time.RFC3339)
	}
	for _, v := range l.VTEPs {
		address, data := v.Underlay.String(), &backendData{VNI: v.VNI, VtepMAC: v.MAC.String()}
		if l.Backend == TypeHostGW {
			data = nil // flannel has none either
		}
		if v.Underlay.Is4() {
			r.PublicIP, r.BackendData = &address, data
		} else {
			r.PublicIPv6, r.BackendV6Data = &address, data
		}
	}
	return json.Marshal(r)
}

// EncodeReservation writes the value of a record that keeps its subnets for who
// has these addresses, as operators write it for flannel, and is nobody's peer.
func EncodeReservation(vteps []VTEP) ([]byte, error) {
	none := netip.IPv4Unspecified().String()
	r := recordJSON{PublicIP: &none}
	for _, v := range vteps {
		address := v.Underlay.String()
		if v.Underlay.Is4() {
			r.PublicIP = &address
		} else {
			r.PublicIPv6 = &address
		}
	}
	return json.Marshal(r)
}

// DecodeRecord reads a record's value, ours or flannel's. Unknown keys are
// ignored, for flannel may grow some; the known ones must be of the right type
// and make sense. The lease has everything but Subnets and what only the store
// knows. Where BackendType is not "vxlan" only the underlay addresses are read,
// and the VTEPs have neither MAC nor VNI.
func DecodeRecord(data []byte) (Lease, error) {
	l, err := decodeRecord(data)
	if err != nil {
		return Lease{}, fmt.Errorf("record: %w", err)
	}
	return l, nil
}

// storedJSON is recordJSON with the backend's data left for later: its shape
// depends on the backend.
type storedJSON struct {
	PublicIP, PublicIPv6       *string
	BackendType                string
	BackendData, BackendV6Data json.RawMessage

	Node   string
	Schema *int
	MTU    int
	Since  string

	data4, data6 *backendData // the backend's data, if it is known already
}

func decodeRecord(data []byte) (Lease, error) {
	if r, ok := readPlain(data); ok {
		return r.lease()
	}
	var r *storedJSON
	if err := unmarshal(data, &r); err != nil {
		return Lease{}, err
	}
	if r == nil {
		return Lease{}, errors.New("null: want a JSON object")
	}
	return r.lease()
}

func (r *storedJSON) lease() (Lease, error) {
	switch {
	case r.Schema != nil && *r.Schema != RecordSchema:
		return Lease{}, fmt.Errorf("schema %d: want %d", *r.Schema, RecordSchema)
	case r.MTU < 0 || r.MTU > maxMTU:
		return Lease{}, fmt.Errorf("MTU %d: want 0 to %d", r.MTU, maxMTU)
	}
	if err := checkNode(r.Node); err != nil {
		return Lease{}, err
	}
	l := Lease{Node: r.Node, Backend: r.BackendType, MTU: r.MTU}
	if r.Since != "" {
		since, err := time.Parse(time.RFC3339, r.Since)
		if l.Since = since.UTC(); err != nil || l.Since.Year() < 1 || l.Since.Year() > 9999 {
			return Lease{}, fmt.Errorf("field Since: %s: want a time such as 2026-01-31T12:00:00Z", quote(r.Since))
		}
	}
	for _, end := range []endpoint{
		{"PublicIP", r.PublicIP, "BackendData", r.BackendData, r.data4, family4},
		{"PublicIPv6", r.PublicIPv6, "BackendV6Data", r.BackendV6Data, r.data6, family6},
	} {
		vtep, ok, err := end.parse(r.BackendType == TypeVXLAN)
		if err != nil {
			return Lease{}, err
		}
		if ok {
			l.VTEPs = append(l.VTEPs, vtep)
		}
	}
	return l, nil
}

// An endpoint is one family's part of a record.
type endpoint struct {
	addressKey string
	address    *string
	dataKey    string
	data       json.RawMessage
	known      *backendData // data, if it is decoded already
	family     family
}

// parse returns the VTEP and whether there is one.
func (e endpoint) parse(vxlan bool) (VTEP, bool, error) {
	var vtep VTEP
	if e.address != nil {
		a, err := netip.ParseAddr(*e.address)
		if err != nil || a.Is4() != e.family.is4 || a.Is4In6() || a.Zone() != "" {
			return VTEP{}, false, fmt.Errorf("%s %s: want %s address", e.addressKey, quote(*e.address), e.family.name)
		}
		if !a.IsUnspecified() {
			vtep.Underlay = a
		}
	}
	hasAddress, hasData := vtep.Underlay.IsValid(), e.known != nil || (len(e.data) > 0 && string(e.data) != "null")
	switch {
	case !vxlan:
		return vtep, hasAddress, nil
	case !hasAddress && !hasData:
		return VTEP{}, false, nil
	case !hasData:
		return VTEP{}, false, fmt.Errorf(`%s: missing, want {"VNI":…,"VtepMAC":"…"} beside %s`, e.dataKey, e.addressKey)
	case !hasAddress:
		return VTEP{}, false, fmt.Errorf("%s: missing, want an address beside %s", e.addressKey, e.dataKey)
	}
	d := e.known
	if d == nil {
		if err := unmarshal(e.data, &d); err != nil {
			return VTEP{}, false, fmt.Errorf("%s: %w", e.dataKey, err)
		}
	}
	mac, err := ParseMAC(d.VtepMAC)
	if err != nil {
		return VTEP{}, false, fmt.Errorf("%s.VtepMAC: %w", e.dataKey, err)
	}
	if d.VNI > maxVNI {
		return VTEP{}, false, fmt.Errorf("%s.VNI %d: want 1 to %d", e.dataKey, d.VNI, maxVNI)
	}
	vtep.MAC, vtep.VNI = mac, d.VNI
	return vtep, true, nil
}

// unmarshal is json.Unmarshal with errors that name key and offset in the
// format's words, not Go's.
func unmarshal(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: byte %d: %w", quote(string(data)), syntax.Offset, err)
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Errorf("%s: want a JSON object", kind.Value)
	case errors.As(err, &kind):
		want := "an object"
		switch kind.Type.Kind() {
		case reflect.String:
			want = "a string"
		case reflect.Int, reflect.Uint32:
			want = "a whole number"
		}
		return fmt.Errorf("%s: byte %d: %s, want %s", kind.Field, kind.Offset, cut(kind.Value), want)
	}
	return err
}

// checkNode allows any text that can stand in a log line or a metric; empty is
// a record of flannel's.
func checkNode(node string) error {
	const longest = 253 // of a Kubernetes node name: RFC 1123
	if len(node) > longest {
		return fmt.Errorf("node %s: %d bytes, want at most %d", quote(node), len(node), longest)
	}
	for _, r := range node {
		if r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return fmt.Errorf("node %s: want printable characters without spaces", quote(node))
		}
	}
	return nil
}
