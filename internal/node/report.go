package node

// A Reporter is a Manager that can tell the cluster's admins what they should
// know of this node, such as by Events on its Kubernetes Node.
type Reporter interface {
	// Report returns at once. The reason is one word, for programs, and says what
	// the text may be about; what is reported again is told with how often it was.
	Report(node string, warning bool, reason, text string)
}

// Reasons of reports. None is about another node alone: every node would say it.
const (
	reportReady      = "OverlayReady"         // pods can start, once a start
	reportFailed     = "OverlayFailed"        // the daemon ends
	reportRepaired   = "OverlayRepaired"      // somebody changed what is ours
	reportRefused    = "KernelRefused"        // changes are tried again
	reportHolds      = "KernelHoldsAll"       // after them
	reportLost       = "UnderlayLost"         // the underlay stays as it was
	reportMoved      = "UnderlayChanged"      // and was followed
	reportSettings   = "KernelSettingWrong"   // in words of checkSettings
	reportOtherMTU   = "MTUOfPodsDiffers"     // from that of most peers
	reportUnfit      = "MTUOfPodsNotFollowed" // links of pods keep another
	reportBlocked    = "PodsBlocked"          // by rules that are not ours
	reportUnwritable = "PodsCannotStart"      // node file or conflist
)

// report tells the cluster's admins, if the store can.
func (n *node) report(warning bool, reason, text string) {
	if r, ok := n.manager.(Reporter); ok {
		r.Report(n.cfg.Node, warning, reason, text)
	}
}
