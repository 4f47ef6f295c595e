package migrate

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseSubnetEnv(t *testing.T) {
	const good = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for _, tt := range []struct {
		name, text, want string // subnets, or the problem
	}{
		{"IPv4", good, "[10.244.0.0/16] [10.244.7.0/24] 1450 true"},
		{"dual stack", good + "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\n", "[10.244.0.0/16 fd00:244::/48] [10.244.7.0/24 fd00:244:0:7::/64] 1450 true"},
		{"IPv6", "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n", "[fd00:244::/48] [fd00:244:0:7::/64] 1430 false"},
		{"no masquerade", with("true", "false"), "[10.244.0.0/16] [10.244.7.0/24] 1450 false"},
		{"new keys and lines", "\n# a comment\nFLANNEL_NEXT=7\r\n" + good, "[10.244.0.0/16] [10.244.7.0/24] 1450 true"},
		{"several networks", with("10.244.0.0/16", "10.9.0.0/16,10.244.0.0/16"), "[10.244.0.0/16] [10.244.7.0/24] 1450 true"},
		{"nothing", "", `FLANNEL_SUBNET "": want the subnet with its first address`},
		{"garbage", "\x00\xff=7\n=\n", `FLANNEL_SUBNET "": want`},
		{"no network", with("FLANNEL_NETWORK", "X"), `FLANNEL_NETWORK "": want the pod network that has 10.244.7.1/24`},
		{"the subnet's own address", with("10.244.7.1/24", "10.244.7.0/24"), `FLANNEL_SUBNET "10.244.7.0/24": want`},
		{"a pod's address", with("10.244.7.1/24", "10.244.7.9/24"), `FLANNEL_SUBNET "10.244.7.9/24": want`},
		{"no length", with("10.244.7.1/24", "10.244.7.1"), `FLANNEL_SUBNET "10.244.7.1": want`},
		{"another family", with("10.244.7.1/24", "fd00::1/64"), `FLANNEL_SUBNET "fd00::1/64": want`},
		{"outside of the network", with("10.244.7.1/24", "10.99.7.1/24"), `FLANNEL_SUBNET "10.99.7.1/24": want a subnet of FLANNEL_NETWORK 10.244.0.0/16`},
		{"larger than the network", with("10.244.7.1/24", "10.244.0.1/8"), `FLANNEL_SUBNET "10.244.0.1/8": want`},
		{"no MTU", with("FLANNEL_MTU", "X"), `FLANNEL_MTU "": want 576 to 65535`},
		{"MTU", with("1450", "14500000"), `FLANNEL_MTU "14500000": want 576 to 65535`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, problems := parseSubnetEnv(tt.text)
			got := fmt.Sprint(e.networks, " ", e.subnets(), " ", e.mtu, " ", e.masq)
			if len(problems) > 0 {
				got = problems[0].Error()
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func FuzzParseSubnetEnv(f *testing.F) {
	f.Add("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	f.Add("FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1430\n")
	f.Fuzz(func(t *testing.T, text string) {
		e, problems := parseSubnetEnv(text)
		if len(problems) > 0 {
			return
		}
		if len(e.networks) != len(e.gateways) || len(e.gateways) == 0 || len(e.gateways) > 2 {
			t.Fatalf("%q: %+v", text, e)
		}
		for i, s := range e.subnets() {
			if !e.networks[i].Contains(s.Addr()) || e.networks[i].Bits() > s.Bits() || s != s.Masked() {
				t.Fatalf("%q: subnet %s of %s", text, s, e.networks[i])
			}
		}
	})
}

// files writes a folder.
func files(t *testing.T, dir string, content map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadGrants(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cbr0")
	if list, err := readGrants(dir, time.Now()); err != nil || len(list) != 0 {
		t.Errorf("a folder that is not there: %v, %v", list, err)
	}
	files(t, dir, map[string]string{
		"10.244.7.10":        "abc\r\neth0",
		"10.244.7.2":         "def\r\nnet1\r\n",
		"10.244.7.3":         "older",
		"10.244.7.4":         "",
		"fd00:244:0:7::9":    "abc\r\neth0",
		"lock":               "",
		"last_reserved_ip.0": "10.244.7.10",
		"10.244.7.5.tmp":     "x\r\neth0",
	})
	if err := os.Mkdir(filepath.Join(dir, "10.244.7.6"), 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := readGrants(dir, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range list {
		got = append(got, fmt.Sprint(g.addr, " ", g.container, " ", g.ifname))
		if g.age < 59*time.Minute || g.age > 61*time.Minute || g.path != filepath.Join(dir, g.addr.String()) {
			t.Errorf("%s: age %s, path %s", g.addr, g.age, g.path)
		}
	}
	want := []string{"10.244.7.2 def net1", "10.244.7.3 older eth0", "10.244.7.4  ", "10.244.7.10 abc eth0", "fd00:244:0:7::9 abc eth0"}
	if !slices.Equal(got, want) {
		t.Errorf("read %q\nwant %q", got, want)
	}
}

func TestPodName(t *testing.T) {
	dir := t.TempDir()
	g := grant{container: "abc", ifname: "eth0"}
	for content, want := range map[string]string{
		`{"kind":"cniCacheV1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","web"],["K8S_POD_NAME","front-1"]]}`: "web/front-1",
		`{"cniArgs":[["K8S_POD_NAMESPACE","web"]]}`: "",
		`{"cniArgs":7}`: "",
		``:              "",
	} {
		files(t, dir, map[string]string{"cbr0-abc-eth0": content})
		if got := podName(dir, "cbr0", g); got != want {
			t.Errorf("%s: %q, want %q", content, got, want)
		}
	}
	if got := podName(dir, "other", g); got != "" {
		t.Errorf("of another network %q", got)
	}
}

func TestRunning(t *testing.T) {
	proc := t.TempDir()
	for pid, comm := range map[string]string{"7": "flanneld\n", "8": "flanneld2\n", "12": "overlayd\n", "self": "flanneld\n"} {
		files(t, filepath.Join(proc, pid), map[string]string{"comm": comm})
	}
	if got := running(proc, "flanneld"); !slices.Equal(got, []string{"7"}) {
		t.Errorf("running %q, want 7", got)
	}
}

func TestReserved(t *testing.T) {
	p := Plan{Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24"), netip.MustParsePrefix("fd00:7::/64")}}
	for addr, want := range map[string]bool{
		"10.244.7.0": true, "10.244.7.1": true, "10.244.7.2": false, "10.244.7.254": false, "10.244.7.255": true, "10.244.6.255": false,
		"fd00:7::": true, "fd00:7::1": true, "fd00:7::2": false, "fd00:7:0:0:ffff:ffff:ffff:ffff": false,
	} {
		if got := p.isReserved(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %t, want %t", addr, got, want)
		}
	}
}
