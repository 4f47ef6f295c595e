package migrate

import (
	"fmt"
	"net/netip"
)

// A Plan is what a migration finds and what it would do.
type Plan struct {
	From     string         `json:"from"` // flannel
	Networks []netip.Prefix `json:"networks"`
	Subnets  []netip.Prefix `json:"subnets"`
	MTU      int            `json:"mtu"`
	Device   Link           `json:"device"`
	Bridge   Bridge         `json:"bridge"`

	Addresses []Address `json:"addresses"` // by address
	Flags     []string  `json:"flags"`     // for overlayd, beside its usual ones
	Stays     []string  `json:"stays"`     // what is left alone, in words
	Warnings  []string  `json:"warnings"`  // what the operator should know before
	Problems  []Problem `json:"problems"`  // why it cannot be done; none: it can
	Imported  int       `json:"imported"`  // by Apply
}

// A Link is flannel's VXLAN device.
type Link struct {
	Name  string `json:"name"`
	Found bool   `json:"found"`
	MAC   string `json:"mac,omitempty"`
	MTU   int    `json:"mtu,omitempty"`
}

// A Bridge is what the pods hang on.
type Bridge struct {
	Name  string         `json:"name"`
	Found bool           `json:"found"`
	MAC   string         `json:"mac,omitempty"` // it keeps this one
	Addrs []netip.Prefix `json:"addresses,omitempty"`
	Ports int            `json:"ports"` // pods
}

// What is done with an address.
const (
	Import   = "import"   // it becomes held
	Held     = "held"     // it is already, by the same container
	Stale    = "stale"    // no pod has it any more: it is left out
	Reserved = "reserved" // no pod can have it: it is left out
	Beyond   = "beyond"   // no pod of ours can get it, whoever has it: it is left out
)

// An Address is one that host-local has given out.
type Address struct {
	Addr      netip.Addr `json:"address"`
	Container string     `json:"container"`
	IfName    string     `json:"ifname"`
	Pod       string     `json:"pod,omitempty"`  // namespace/name, if the runtime's cache tells
	Port      string     `json:"port,omitempty"` // the node's end of its link, if it can be told
	Action    string     `json:"action"`
}

// A Problem is something that does not fit.
type Problem struct {
	Field string `json:"field"`
	Value string `json:"value"`
	Want  string `json:"want"`
}

func (p Problem) Error() string { return fmt.Sprintf("%s %q: want %s", p.Field, p.Value, p.Want) }

func (p *Plan) problem(field, value, format string, args ...any) {
	p.Problems = append(p.Problems, Problem{field, value, fmt.Sprintf(format, args...)})
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// count is how many addresses have an action.
func (p *Plan) count(action string) (n int) {
	for _, a := range p.Addresses {
		if a.Action == action {
			n++
		}
	}
	return n
}
