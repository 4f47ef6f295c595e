package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxlan-cni/vxlan-cni/internal/rtnl"
)

// A Device is one VXLAN device and its tables in the kernel. It is not safe for
// concurrent use: one goroutine owns the kernel.
type Device struct {
	conn *rtnl.Conn
	cfg  Config
	link Link

	// Keys whose entry setting alone would not put right: a route of somebody
	// else stands in front of ours, or an FDB entry leads to a nexthop group.
	// State, which finds them, tells them with a value that nobody wants;
	// Apply deletes them before it sets them.
	obscured map[any]bool

	// IPv6 subnets that plain routes lead to. The kernel refuses a route through
	// the tunnel in the place of one of these, by which it would reach the
	// gateway: Apply deletes the plain one first.
	plain6 map[netip.Prefix]bool
}

// Open returns the device that cfg describes, which need not exist yet: Ensure
// makes it.
func Open(cfg Config) (*Device, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	return &Device{conn: conn, cfg: cfg, obscured: map[any]bool{}, plain6: map[netip.Prefix]bool{}}, nil
}

// Close closes the socket. The device and its tables stay.
func (d *Device) Close() error { return d.conn.Close() }

// Port is the netlink port id that our own changes bear.
func (d *Device) Port() uint32 { return d.conn.Port() }

// Link is the device as the last Ensure left it.
func (d *Device) Link() Link { return d.link }

// Config is what the device should be.
func (d *Device) Config() Config { return d.cfg }

// SetConfig changes what the device should be; Ensure carries it out.
func (d *Device) SetConfig(cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if cfg.Name != d.cfg.Name {
		return fmt.Errorf("device name %q: a device cannot be renamed, it is %q", cfg.Name, d.cfg.Name)
	}
	d.cfg = cfg
	return nil
}

// Ensure makes the device what its Config says: it creates it, adopts one that
// is equal, and replaces one whose tunnel differs, for the kernel cannot change
// that. It returns what it changed, in words; nothing if all was right.
func (d *Device) Ensure() ([]string, error) {
	if d.cfg.Name == "" {
		return nil, nil
	}
	var did []string
	have, found, err := d.read()
	if err != nil {
		return nil, err
	}
	if !found {
		if was, err := d.rename(); err != nil || was != "" {
			if err == nil {
				have, found, err = d.read()
			}
			if err != nil {
				return nil, err
			}
			did = append(did, "renamed "+was+" to "+d.cfg.Name)
		}
	}
	if found && have.kind != "vxlan" {
		return nil, fmt.Errorf("link %s is a %s, not a vxlan device: remove it or choose another name", d.cfg.Name, have.kind)
	}
	if found && have.sameButLocal(d.cfg) {
		// In place: the tables stay, and so does the traffic.
		if err := d.send(localRequest(have.Index, d.cfg.Local)); err == nil {
			did = append(did, fmt.Sprintf("set local %s (was %s)", d.cfg.Local, have.local))
			have.local = d.cfg.Local
			if err := d.renewFDB(have.Link); err != nil {
				return did, err
			}
		}
	}
	if found && !have.sameTunnel(d.cfg) {
		did = append(did, fmt.Sprintf("removed %s (%s, want %s)", d.cfg.Name, have.tunnel(), wantTunnel(d.cfg)))
		if err := d.send(deleteLink(have.Index)); err != nil {
			return did, fmt.Errorf("remove %s: %w", d.cfg.Name, err)
		}
		found = false
	}
	if !found {
		if err := d.create(); err != nil {
			return did, err
		}
		did = append(did, "created "+d.cfg.Name)
		if have, found, err = d.read(); err != nil || !found {
			return did, errors.Join(err, fmt.Errorf("%s vanished while it was made", d.cfg.Name))
		}
	}
	d.link = have.Link
	mended, err := d.mendChecksums(kernelRelease())
	if err != nil {
		return did, err
	}
	if mended != "" {
		did = append(did, mended)
	}
	more, err := d.adjust(have)
	did = append(did, more...)
	if err != nil || have.inet6 || len(more) == 0 {
		return did, err
	}
	// An MTU below 1280 had switched IPv6 off, and it is back with settings
	// of its own.
	if have, found, err = d.read(); err != nil || !found || !have.inet6 {
		return did, err
	}
	more, err = d.adjust(have)
	return append(did, more...), err
}

// adjust sets what the kernel can change on a living device.
func (d *Device) adjust(have linkInfo) (did []string, err error) {
	var reqs []*nl.NetlinkRequest
	change := func(what string, req ...*nl.NetlinkRequest) {
		did, reqs = append(did, what), append(reqs, req...)
	}
	if have.MAC != d.cfg.MAC {
		change(fmt.Sprintf("set MAC %s (was %s)", d.cfg.MAC, have.MAC), setLink(have.Index, 0, nl.NewRtAttr(unix.IFLA_ADDRESS, d.cfg.MAC[:])))
	}
	if d.cfg.MTU != 0 && have.MTU != d.cfg.MTU {
		change(fmt.Sprintf("set MTU %d (was %d)", d.cfg.MTU, have.MTU), setLink(have.Index, 0, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(d.cfg.MTU)))))
	}
	if have.alias != alias {
		change("set alias", setLink(have.Index, 0, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias))))
	}
	tuned, err := d.tuned(have.Index, have.inet6)
	if err != nil {
		return did, err
	}
	if !tuned || !have.forwarding || have.inet6 && !have.quiet {
		change("set neighbour probes, forwarding and address generation", append(tuneRequests(have.Index, have.inet6), familyRequest(have.Index, have.inet6))...)
	}
	if have.noARP {
		change("set arp on", changeLink(have.Index, 0, unix.IFF_NOARP))
	}
	if !have.Up {
		change("set up", setLink(have.Index, unix.IFF_UP))
	}
	addrs, missing, err := d.addressRequests(have.Index)
	if err != nil {
		return did, err
	}
	if len(addrs) > 0 {
		change("set addresses "+missing, addrs...)
	}
	if len(reqs) == 0 {
		return nil, nil
	}
	if err := d.send(reqs...); err != nil {
		return did, fmt.Errorf("set up %s: %w", d.cfg.Name, err)
	}
	d.link.MAC, d.link.Up = d.cfg.MAC, true
	if d.cfg.MTU != 0 {
		d.link.MTU = d.cfg.MTU
	}
	return did, nil
}

// send carries out requests and joins the refusals.
func (d *Device) send(reqs ...*nl.NetlinkRequest) error {
	return errors.Join(d.conn.Batch(reqs)...)
}

func (d *Device) create() error {
	err := d.send(createRequest(d.cfg))
	if errors.Is(err, unix.EEXIST) {
		if other, found := d.rival(); found {
			return fmt.Errorf("create %s: VNI %d on UDP port %d is taken by %s: remove that device, or configure another VNI or port", d.cfg.Name, d.cfg.VNI, d.cfg.Port, other.name)
		}
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", d.cfg.Name, err)
	}
	return nil
}

// rename gives our device its name back if somebody took it. It returns the
// name that it had, or "" if there is no such device.
func (d *Device) rename() (was string, err error) {
	l, found := d.rival()
	if !found || l.alias != alias {
		return "", nil
	}
	// A link is renamed while it is down; adjust sets it up again.
	err = d.send(changeLink(l.Index, 0, unix.IFF_UP), setLink(l.Index, 0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(d.cfg.Name))))
	if err != nil {
		return "", fmt.Errorf("rename %s to %s: %w", l.name, d.cfg.Name, err)
	}
	return l.name, nil
}

// rival finds the device that has our VNI and port.
func (d *Device) rival() (rival linkInfo, found bool) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	_ = d.conn.Dump(req, func() { found = false }, func(body []byte) {
		l, ok := parseLink(body)
		// Tunnels over IPv4 and over IPv6 do not meet.
		if ok && l.kind == "vxlan" && l.vni == d.cfg.VNI && l.port == d.cfg.Port && l.underlay6 == d.cfg.Local.Is6() {
			rival, found = l, true
		}
	})
	return rival, found
}

// renewFDB makes every FDB entry anew. The kernel keeps with each the route and the
// source address of the packets that it leads, and goes on with an old address that
// the node still has.
func (d *Device) renewFDB(l Link) error {
	d.link = l
	fdb := map[MAC]netip.Addr{}
	if err := d.readFDB(fdb); err != nil {
		return err
	}
	var ops []Op
	for mac, to := range fdb {
		if to.IsValid() { // else Reconcile sets it anew
			ops = append(ops, Op{Del: true, Entry: FDB{mac, to}}, Op{Entry: FDB{mac, to}})
		}
	}
	return d.Apply(ops)
}

// Apply carries out changes in one batch.
func (d *Device) Apply(ops []Op) error {
	reqs := make([]*nl.NetlinkRequest, 0, len(ops))
	owner := make([]int, 0, len(ops)) // request → op
	add := func(i int, o Op) {
		reqs, owner = append(reqs, request(o, d.link.Index)), append(owner, i)
	}
	for i, o := range ops {
		if !o.Del && d.obscured[key(o.Entry)] {
			add(i, Op{Del: true, Entry: o.Entry})
		}
		if e, ok := o.Entry.(Subnet); ok && !o.Del && !e.Route.Direct && d.plain6[e.Dst] {
			add(i, Op{Del: true, Entry: Subnet{e.Dst, Route{Direct: true}}})
		}
		add(i, o)
	}
	errs := make([]error, len(ops))
	for j, err := range d.conn.Batch(reqs) {
		if err != nil && !(absent(err) && isDelete(reqs[j])) {
			errs[owner[j]] = err
		}
	}
	for i, o := range ops {
		if errs[i] == nil {
			delete(d.obscured, key(o.Entry))
		}
	}
	return joinOpErrors(ops, errs)
}

func isDelete(r *nl.NetlinkRequest) bool {
	return r.Type == unix.RTM_DELNEIGH || r.Type == unix.RTM_DELROUTE
}

func key(e Entry) any {
	switch e := e.(type) {
	case FDB:
		return e.MAC
	case Subnet:
		return e.Dst
	}
	return nil
}

// addressRequests returns what makes the device hold the wanted addresses.
// Others' addresses are tolerated; ours of an earlier lease go.
func (d *Device) addressRequests(index int) (reqs []*nl.NetlinkRequest, words string, err error) {
	have := map[netip.Prefix]bool{} // address → ours, to keep or to remove
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	err = d.conn.Dump(req, func() { clear(have) }, func(body []byte) {
		if a, ok := parseAddress(body); ok && a.index == index {
			inside := slices.ContainsFunc(d.cfg.Networks, func(n netip.Prefix) bool { return n.Contains(a.prefix.Addr()) })
			have[a.prefix] = a.protocol == Protocol || a.protocol == kernelLinkLocal || inside
		}
	})
	if err != nil {
		return nil, "", fmt.Errorf("read addresses: %w", err)
	}
	var texts []string
	for p, ours := range have {
		if ours && !slices.Contains(d.cfg.Addrs, p) {
			reqs, texts = append(reqs, addressRequest(true, p, index)), append(texts, "-"+p.String())
		}
	}
	for _, p := range d.cfg.Addrs {
		if _, ok := have[p]; !ok {
			reqs, texts = append(reqs, addressRequest(false, p, index)), append(texts, p.String())
		}
	}
	return reqs, fmt.Sprint(texts), nil
}
