package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// checkBound is how long CHECK waits for a lock.
const checkBound = 2 * time.Second

// check compares an attachment with the result that the chain of plugins ended
// with: the pod's interface, its addresses and default routes, the bridge port
// and the slot. What later plugins added is none of its business.
func check(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return fail(types.ErrInvalidNetworkConfig, "prevResult: missing; CHECK compares with it")
	}
	node, err := subnet.ReadNodeFile(conf.RunDir)
	if err != nil {
		return fail(codeNodeFile, "node file: %w", err)
	}
	want, err := expected(prev, args.IfName)
	if err != nil {
		return err
	}
	want.Container, want.IfName, want.Netns, want.Hairpin = args.ContainerID, args.IfName, args.Netns, conf.Hairpin
	ctx, cancel := context.WithTimeout(context.Background(), checkBound)
	defer cancel()
	slots, err := ipam.List(ctx, conf.RunDir)
	key := ipam.Key{Container: args.ContainerID, IfName: args.IfName}
	if isGuest(slots, key) {
		return explain(errors.Join(err, checkGuestSlots(slots, key, want.Addrs), pod.CheckGuest(want, node.Bridge)))
	}
	if err == nil {
		want.Filter = slices.ContainsFunc(slots, func(e ipam.Entry) bool { return e.Key == key && e.Filtered })
		err = checkSlot(slots, key, want)
	}
	return explain(errors.Join(err, pod.Check(want, node.Bridge)))
}

// isGuest says whether another plugin attached the pod, before this one took the
// node over.
func isGuest(slots []ipam.Entry, key ipam.Key) bool {
	return slices.ContainsFunc(slots, func(s ipam.Entry) bool { return s.Key.OwnedBy(key) && s.Imported })
}

// checkGuestSlots looks whether each address of such a pod is held for it, in
// whichever of its slots: a slot has an address of each family, and the other plugin
// may have given but one of them.
func checkGuestSlots(slots []ipam.Entry, key ipam.Key, want []netip.Prefix) error {
	var errs []error
	for _, p := range want {
		if !slices.ContainsFunc(slots, func(s ipam.Entry) bool { return s.Key.OwnedBy(key) && slices.Contains(s.Addrs, p.Addr()) }) {
			errs = append(errs, fmt.Errorf("address %s: no slot is held for it by %s of container %s", p.Addr(), key.IfName, key.Container))
		}
	}
	return errors.Join(errs...)
}

// expected reads from a result how the interface should be.
func expected(result *current.Result, ifname string) (pod.Attachment, error) {
	at := slices.IndexFunc(result.Interfaces, func(i *current.Interface) bool {
		return i != nil && i.Name == ifname && i.Sandbox != ""
	})
	if at < 0 {
		return pod.Attachment{}, fail(types.ErrInvalidNetworkConfig, "prevResult: lists no interface %q in the pod", ifname)
	}
	var a pod.Attachment
	if text := result.Interfaces[at].Mac; text != "" {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return pod.Attachment{}, fail(types.ErrInvalidNetworkConfig, "prevResult: interface %q: %w", ifname, err)
		}
		a.MAC = mac
	}
	for _, ip := range result.IPs {
		if ip == nil || ip.Interface == nil || *ip.Interface != at {
			continue
		}
		p, ok := prefix(ip.Address)
		if !ok {
			return pod.Attachment{}, fail(types.ErrInvalidNetworkConfig, "prevResult: address %q: want one with a prefix length", ip.Address.String())
		}
		a.Addrs = append(a.Addrs, p)
		if g, ok := netip.AddrFromSlice(ip.Gateway); ok && hasDefaultRoute(result, g.Unmap()) {
			a.Gateways = append(a.Gateways, g.Unmap())
		}
	}
	if len(a.Addrs) == 0 {
		return pod.Attachment{}, fail(types.ErrInvalidNetworkConfig, "prevResult: lists no address of interface %q", ifname)
	}
	return a, nil
}

// hasDefaultRoute says whether the chain left the default route via a gateway
// as it was.
func hasDefaultRoute(result *current.Result, gateway netip.Addr) bool {
	return slices.ContainsFunc(result.Routes, func(r *types.Route) bool {
		if r == nil {
			return false
		}
		dst, ok := prefix(r.Dst)
		gw, gwOK := netip.AddrFromSlice(r.GW)
		return ok && gwOK && dst.Bits() == 0 && gw.Unmap() == gateway
	})
}

// checkSlot looks whether the attachment holds the addresses that it has, and
// whether the filter lets it send by them.
func checkSlot(slots []ipam.Entry, key ipam.Key, want pod.Attachment) error {
	at := slices.IndexFunc(slots, func(e ipam.Entry) bool { return e.Key == key })
	if at < 0 {
		return fmt.Errorf("addresses %v: no slot is held for them by %s of container %s", want.Addrs, key.IfName, key.Container)
	}
	slot := slots[at]
	for _, a := range slot.Addrs {
		if !slices.ContainsFunc(want.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return fmt.Errorf("addresses %v: the slot of %s of container %s is for %v", want.Addrs, key.IfName, key.Container, slot.Addrs)
		}
	}
	if !slot.Filtered {
		return nil
	}
	return pod.CheckFilter(pod.Guarded{Container: key.Container, IfName: key.IfName, MAC: want.MAC, Addrs: slot.Addrs})
}
