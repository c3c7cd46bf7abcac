package main

import (
	"testing"

	"doppel/cluster"
	"doppel/imaging/store"
)

// What a node was told to read stays for it, though the round that came
// meanwhile removed the version and put together what was left: a node's update
// is not ended by the daemon's own tidying.
func TestSyncKeepsWhatNodesRead(t *testing.T) {
	ts := newTestSyncer(t, "keep_last = 1\n")
	ts.round(false)
	images := &images{catalog: ts.d.catalog}
	first, err := ts.d.catalog.Resolve(t.Context(), "head@1")
	if err != nil {
		t.Fatal(err)
	}
	told, err := images.Head(t.Context(), first.Digest, cluster.Head)
	if err != nil || len(told.Packs) == 0 {
		t.Fatal(told, err)
	}
	st, err := ts.d.catalog.Store()
	if err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		for _, pack := range told.Packs {
			if _, err := st.Stat(t.Context(), store.KindPack, pack); err != nil {
				return false
			}
		}
		return true
	}
	ts.node("standby", 2, cluster.Head, "head@0")
	ts.commit(cluster.OrderUpdate{Node: "standby", ID: "U", Image: "head@0", Digest: first.Digest}, cluster.BeginUpdate{Node: "standby", ID: "U"})
	ts.write("etc/motd", "second\n")
	ts.round(false)
	if st.Listed(store.KindPack, told.Packs[0]) || !there() {
		t.Errorf("while the node reads: listed %v, there %v\n%s", st.Listed(store.KindPack, told.Packs[0]), there(), ts.log.String())
	}
	ts.end("standby", "")
	ts.write("etc/motd", "third\n")
	ts.round(false)
	if there() {
		t.Error("what nobody reads any more is kept")
	}
}
