package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
)

func TestVerbsInEveryVersion(t *testing.T) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n, pod := newNode(t), netlab.TestNamespace(t)
			e, conf := podEnv("abc", pod), n.conf(version)
			out := n.ok(e, conf)
			var result struct {
				CNIVersion string
				Interfaces []struct{ Name, Sandbox string }
				IPs        []struct {
					Version, Address, Gateway string
					Interface                 int
				}
				Routes []struct{ Dst, GW string }
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatal(err)
			}
			if result.CNIVersion != version || len(result.IPs) != 2 || len(result.Routes) != 2 {
				t.Fatalf("result in version %s:\n%s", version, out)
			}
			ip := result.IPs[0]
			if ip.Address != "10.244.1.2/24" || ip.Gateway != "10.244.1.1" || result.IPs[1].Address != "fd00:1::2/64" {
				t.Errorf("addresses %v", result.IPs)
			}
			if on := result.Interfaces[ip.Interface]; on.Name != "eth0" || on.Sandbox != pod.Path() {
				t.Errorf("address on %v, want eth0 in the pod", on)
			}
			if strings.HasPrefix(version, "0.") != (ip.Version == "4") {
				t.Errorf("version of an address: %q", ip.Version)
			}
			withPrev := n.conf(version, `"prevResult": `+out)
			if version >= "0.4.0" {
				if out := n.ok(e.with("CHECK"), withPrev); out != "" {
					t.Errorf("CHECK wrote %q", out)
				}
			} else {
				n.fails(e.with("CHECK"), withPrev, 1, "version")
			}
			for range 2 {
				if out := n.ok(e.with("DEL"), withPrev); out != "" {
					t.Errorf("DEL wrote %q", out)
				}
			}
			if left := n.holds(); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
			if out := output(t, pod, "ip -br link"); strings.Contains(out, "eth0") {
				t.Errorf("left in the pod:\n%s", out)
			}
		})
	}
	n := newNode(t)
	n.fails(env{verb: "ADD", container: "a", netns: n.ns.Path(), ifname: "eth0"}, n.conf("0.2.0"), 1, "incompatible")
	n.fails(env{verb: "DEL", container: "a", ifname: "eth0"}, n.conf("2.0.0"), 1, "incompatible")
}

// What the rest of a chain, and ADDs that failed, must find.
func TestAddReportsAndAppends(t *testing.T) {
	n, pod := newNode(t), netlab.TestNamespace(t)
	prev := `"prevResult": {"cniVersion": "1.0.0",
		"interfaces": [{"name": "net1", "sandbox": "` + pod.Path() + `"}],
		"ips": [{"address": "192.0.2.7/24", "interface": 0}],
		"routes": [{"dst": "198.51.100.0/24"}], "dns": {"nameservers": ["192.0.2.53"]}}`
	r := n.add(podEnv("abc", pod), n.conf("1.0.0", prev, `"dns": {"nameservers": ["10.96.0.10"]}`))
	if want := []string{"192.0.2.7/24", "10.244.1.2/24", "fd00:1::2/64"}; !slices.Equal(addresses(r), want) {
		t.Errorf("addresses %v, want %v", addresses(r), want)
	}
	if i := r.Interfaces[*r.IPs[1].Interface]; i.Name != "eth0" || *r.IPs[0].Interface != 0 {
		t.Errorf("addresses are on the wrong interfaces: %v", r)
	}
	if len(r.Routes) != 3 || len(r.DNS.Nameservers) != 1 || r.DNS.Nameservers[0] != "192.0.2.53" {
		t.Errorf("routes or DNS of the plugin before us are lost: %v", r)
	}
}

func TestVersionNeedsNoEnvironment(t *testing.T) {
	n := newNode(t)
	for _, e := range []env{
		{verb: "VERSION"},
		{"VERSION", "dummy", "dummy", "dummy/with:bad chars", "garbage"},
	} {
		out := n.ok(e, "not json")
		if !strings.Contains(out, `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`) {
			t.Errorf("VERSION: %s", out)
		}
	}
}

func TestByHand(t *testing.T) {
	for _, test := range []struct {
		args []string
		exit int
		want string
	}{
		{nil, 0, "A CNI plugin"},
		{[]string{"--help"}, 0, "runDir"},
		{[]string{"--version"}, 0, "go1."},
		{[]string{"--nosuch"}, 2, `unknown argument "--nosuch"`},
	} {
		cmd, _ := command(env{}, "")
		cmd.Args, cmd.Env, cmd.Stdout = append(cmd.Args, test.args...), nil, nil
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != test.exit || !strings.Contains(string(out), test.want) {
			t.Errorf("%q: exit status %d: %s", test.args, got, out)
		}
	}
}

func TestCapabilities(t *testing.T) {
	n := newNode(t)
	for name, test := range map[string]struct {
		conf, args, mac string
		ips             []string
	}{
		"runtimeConfig over all": {
			`"runtimeConfig": {"mac": "02:00:00:00:00:01", "ips": ["10.244.1.50/24"], "portMappings": [{"HostPort": 1}]},
			 "args": {"cni": {"mac": "02:00:00:00:00:02", "ips": ["10.244.1.51"], "labels": []}}`,
			"IP=10.244.1.52;MAC=02:00:00:00:00:03", "02:00:00:00:00:01", []string{"10.244.1.50/24", "fd00:1::32/64"},
		},
		"args.cni over CNI_ARGS": {
			`"args": {"cni": {"ips": ["fd00:1::51"]}}`,
			"MAC=02:00:00:00:00:03;IP=10.244.1.82", "02:00:00:00:00:03", []string{"10.244.1.81/24", "fd00:1::51/64"},
		},
		"CNI_ARGS": {`"capabilities": {"ips": true}`, "IgnoreUnknown=1;Foo=bar;IP=10.244.1.99", "0a:58:0a:f4:01:63", []string{"10.244.1.99/24", "fd00:1::63/64"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := netlab.TestNamespace(t)
			e := podEnv(strings.ReplaceAll(name, " ", "-"), pod)
			e.args = test.args
			r := n.add(e, n.conf("1.0.0", test.conf))
			if got := addresses(r); !slices.Equal(got, test.ips) {
				t.Errorf("addresses %v, want %v", got, test.ips)
			}
			if out := output(t, pod, "ip link show eth0"); !strings.Contains(out, test.mac) {
				t.Errorf("MAC is not %s:\n%s", test.mac, out)
			}
		})
	}
}
