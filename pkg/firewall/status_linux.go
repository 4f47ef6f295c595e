package firewall

import (
	"slices"

	"github.com/google/nftables"
)

// tell logs what drops and is not ours to change, whenever that is another.
func (f *Firewall) tell() {
	now := slices.Concat(f.blocked.nft, f.blocked.legacy)
	if slices.Equal(now, f.blocked.told) {
		return
	}
	f.blocked.told = now
	if len(now) > 0 {
		f.log.Warn("other rules drop what pods send through this node; allow the pod networks there", "chains", now)
	}
}

// Blocked names the chains of others that drop what pods send through this node,
// and that Ensure does not change. It is as the last Ensure saw it.
func (f *Firewall) Blocked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.blocked.told)
}

// Dropped is how many VXLAN packets of strangers have been dropped since the
// rules were made.
func (f *Firewall) Dropped() (packets uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.failed = f.failed || err != nil }()
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c, err := f.nft.readChain(&nftables.Chain{Table: table, Name: "vxlan"})
	if err != nil {
		return 0, err
	}
	packets = xtable{prefix: c}.dropped()
	if f.mode != IPTables {
		return packets, nil
	}
	for i, fam := range families {
		nft, err := f.nft.readX(fam, "raw")
		if err != nil {
			return 0, err
		}
		legacy, err := f.legacy[i].read("raw")
		if err != nil {
			return 0, err
		}
		packets += nft["raw"].dropped() + legacy["raw"].dropped()
	}
	return packets, nil
}
