package main

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParseStrict(t *testing.T) {
	base := `{"cniVersion": "1.0.0", "name": "pods", "type": "vxlan-cni"`
	for name, test := range map[string]struct {
		more string
		want string // of the fields, or of the error
	}{
		"defaults":                  {``, `/run/vxlan-cni true  []`},
		"own keys":                  {`, "runDir": "/tmp/x/", "hairpin": false`, `/tmp/x false  []`},
		"case":                      {`, "RUNDIR": "/x", "RuntimeConfig": {"Mac": "02:00:00:00:00:01", "IPs": ["10.0.0.1"]}`, `/x true 02:00:00:00:00:01 [10.0.0.1]`},
		"what libcni adds":          {`, "capabilities": {"mac": true, "portMappings": true}, "runtimeConfig": {"portMappings": [{"HostPort": 1}], "bandwidth": {}}, "disableCheck": true, "cniVersions": ["1.0.0"]`, `/run/vxlan-cni true  []`},
		"name spaces":               {`, "cni.dev/valid-attachments": [], "example.org/key": 1, "k8s.v1.cni.cncf.io": 2`, `/run/vxlan-cni true  []`},
		"empty IPAM, no masquerade": {`, "ipam": {}, "ipMasq": false, "dns": {}, "prevResult": null`, `/run/vxlan-cni true  []`},
		"args":                      {`, "args": {"cni": {"ips": ["fd00::1/64"], "labels": [{"key": "a"}]}, "other": 1}`, `/run/vxlan-cni true  [fd00::1]`},
		"unknown":                   {`, "isGateway": true`, `7: network configuration: key "isGateway": unknown; want one of the specification's or hairpin, runDir, sourceFilter`},
		"wrong type":                {`, "hairpin": 1`, `7: network configuration: hairpin: is a JSON number, want bool`},
		"wrong type below":          {`, "runtimeConfig": {"ips": "10.0.0.1"}`, `7: network configuration: runtimeConfig.ips: is a JSON string, want []string`},
		"relative":                  {`, "runDir": ""`, `7: runDir: "": want an absolute path`},
		"MAC":                       {`, "runtimeConfig": {"mac": "00:00"}`, `7: runtimeConfig.mac: MAC "00:00": want six`},
		"address":                   {`, "args": {"cni": {"ips": ["10.0.0.1/33"]}}`, `7: args.cni.ips: address "10.0.0.1/33": want one such as`},
		"mapped address":            {`, "args": {"cni": {"ips": ["::ffff:10.0.0.1"]}}`, `7: args.cni.ips: address`},
		"zone":                      {`, "args": {"cni": {"ips": ["fe80::1%eth0"]}}`, `7: args.cni.ips: address`},
		"cut short":                 {`, `, `6: network configuration: `},
	} {
		c, err := parseStrict([]byte(strings.TrimSuffix(base+test.more+"}", ", }")))
		got := fmt.Sprintf("%s %t %v %v", c.RunDir, c.Hairpin, c.want("eth0", wanted{}).MAC, c.want("eth0", wanted{}).Addrs)
		if err != nil {
			var coded *types.Error
			if !errors.As(err, &coded) {
				t.Fatalf("%s: error without a code: %v", name, err)
			}
			got = fmt.Sprintf("%d: %s", coded.Code, coded.Msg)
		}
		if got != test.want && (err == nil || !strings.HasPrefix(got, test.want)) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, test.want)
		}
	}
}

func TestParseArgs(t *testing.T) {
	for text, want := range map[string]string{
		"": "   []",
		"K8S_POD_NAME=web;IgnoreUnknown=1;Foo=bar;K8S_POD_NAMESPACE=default;K8S_POD_UID=u": "default/web   []",
		"K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=x":                                    "   []",
		"IP=10.0.0.1,fd00::1/64;MAC=02:00:00:00:00:01;":                                    "  02:00:00:00:00:01 [10.0.0.1 fd00::1]",
		"IP=;MAC=":                   "   []",
		"Foo=a=b;IgnoreUnknown=TRUE": "   []",
		"Foo=1;Bar=2":                `4: CNI_ARGS: unknown keys ["Foo" "Bar"]`,
		"IgnoreUnknown=0;Foo=1":      "4: CNI_ARGS: unknown keys",
		"IgnoreUnknown=maybe":        "4: CNI_ARGS: IgnoreUnknown",
		"ignoreunknown=1":            "4: CNI_ARGS: unknown keys",
		"Foo":                        `4: CNI_ARGS: "Foo": want KEY=value`,
		"=x;IgnoreUnknown=1":         `4: CNI_ARGS: "=x": want KEY=value`,
		"MAC=ff:ff:ff:ff:ff:ff":      "4: CNI_ARGS: MAC",
		"IP=10.0.0.1,x":              "4: CNI_ARGS: IP",
	} {
		a, err := parseArgs(text)
		got := fmt.Sprintf("%s  %v %v", a.Pod, a.Want.MAC, a.Want.Addrs)
		if coded, ok := errors.AsType[*types.Error](err); ok {
			got = fmt.Sprintf("%d: %s", coded.Code, coded.Msg)
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("CNI_ARGS %q:\n got %s\nwant %s", text, got, want)
		}
	}
}

func FuzzNetConf(f *testing.F) {
	f.Add(`{"cniVersion": "1.0.0", "name": "n", "runDir": "/x", "runtimeConfig": {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1"]}}`)
	f.Add(`{"cniVersion": "0.3.1", "prevResult": {"ips": [{"version": "4", "address": "10.0.0.1/24", "interface": 0}], "interfaces": [{"name": "eth0", "sandbox": "x"}], "routes": [{"dst": "0.0.0.0/0"}]}}`)
	f.Add(`{"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		strict, err := parseStrict([]byte(text))
		lenient, lerr := parse([]byte(text))
		if err == nil && lerr != nil {
			t.Fatalf("what ADD takes DEL refuses: %v", lerr)
		}
		if err == nil && (strict.RunDir != lenient.RunDir || strict.RunDir[0] != '/') {
			t.Fatalf("run folders %q and %q", strict.RunDir, lenient.RunDir)
		}
		if _, _, err := lenient.attachments(); err != nil && !isCoded(err) {
			t.Fatal(err)
		}
		prev, err := lenient.prevResult()
		if err == nil && prev != nil {
			_, err = expected(prev, "eth0")
		}
		for _, e := range []error{err, lerr} {
			if e != nil && !isCoded(e) {
				t.Fatalf("error without a code: %v", e)
			}
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;IP=10.0.0.1;MAC=02:00:00:00:00:01")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseArgs(text)
		if err != nil && (!isCoded(err) || !reflect.DeepEqual(a, envArgs{})) {
			t.Fatalf("%v with error %v", a, err)
		}
		for _, addr := range a.Want.Addrs {
			if !addr.IsValid() || addr.Zone() != "" {
				t.Fatalf("address %v", addr)
			}
		}
		if again, err := parseArgs(text + ";"); err == nil && !reflect.DeepEqual(again, a) {
			t.Fatalf("%v and %v", a, again)
		}
	})
}

func isCoded(err error) bool {
	var coded *types.Error
	return errors.As(err, &coded) && coded.Code != 0 && coded.Msg != ""
}
