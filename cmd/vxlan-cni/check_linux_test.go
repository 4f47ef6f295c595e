package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/pkg/ipam"
	"github.com/vxlan-cni/vxlan-cni/pkg/pod"
)

func TestCheckFindsEachDifference(t *testing.T) {
	link := pod.HostName("abc", "eth0")
	for name, test := range map[string]struct {
		node, pod string // command that breaks something
		code      uint   // 0: must be tolerated
		text      string
	}{
		"nothing":           {},
		"address gone":      {pod: "ip addr del 10.244.1.2/24 dev eth0", code: 5, text: "10.244.1.2/24"},
		"IPv6 address gone": {pod: "ip addr del fd00:1::2/64 dev eth0", code: 5, text: "fd00:1::2/64"},
		"default route":     {pod: "ip route del default", code: 5, text: "10.244.1.1"},
		"IPv6 route":        {pod: "ip -6 route del default", code: 5, text: "fd00:1::1"},
		"gateway's MAC":     {pod: "ip neigh replace 10.244.1.1 lladdr 02:00:00:00:00:09 nud permanent dev eth0", code: 5, text: "has MAC 02:00:00:00:00:09 for gateway 10.244.1.1"},
		"IPv6 gateway":      {pod: "ip neigh replace fd00:1::1 lladdr 02:00:00:00:00:09 nud permanent dev eth0", code: 5, text: "gateway fd00:1::1"},
		"gateway asked for": {pod: "ip neigh del 10.244.1.1 dev eth0"},
		"gateway to verify": {pod: "ip neigh replace 10.244.1.1 lladdr 02:00:00:00:00:09 nud stale dev eth0"},
		"MAC":               {pod: "ip link set eth0 address 02:00:00:00:00:09", code: 5, text: "02:00:00:00:00:09"},
		"pod's end down":    {pod: "ip link set eth0 down", code: 5, text: "eth0 is down"},
		"pod's end renamed": {pod: "ip link set eth0 name eth1", code: 5, text: "interface eth0 in the pod"},
		"node's end down":   {node: "ip link set " + link + " down", code: 5, text: link + " is down"},
		"off the bridge":    {node: "ip link set " + link + " nomaster", code: 5, text: "want bridge cni0"},
		"hairpin mode":      {node: "bridge link set dev " + link + " hairpin off", code: 5, text: "hairpin mode false, want true"},
		"bridge":            {node: "ip link set cni0 name cni9", code: 5, text: "bridge cni0"},
		"more addresses":    {pod: "ip addr add 192.0.2.1/32 dev eth0"},
		"more routes":       {pod: "ip route add 192.0.2.0/24 via 10.244.1.1"},
		"smaller MTU":       {pod: "ip link set eth0 mtu 1400"},
		"traffic control":   {node: "ip link set " + link + " txqueuelen 7"},
	} {
		t.Run(name, func(t *testing.T) {
			n, p := newNode(t), netlab.TestNamespace(t)
			e := podEnv("abc", p)
			prev := `"prevResult": ` + n.ok(e, n.conf("1.0.0"))
			if test.node != "" {
				n.sh(test.node)
			}
			if test.pod != "" {
				output(t, p, test.pod)
			}
			if test.code == 0 {
				n.ok(e.with("CHECK"), n.conf("1.0.0", prev))
			} else {
				n.fails(e.with("CHECK"), n.conf("1.0.0", prev), test.code, test.text)
			}
		})
	}
}

func TestCheckComparesWithTheFinalResult(t *testing.T) {
	n, p := newNode(t), netlab.TestNamespace(t)
	e, conf := podEnv("abc", p), n.conf("1.0.0")
	out := n.ok(e, conf)
	check := e.with("CHECK")
	n.fails(check, conf, 7, "prevResult")
	for name, test := range map[string]struct {
		change func(map[string]any)
		code   uint
		text   string
	}{
		"a later plugin's interface": {func(r map[string]any) {
			r["interfaces"] = append(r["interfaces"].([]any), map[string]any{"name": "ifb0"})
		}, 0, ""},
		"a later plugin's MAC, which is not there": {func(r map[string]any) {
			r["interfaces"].([]any)[2].(map[string]any)["mac"] = "02:00:00:00:00:07"
		}, 5, "want 02:00:00:00:00:07"},
		"default routes taken over": {func(r map[string]any) { delete(r, "routes") }, 0, ""},
		"no interface":              {func(r map[string]any) { r["interfaces"] = []any{} }, 7, `no interface "eth0"`},
		"no address":                {func(r map[string]any) { r["ips"] = []any{} }, 7, "no address"},
		"a bad MAC": {func(r map[string]any) {
			r["interfaces"].([]any)[2].(map[string]any)["mac"] = "x"
		}, 7, `interface "eth0"`},
		"another address": {func(r map[string]any) {
			r["ips"].([]any)[0].(map[string]any)["address"] = "10.244.1.3/24"
		}, 5, "lacks address 10.244.1.3/24"},
	} {
		t.Run(name, func(t *testing.T) {
			var result map[string]any
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatal(err)
			}
			test.change(result)
			changed, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			with := n.conf("1.0.0", `"prevResult": `+string(changed))
			if test.code == 0 {
				n.ok(check, with)
			} else {
				n.fails(check, with, test.code, test.text)
			}
		})
	}
	prev := n.conf("1.0.0", `"prevResult": `+out)
	if _, err := ipam.ReleaseAll(t.Context(), n.dir, ipam.Key{Container: "abc", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	n.fails(check, prev, 5, "no slot is held")
	gone := check
	gone.netns = "/run/netns/nosuch"
	n.fails(gone, prev, 4, "CNI_NETNS")
	if err := os.Remove(filepath.Join(n.dir, "node.json")); err != nil {
		t.Fatal(err)
	}
	n.fails(check, prev, codeNodeFile, "node.json")
	if before := n.holds(); !strings.Contains(before, "link") {
		t.Error("CHECK removed something")
	}
}
