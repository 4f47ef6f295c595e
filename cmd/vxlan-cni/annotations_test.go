package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParseAnnotations(t *testing.T) {
	for text, want := range map[string]string{
		``:     ` []`,
		`null`: ` []`,
		`{}`:   ` []`,
		`{"overlay.vxlan-cni.io/ips": "10.244.1.50, fd00:1::32/64", "overlay.vxlan-cni.io/mac": "02:00:00:00:00:01"}`: `02:00:00:00:00:01 [10.244.1.50 fd00:1::32]`,
		`{"overlay.vxlan-cni.io/ips": "", "overlay.vxlan-cni.io/mac": ""}`:                                            ` []`,
		`{"kubernetes.io/config.source": "api", "overlay.vxlan-cni.io": "x", "vxlan-cni.io/mac": "y"}`:                ` []`,
		`{"overlay.vxlan-cni.io/sourceFilter": "false"}`:                                                              `2: annotation overlay.vxlan-cni.io/sourceFilter: "false": unknown; want overlay.vxlan-cni.io/ips or`,
		`{"overlay.vxlan-cni.io/IPs": "10.244.1.50"}`:                                                                 `2: annotation overlay.vxlan-cni.io/IPs: "10.244.1.50": unknown`,
		`{"overlay.vxlan-cni.io/ips": "10.244.1.256"}`:                                                                `7: annotation overlay.vxlan-cni.io/ips: address "10.244.1.256"`,
		`{"overlay.vxlan-cni.io/mac": "01:00:00:00:00:01"}`:                                                           `7: annotation overlay.vxlan-cni.io/mac: MAC`,
		`{"overlay.vxlan-cni.io/mac": 1}`:                                                                             `7: runtimeConfig.io.kubernetes.cri.pod-annotations: `,
		`["a"]`:                                                                                                       `7: runtimeConfig.io.kubernetes.cri.pod-annotations: `,
	} {
		w, err := parseAnnotations(json.RawMessage(text))
		got := fmt.Sprintf("%v %v", w.MAC, w.Addrs)
		if err != nil {
			coded, ok := errors.AsType[*types.Error](err)
			if !ok {
				t.Fatalf("%s: error without a code: %v", text, err)
			}
			got = fmt.Sprintf("%d: %s", coded.Code, coded.Msg)
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

// What is of higher rank counts, for MAC and addresses each.
func TestRankOfWishes(t *testing.T) {
	const conf = `{"cniVersion": "1.0.0", "name": "pods", "type": "vxlan-cni", "runtimeConfig": {%s"io.kubernetes.cri.pod-annotations":
		{"overlay.vxlan-cni.io/ips": "10.244.1.2"%s}}, "args": {"cni": {"ips": ["10.244.1.3"], "mac": "02:00:00:00:00:03"}}}`
	for _, test := range []struct {
		runtime, annotation, ifname string
		want                        string
	}{
		{`"ips": ["10.244.1.1"], "mac": "02:00:00:00:00:01", `, `, "overlay.vxlan-cni.io/mac": "02:00:00:00:00:02"`, "eth0", "[10.244.1.1] 02:00:00:00:00:01"},
		{`"mac": "02:00:00:00:00:01", `, ``, "eth0", "[10.244.1.2] 02:00:00:00:00:01"},
		{``, `, "overlay.vxlan-cni.io/mac": "02:00:00:00:00:02"`, "eth0", "[10.244.1.2] 02:00:00:00:00:02"},
		{``, ``, "eth0", "[10.244.1.2] 02:00:00:00:00:03"},
		{``, `, "overlay.vxlan-cni.io/mac": "02:00:00:00:00:02"`, "net1", "[10.244.1.3] 02:00:00:00:00:03"},
	} {
		c, err := parseStrict(fmt.Appendf(nil, conf, test.runtime, test.annotation))
		if err != nil {
			t.Fatal(err)
		}
		env, err := parseArgs("IP=10.244.1.4;MAC=02:00:00:00:00:04")
		if err != nil {
			t.Fatal(err)
		}
		w := c.want(test.ifname, env.Want)
		if got := fmt.Sprintf("%v %v", w.Addrs, w.MAC); got != test.want {
			t.Errorf("%s%s on %s: %s, want %s", test.runtime, test.annotation, test.ifname, got, test.want)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	f.Add(`{"overlay.vxlan-cni.io/ips": "10.244.1.50,fd00:1::32", "overlay.vxlan-cni.io/mac": "02:00:00:00:00:01"}`)
	f.Add(`{"overlay.vxlan-cni.io/x": ""}`)
	f.Fuzz(func(t *testing.T, text string) {
		w, err := parseAnnotations(json.RawMessage(text))
		if err != nil && (!isCoded(err) || !reflect.DeepEqual(w, wanted{})) {
			t.Fatalf("%+v with error %v", w, err)
		}
		if w.MAC != nil && (len(w.MAC) != 6 || w.MAC[0]&1 != 0) {
			t.Fatalf("MAC %v", w.MAC)
		}
		for _, a := range w.Addrs {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("address %v", a)
			}
		}
		var all map[string]string
		if err == nil && json.Unmarshal([]byte(text), &all) == nil {
			for key := range all {
				if strings.HasPrefix(key, annotationPrefix) && key != annotationIPs && key != annotationMAC {
					t.Fatalf("annotation %s is not refused", key)
				}
			}
		}
	})
}
