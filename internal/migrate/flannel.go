package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// settled is how old an address without a pod must be before it counts as stale:
// until then its ADD may be at work.
const settled = time.Minute

// A Flannel says where flannel and its plugins keep their state.
type Flannel struct {
	SubnetEnv string // file
	Device    string // link name
	Bridge    string // link name
	Networks  string // host-local's folder, of all networks
	Network   string // name of the CNI network
	Results   string // libcni's cache of results
	RunDir    string // overlayd's
	Proc      string // where processes are looked for
}

// Default returns where they are unless configured otherwise.
func Default() Flannel {
	return Flannel{
		SubnetEnv: "/run/flannel/subnet.env", Device: "flannel.1", Bridge: "cni0",
		Networks: "/var/lib/cni/networks", Network: "cbr0", Results: "/var/lib/cni/results",
		RunDir: subnet.RunDir, Proc: "/proc",
	}
}

// folder is host-local's of the network.
func (f Flannel) folder() string { return filepath.Join(f.Networks, f.Network) }

// Plan reads everything and changes nothing. An error is something that could
// not be read; what does not fit is among the plan's Problems.
func (f Flannel) Plan(ctx context.Context) (Plan, error) {
	p := Plan{
		From: "flannel", Flags: []string{"--device", f.Device, "--bridge", f.Bridge},
		Addresses: []Address{}, Warnings: []string{}, Problems: []Problem{},
	}
	text, err := os.ReadFile(f.SubnetEnv)
	if errors.Is(err, fs.ErrNotExist) {
		p.problem("subnet.env", f.SubnetEnv, "flannel's file: has flannel run on this node since it was booted?")
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("read flannel's subnet: %w", err)
	}
	env, problems := parseSubnetEnv(string(text))
	p.Networks, p.Subnets, p.MTU, p.Problems = env.networks, env.subnets(), env.mtu, append(p.Problems, problems...)
	if len(problems) > 0 {
		return p, nil
	}
	f.compareNodeFile(&p)
	f.readDevice(&p)
	bridge, err := f.readBridge(&p, env)
	if err != nil {
		return p, err
	}
	if err := f.readAddresses(ctx, &p, bridge); err != nil {
		return p, err
	}
	f.advise(&p, env)
	return p, nil
}

// compareNodeFile looks whether an overlayd that ran here holds the same subnet.
func (f Flannel) compareNodeFile(p *Plan) {
	file, err := subnet.ReadNodeFile(f.RunDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		p.problem("node file", err.Error(), "one of overlayd, or none")
	case !slices.Equal(file.Subnets, p.Subnets):
		p.problem("node file's subnets", fmt.Sprint(file.Subnets), "%v as in %s: overlayd has run here with another lease", p.Subnets, f.SubnetEnv)
	}
}

// readDevice looks at flannel's device. Where there is none overlayd makes one.
func (f Flannel) readDevice(p *Plan) {
	p.Device.Name = f.Device
	link, err := net.InterfaceByName(f.Device)
	if err != nil {
		return
	}
	p.Device.Found, p.Device.MAC, p.Device.MTU = true, link.HardwareAddr.String(), link.MTU
	addrs, err := link.Addrs()
	if err != nil {
		p.warn("the addresses of %s cannot be read: %v", f.Device, err)
		return
	}
	for _, a := range addrs {
		at, err := netip.ParsePrefix(a.String())
		inside := func(list []netip.Prefix) bool {
			return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(at.Addr()) })
		}
		if err == nil && inside(p.Networks) && !inside(p.Subnets) {
			p.problem(f.Device+"'s address", at.String(), "one of the subnets %v of %s", p.Subnets, f.SubnetEnv)
		}
	}
}

// readBridge looks at the bridge. Where there is none no pod runs.
func (f Flannel) readBridge(p *Plan, env subnetEnv) (pod.BridgeState, error) {
	p.Bridge.Name = f.Bridge
	b, found, err := pod.ReadBridge(f.Bridge)
	if err != nil {
		return b, fmt.Errorf("bridge %s: %w", f.Bridge, err)
	}
	if !found {
		return b, nil
	}
	p.Bridge = Bridge{Name: f.Bridge, Found: true, MAC: b.MAC.String(), Ports: b.Ports}
	for _, a := range b.Addrs {
		if !a.Addr().IsLinkLocalUnicast() {
			p.Bridge.Addrs = append(p.Bridge.Addrs, a)
		}
	}
	for _, want := range env.gateways {
		if !slices.Contains(b.Addrs, want) {
			p.problem(f.Bridge+"'s addresses", fmt.Sprint(p.Bridge.Addrs), "%s, for %s says so", want, f.SubnetEnv)
		}
	}
	return b, nil
}

// readAddresses decides about each address that host-local gave out.
func (f Flannel) readAddresses(ctx context.Context, p *Plan, bridge pod.BridgeState) error {
	grants, err := readGrants(f.folder(), time.Now())
	if err != nil {
		return err
	}
	slots, err := ipam.List(ctx, f.RunDir)
	if err != nil {
		return err
	}
	pool, err := ipam.Open(f.RunDir, p.Subnets)
	if err != nil {
		p.problem("subnets", fmt.Sprint(p.Subnets), "such as ours can be: %v", err)
		return nil
	}
	defer func() { _ = pool.Close() }()
	for _, g := range grants {
		a := Address{Addr: g.addr, Container: g.container, IfName: g.ifname, Pod: podName(f.Results, f.Network, g)}
		if guest, ok := bridge.With([]netip.Addr{g.addr}); ok {
			a.Port = guest.HostName
		}
		a.Action = Beyond
		if _, ok := pool.SlotOf(g.addr); ok || !p.inSubnets(g.addr) || p.isReserved(g.addr) {
			a.Action = f.decide(p, g, bridge, slots)
		}
		p.Addresses = append(p.Addresses, a)
	}
	for _, g := range bridge.Guests {
		for _, addr := range g.Addrs {
			known := slices.ContainsFunc(grants, func(h grant) bool { return h.addr == addr })
			held := slices.ContainsFunc(slots, func(s ipam.Entry) bool { return slices.Contains(s.Addrs, addr) })
			if _, ok := pool.SlotOf(addr); ok && !known && !held {
				p.problem("address of "+g.HostName, addr.String(), "one that a file in %s names, or it would be given twice", f.folder())
			}
		}
	}
	p.warnOfShared(pool)
	return f.check(ctx, p, pool)
}

// check asks what stands in the way of the import, of a plan that has no problem
// so far.
func (f Flannel) check(ctx context.Context, p *Plan, pool *ipam.Pool) error {
	if len(p.Problems) > 0 {
		return nil
	}
	err := pool.CheckImport(ctx, f.requests(p))
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	for _, err := range list {
		bad, ok := errors.AsType[*ipam.RequestError](err)
		if err != nil && !ok {
			return err
		}
		if ok {
			p.problem("slot file: "+bad.Field, bad.Value, "one that can be entered: %s", bad.Reason)
		}
	}
	return nil
}

// warnOfShared tells the slots that two pods have: host-local gives the addresses
// of each family by themselves.
func (p *Plan) warnOfShared(pool *ipam.Pool) {
	first := map[int]Address{}
	for _, a := range p.Addresses {
		if a.Action != Import && a.Action != Held {
			continue
		}
		slot, _ := pool.SlotOf(a.Addr)
		b, ok := first[slot]
		if !ok {
			first[slot] = a
		} else if b.Container != a.Container || b.IfName != a.IfName {
			p.warn("%s and %s are one slot here, and two pods have it: both addresses are kept until both pods are gone", b.Addr, a.Addr)
		}
	}
}

func (p *Plan) inSubnets(a netip.Addr) bool {
	return slices.ContainsFunc(p.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
}

// decide says what is done with one address.
func (f Flannel) decide(p *Plan, g grant, bridge pod.BridgeState, slots []ipam.Entry) string {
	addrs := []netip.Addr{g.addr}
	_, alive := bridge.With(addrs)
	i := slices.IndexFunc(slots, func(s ipam.Entry) bool { return slices.Contains(s.Addrs, g.addr) })
	key := ipam.Key{Container: g.container, IfName: g.ifname}
	switch {
	case !p.inSubnets(g.addr):
		p.problem(g.path, g.addr.String(), "an address of %v", p.Subnets)
	case p.isReserved(g.addr):
		return Reserved
	case g.age > settled && !bridge.MayLive(addrs, p.Subnets):
		return Stale
	case g.container == "" && alive:
		p.problem(g.path, "", "the id of the container that has the address: a pod uses it")
	case g.container == "":
		return Stale
	case i >= 0 && slots[i].Key.OwnedBy(key):
		return Held
	case i >= 0 && !slots[i].Imported: // what another pod imported becomes both's
		p.problem("slot of "+g.addr.String(), slots[i].Key.String(), "%s, as in %s, or nobody", key, g.path)
	}
	return Import
}

// isReserved says whether no pod of ours can have an address: network, gateway
// and an IPv4 subnet's broadcast address.
func (p *Plan) isReserved(a netip.Addr) bool {
	return slices.ContainsFunc(p.Subnets, func(s netip.Prefix) bool {
		last := s.Contains(a) && a.Is4() && !s.Contains(a.Next())
		return a == s.Addr() || a == s.Addr().Next() || last
	})
}

// advise says what the operator should know.
func (f Flannel) advise(p *Plan, env subnetEnv) {
	if pids := running(f.Proc, "flanneld"); len(pids) > 0 {
		p.warn("flanneld runs (process %s): stop it before overlayd starts, or they work against each other", strings.Join(pids, ", "))
	}
	if !p.Device.Found {
		p.warn("there is no %s: overlayd makes it", f.Device)
	}
	if len(p.Subnets) == 2 {
		p.warn("dual stack: nodes that still run flannel reach this one only if its underlay interface has an address of both families")
	}
	if n := p.count(Stale); n > 0 {
		p.warn("%d addresses are host-local's although no pod has them: they become free", n)
	}
	p.Stays = []string{
		fmt.Sprintf("%s, and what else host-local keeps: its files say who had an address, should flannel come back", f.folder()),
		fmt.Sprintf("%s and /var/lib/cni/flannel: flannel's own", f.SubnetEnv),
		"the pods, their links and their routes",
	}
	if env.masq {
		p.Stays = append(p.Stays, "flannel's masquerade and forward rules (iptables or nftables): pods need them to reach the outside")
	}
}

// Apply enters the plan's addresses into the slot file: all, or none. What is
// held already stays as it is, so it may be repeated. A plan with problems is
// not carried out; the error is the first of them.
func (f Flannel) Apply(ctx context.Context, p *Plan) error {
	if len(p.Problems) > 0 {
		return p.Problems[0]
	}
	if len(p.Subnets) == 0 {
		return errors.New("subnets: none, want a plan that was made")
	}
	list := f.requests(p)
	if len(list) == 0 {
		return nil
	}
	pool, err := ipam.Open(f.RunDir, p.Subnets)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	if p.Imported, err = pool.Import(ctx, list); err != nil {
		return fmt.Errorf("enter addresses into the slot file: %w", err)
	}
	return nil
}

// requests are what the slot file is to hold afterwards.
func (f Flannel) requests(p *Plan) (list []ipam.Request) {
	for _, a := range p.Addresses {
		if a.Action == Import || a.Action == Held {
			list = append(list, ipam.Request{
				Key: ipam.Key{Container: a.Container, IfName: a.IfName}, Pod: cmp.Or(a.Pod, "imported from "+f.Network), Addrs: []netip.Addr{a.Addr},
			})
		}
	}
	return list
}
