package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vxlan-cni/vxlan-cni/internal/netlab"
	"github.com/vxlan-cni/vxlan-cni/test/cluster"
)

// followed is the target: how long device, bridge and pods may have another MTU
// than the underlay asks for.
const followed = 2 * time.Second

// The underlay's MTU changes while pods talk. What they send must go on, and
// everything has to follow.
func TestMTUFollowsTheUnderlay(t *testing.T) {
	t.Parallel()
	for _, s := range []stack{{"46", "4"}, {"46", "46"}} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, cluster.Options{
				Network: networks[s.pods], Options: netlab.Options{Nodes: 2, Underlay: s.underlay},
			})
			pods := addPods(t, c, "a")
			transfers := startTransfers(t, pods[0], pods[1])
			best, stall := patience, time.Duration(0)
			for i, mtu := range []int{1400, 9000, 1500} {
				g := startPings(t, pods[0], pods[1], 5*time.Millisecond)
				if err := c.SetMTU(mtu); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err := netlab.Eventually(patience, func() error { return mtuIs(c, s.mtu(mtu), pods...) })
				took := time.Since(began)
				stall = max(stall, g.Stop().Stall())
				t.Logf("underlay of %d: followed after %v", mtu, took)
				if err != nil {
					t.Fatal(err)
				}
				best = min(best, took)
				pods = append(pods, addPods(t, c, fmt.Sprintf("new%d", i))...)
				wantMTU(t, c, s.mtu(mtu), pods...)
				forgetPaths(t, pods)
				for _, is4 := range families(s.pods) {
					wantAllPairs(t, pods, is4, s.mtu(mtu))
					wantTooBig(t, pods[0].NS, pods[1].Of(is4), s.mtu(mtu))
				}
				for _, u := range transfers {
					u.wantFlow(t)
				}
			}
			// Other work on the machine can hold up the daemons: the best of three
			// counts, and none where pings were held up as well.
			if best > followed && stall < stalled {
				t.Errorf("the MTU was followed after %v, want at most %v", best, followed)
			}
			for _, u := range transfers {
				u.wantWhole(t)
			}
		})
	}
}

// forgetPaths has pods forget what routers told them of the MTU. A node that
// follows a little later than another one has told what it had until then, and the
// kernel believes that for ten minutes.
func forgetPaths(t *testing.T, pods []*cluster.Pod) {
	t.Helper()
	for _, p := range pods {
		for _, family := range []string{"-4", "-6"} {
			if _, err := p.NS.Output("ip", family, "route", "flush", "cache"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A transfer is an upload without end and the sink that takes it.
type transfer struct {
	*netlab.Upload
	sink *netlab.Sink
}

// startTransfers starts one transfer a family, of some 30 MB a second.
func startTransfers(t *testing.T, from, to *cluster.Pod) (all []transfer) {
	t.Helper()
	for i, a := range to.Addrs {
		s, err := netlab.StartSink(to.NS, uint16(5000+i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		u, err := netlab.StartUpload(from.NS, netip.AddrPortFrom(a, s.Port), 0, 2*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, transfer{u, s})
		all[i].wantFlow(t)
	}
	return all
}

// wantFlow fails the test unless more of the transfer arrives.
func (u transfer) wantFlow(t *testing.T) {
	t.Helper()
	before := u.sink.Received()
	err := netlab.Eventually(patience, func() error {
		if u.sink.Received() < before+1<<20 {
			return errors.New("the transfer has stopped")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// wantWhole ends the transfer, and fails the test unless all that was sent arrived.
func (u transfer) wantWhole(t *testing.T) {
	t.Helper()
	got, err := u.Stop(patience)
	if err != nil {
		t.Error(err)
	}
	t.Log(got)
}

// A node whose underlay carries less than the others' is worth a word: packets
// of full size from the others would not arrive there.
func TestOtherMTUOfAPeerIsTold(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Options{Options: netlab.Options{Nodes: 2}})
	if err := c.SetMTU(1400, c.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	err := netlab.Eventually(patience, func() error {
		log, err := os.ReadFile(c.Nodes[0].Log)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "level=WARN") && strings.Contains(line, "1350") && strings.Contains(line, c.Nodes[1].Name) {
				return nil
			}
		}
		return fmt.Errorf("%s has not warned", c.Nodes[0].Name)
	})
	if err != nil {
		t.Error(err)
	}
}
