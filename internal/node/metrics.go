package node

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vxlan-cni/vxlan-cni/internal/api"
)

// A collector turns the status into metrics, so that there is one account of
// the node and not two.
type collector struct{ n *node }

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(api.Status) float64
}

func describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("overlayd_"+name, help, nil, nil)
}

func metrics() []metric {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	return []metric{
		{describe("ready", "1 if the own lease is held and the first reconcile is complete."), gauge, func(s api.Status) float64 { return truth(s.Ready) }},
		{describe("peers", "Leased peers."), gauge, func(s api.Status) float64 { return float64(s.Peers.Total) }},
		{describe("peers_in_sync", "Peers for which the kernel holds all that their lease asks for."), gauge, func(s api.Status) float64 { return float64(s.Peers.InSync) }},
		{describe("ignored_records", "Stored records that are not believed."), gauge, func(s api.Status) float64 { return float64(len(s.Store.Ignored)) }},
		{describe("store_revision", "Revision of the newest snapshot."), gauge, func(s api.Status) float64 { return float64(s.Store.Revision) }},
		{describe("misses_received_total", "L2MISS and L3MISS notifications read."), counter, func(s api.Status) float64 { return float64(s.Misses.Received) }},
		{describe("misses_answered_total", "Misses answered by setting entries."), counter, func(s api.Status) float64 { return float64(s.Misses.Answered) }},
		{describe("misses_unknown_total", "Misses for what no lease names."), counter, func(s api.Status) float64 { return float64(s.Misses.Unknown) }},
		{describe("notification_overruns_total", "Times that the kernel dropped notifications."), counter, func(s api.Status) float64 { return float64(s.Misses.Overruns) }},
		{describe("kernel_operations_total", "Changes of the kernel that were attempted."), counter, func(s api.Status) float64 { return float64(s.Kernel.Operations) }},
		{describe("kernel_errors_total", "Batches of which the kernel refused a part."), counter, func(s api.Status) float64 { return float64(s.Kernel.Errors) }},
		{describe("reconciles_total", "Comparisons of the kernel with the leases."), counter, func(s api.Status) float64 { return float64(s.Kernel.Reconciles) }},
		{describe("foreign_changes_undone_total", "Repairs of what others changed."), counter, func(s api.Status) float64 { return float64(s.Kernel.Foreign) }},
		{describe("vxlan_dropped_total", "VXLAN packets of underlay addresses that no peer has, dropped since the rules were made."), counter, func(s api.Status) float64 { return float64(s.Dropped.VXLAN) }},
		{describe("spoofed_frames_total", "Frames of pods with a MAC or address that is not theirs, dropped since the filter was made."), counter, func(s api.Status) float64 { return float64(s.Dropped.Spoofed) }},
		{describe("warnings", "Things around the overlay that keep pods from being reached; see overlayctl status."), gauge, func(s api.Status) float64 { return float64(len(s.Warnings)) }},
		{describe("pod_mtu", "Bytes that a pod may send in one packet."), gauge, func(s api.Status) float64 { return float64(s.PodMTU) }},
		{describe("slots", "Pod addresses of the node."), gauge, func(s api.Status) float64 { return float64(s.Slots.Total) }},
		{describe("slots_held", "Pod addresses that a pod holds."), gauge, func(s api.Status) float64 { return float64(s.Slots.Held) }},
		{describe("slots_unreadable", "1 if a slot file is damaged, so that pods cannot start."), gauge, func(s api.Status) float64 { return truth(s.Slots.Error != "") }},
		{describe("slots_resting", "Pod addresses that were released a moment ago."), gauge, func(s api.Status) float64 { return float64(s.Slots.Resting) }},
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics() {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	s, err := c.n.status(ctx)
	for _, m := range metrics() {
		if err != nil {
			ch <- prometheus.NewInvalidMetric(m.desc, err)
			continue
		}
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s))
	}
}
