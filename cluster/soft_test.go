package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sight(t *testing.T, c *Cluster, m MAC) {
	t.Helper()
	if err := c.Sight(context.Background(), Sighting{MAC: m, Arch: "uefi-x86_64", UUID: "u", Interface: "eth1"}); err != nil {
		t.Fatal(err)
	}
}

func TestSightCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	o := testOptions()
	o.FlushEvery = time.Hour
	c := open(t, path, o)
	sight(t, c, mac(1))
	if c.Seq() != 1 {
		t.Fatalf("the first sighting is entry %d", c.Seq())
	}
	for range 999 {
		sight(t, c, mac(1))
	}
	if c.Seq() != 1 {
		t.Errorf("a machine that tries again costs entries: %d", c.Seq())
	}
	v, ok := c.Sighting(mac(1))
	if !ok || v.Count != 1000 || !v.Last.After(v.First) {
		t.Errorf("seen: %+v", v)
	}
	// It comes back as another: that is written at once, with the count.
	if err := c.Sight(context.Background(), Sighting{MAC: mac(1), Arch: "bios", Interface: "eth1"}); err != nil {
		t.Fatal(err)
	}
	if v, _ := c.Sighting(mac(1)); v.Count != 1001 || v.Arch != "bios" || c.Seq() != 2 {
		t.Errorf("seen as another: %+v, entry %d", v, c.Seq())
	}
	sight(t, c, mac(1))
	sight(t, c, mac(1))
	before := c.Sightings()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	after := open(t, path, testOptions()).Sightings()
	if len(after) != 1 || after[0] != before[0] || after[0].Count != 1003 {
		t.Errorf("after Close: %+v, before: %+v", after, before)
	}
	if got := len(c.Events(0, Filter{Kind: "sighting"})); got != 1 {
		t.Errorf("%d events of one machine's sighting", got)
	}
}

func TestSightIsFlushed(t *testing.T) {
	o := testOptions()
	o.FlushEvery = time.Millisecond
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	sight(t, c, mac(1))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	changed := c.Watch(ctx)
	sight(t, c, mac(1))
	for c.Seq() < 2 {
		if _, ok := <-changed; !ok {
			t.Fatal("the second sighting was not written")
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if v := c.seen.sightings[mac(1)]; v.Count != 2 || len(c.soft.sightings) != 0 {
		t.Errorf("written: %+v, waiting: %v", v, c.soft.sightings)
	}
}

func TestSightingsAreBounded(t *testing.T) {
	o := testOptions()
	o.KeepSightings = 10
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	commit(t, c, add("node001", 11), Assign{MAC: mac(0), Node: "node001"})
	sight(t, c, mac(0))
	for i := range 50 {
		sight(t, c, MAC{2, 0, 0, 0, 0, byte(i)})
	}
	all := c.Sightings()
	if len(all) != 10 || all[0].MAC != mac(0) || all[1].MAC != (MAC{2, 0, 0, 0, 0, 41}) {
		t.Errorf("kept: %+v", all)
	}
	sameState(t, c.Snapshot(), replay(t, c, testOptions()).Snapshot())
}

func TestSightText(t *testing.T) {
	c := fresh(t)
	err := c.Sight(context.Background(), Sighting{MAC: mac(1), Arch: "x\x1b[2J", VendorClass: strings.Repeat("\xff", 300), UUID: "a\nb"})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := c.Sighting(mac(1)); v.Arch != "x[2J" || v.UUID != "a b" || len(v.VendorClass) > maxField {
		t.Errorf("kept: %+v", v)
	}
}

func TestAutoAssign(t *testing.T) {
	o := testOptions()
	k := newClock()
	o.Now = k.now
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	commit(t, c, add("n10", 20), add("n9", 19), add("n2", 12), add("n1", 11), Assign{MAC: mac(9), Node: "n1"})
	holder := func(m MAC) string {
		n, _ := c.NodeByMAC(m)
		return n.Name
	}
	sight(t, c, mac(1))
	if got := holder(mac(1)); got != "" {
		t.Fatalf("assigned to %s while nothing is collected", got)
	}
	commit(t, c, OpenCollection{Until: c.Now().Add(time.Minute)})
	sight(t, c, mac(1))
	if got := holder(mac(1)); got != "" {
		t.Fatalf("assigned to %s without auto", got)
	}
	commit(t, c, OpenCollection{Until: c.Now().Add(time.Minute), Auto: true})
	// A machine seen before counts when it tries again; one assigned stays.
	for _, m := range []MAC{mac(1), mac(9), mac(2), mac(1), mac(3), mac(4)} {
		sight(t, c, m)
	}
	for m, want := range map[MAC]string{mac(1): "n2", mac(2): "n9", mac(3): "n10", mac(4): "", mac(9): "n1"} {
		if got := holder(m); got != want {
			t.Errorf("%s is %q, want %q", m, got, want)
		}
	}
	commit(t, c, add("n11", 21))
	k.advance(time.Hour)
	sight(t, c, mac(4))
	if got := holder(mac(4)); got != "" {
		t.Errorf("assigned to %s after the window", got)
	}
	if c.Collecting() {
		t.Error("still collecting")
	}
}

func TestProgress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	o := testOptions()
	o.FlushEvery = time.Hour
	c := open(t, path, o)
	ctx := context.Background()
	commit(t, c, add("n", 11), Assign{MAC: mac(1), Node: "n"}, arm("n", "I"), BeginInstall{Node: "n", Install: "I"})
	word := func(stage string, done int64) {
		t.Helper()
		if err := c.Progress(ctx, ReportStage{Node: "n", Install: "I", Stage: stage, Done: done, Total: 100, Writes: true}); err != nil {
			t.Fatal(err)
		}
	}
	word("apply", 1)
	seq := c.Seq()
	ch := c.Watch(ctx)
	for i := range int64(50) {
		word("apply", i)
	}
	<-ch // those who watch see it
	if n := node(t, c, "n"); n.Install.Done != 49 || c.Seq() != seq {
		t.Errorf("done %d, %d entries more", n.Install.Done, c.Seq()-seq)
	}
	word("identity", 0)
	if n := node(t, c, "n"); n.Install.Stage != "identity" || c.Seq() != seq+1 {
		t.Errorf("stage %s, %d entries more", n.Install.Stage, c.Seq()-seq)
	}
	word("identity", 7)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	after := open(t, path, testOptions())
	if n := node(t, after, "n"); n.Install.Stage != "identity" || n.Install.Done != 7 {
		t.Errorf("after Close: %+v", n.Install)
	}
	if err := after.Progress(ctx, ReportStage{Node: "n", Install: "other", Stage: "apply"}); !isRefused(err) {
		t.Errorf("of another install: %v", err)
	}
	commit(t, after, Disarm{Node: "n"})
	if err := after.Progress(ctx, ReportStage{Node: "n", Install: "I", Stage: "identity"}); !isRefused(err) {
		t.Errorf("of a node that was disarmed: %v", err)
	}
}

// Progress that waits to be written does not bring back a stage that is over.
func TestProgressOutdated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	o := testOptions()
	o.FlushEvery = time.Hour
	c := open(t, path, o)
	commit(t, c, add("n", 11), Assign{MAC: mac(1), Node: "n"}, arm("n", "I"), BeginInstall{Node: "n", Install: "I"})
	for i, stage := range []string{"format", "apply", "apply"} {
		if err := c.Progress(context.Background(), ReportStage{Node: "n", Install: "I", Stage: stage, Done: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, c, ReportStage{Node: "n", Install: "I", Stage: "agent"})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if n := node(t, open(t, path, o), "n"); n.Install.Stage != "agent" {
		t.Errorf("the stage is %s", n.Install.Stage)
	}
}

func BenchmarkNodeByMAC(b *testing.B) {
	c, err := Open(filepath.Join(b.TempDir(), "cluster.db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var nodes []Node
	var changes []Change
	for i := range 1000 {
		n := Node{Name: fmt.Sprintf("n%04d", i), Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Netmask: 16}
		if i%256 == 0 || i%256 == 255 {
			continue
		}
		nodes = append(nodes, n)
		changes = append(changes, Assign{MAC: MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Node: n.Name})
	}
	if err := c.Commit(context.Background(), append([]Change{AddNodes{Nodes: nodes}}, changes...)...); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, ok := c.NodeByMAC(MAC{2, 0, 0, 0, 1, 7}); !ok {
			b.Fatal("not found")
		}
	}
}

// Callers that commit at once share an fsync.
func BenchmarkCommit(b *testing.B) {
	c, err := Open(filepath.Join(b.TempDir(), "cluster.db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := c.Commit(context.Background(), Note{What: "note", Text: "text"}); err != nil {
				b.Error(err)
			}
		}
	})
}
