package web

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
)

// certified is a node that runs head@1 and has an agent, whose machine it gives.
func (b *bench) certified(name string, last byte) *machine {
	b.t.Helper()
	_, own, _ := b.installed(name, last)
	return own
}

func orderUpdate(t *testing.T, b *bench, node, id string) {
	t.Helper()
	commit(t, b.cluster, cluster.OrderUpdate{Node: node, ID: id, Image: "head@2", Digest: digest, Full: true})
}

// A node that waits for work is given it at once when there is some, says how
// it gets on, and how it ended.
func TestTask(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = time.Minute
	b.machines.Update = func(n cluster.Node) Policy {
		return Policy{Keep: []string{"srv/**"}, Pre: "before " + n.Name, Post: "after"}
	}
	m := b.certified("node001", 11)
	b.asked = func() {
		if b.node("node001").Update.Begun.IsZero() {
			t.Error("the node is told of packs that may be deleted under it: its update has not begun")
		}
	}
	type answer struct {
		status int
		why    string
		task   clone.Task
	}
	got := make(chan answer)
	ask := func() {
		var a answer
		a.status, a.why = m.ask("/v1/task", clone.Idle{BootID: "b"}, &a.task)
		got <- a
	}
	go ask()
	commit(t, b.cluster, cluster.Note{What: "warning", Text: "something else happens"})
	orderUpdate(t, b, "node001", "U1")
	a := <-got
	u := a.task.Update
	if a.status != 200 || u == nil || u.ID != "U1" || u.Image != "head@2" || !u.Full || u.Force || !slices.Equal(u.Keep, []string{"srv/**"}) || u.Pre != "before node001" || u.Post != "after" ||
		u.Digest != digest || u.Manifest != store.Sum([]byte(digest)) || len(u.Packs) != 1 || u.Store != "http://127.0.0.1:8480/store" || !bytes.Equal(u.Cluster, b.machines.Keys.Cluster[:]) || u.Head != nil {
		t.Fatalf("%+v: %+v", a, u)
	}
	if n := b.node("node001"); n.Update.Begun.IsZero() {
		t.Error("the update has not begun")
	}
	word := clone.UpdateWord{Report: clone.Report{Install: "U1", Stage: clone.StageApply, Done: 3, Total: 9}}
	if status, why := m.ask("/v1/update", word, nil); status != 204 {
		t.Fatalf("%d, %s", status, why)
	}
	if n := b.node("node001"); n.Update.Stage != "apply" || n.Update.Done != 3 {
		t.Errorf("%+v", n.Update)
	}
	// It is started again, and given the same.
	go ask()
	if a := <-got; a.task.Update == nil || a.task.Update.ID != "U1" {
		t.Errorf("the second time: %+v", a)
	}
	word.Stage, word.Result = clone.StageFinish, &clone.UpdateReport{Apply: &imaging.ApplyReport{Written: 3, Deleted: 1}, Derived: []string{"etc/hosts"}}
	for range 2 { // the answer may be lost
		if status, why := m.ask("/v1/update", word, nil); status != 204 {
			t.Fatalf("%d, %s", status, why)
		}
	}
	if n := b.node("node001"); n.Update.Pending() || n.Runs != "head@2" || !strings.HasPrefix(n.Update.Result, "4 written, 0 set right, 1 removed") {
		t.Errorf("%+v", n.Update)
	}
	b.noSecrets(m)
}

func TestTaskWaits(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = time.Millisecond
	m := b.certified("node001", 11)
	if status, why := m.ask("/v1/task", clone.Idle{}, nil); status != 204 {
		t.Errorf("nothing to do: %d, %s", status, why)
	}
	// Those who wait hear when their node is taken away, and when serving ends.
	b.machines.Patience = time.Minute
	got := make(chan int)
	go func() { status, _ := m.ask("/v1/task", clone.Idle{}, nil); got <- status }()
	commit(t, b.cluster, cluster.RemoveNode{Name: "node001"})
	if status := <-got; status != 403 {
		t.Errorf("removed: %d", status)
	}
	m = b.certified("node002", 12)
	ending := make(chan struct{})
	b.machines.Ending = ending
	go func() { status, _ := m.ask("/v1/task", clone.Idle{}, nil); got <- status }()
	close(ending)
	if status := <-got; status != 204 {
		t.Errorf("when serving ends: %d", status)
	}
}

func TestUpdateRefused(t *testing.T) {
	b := newBench(t)
	boot, m, _ := b.installed("node001", 11)
	other := b.certified("node002", 12)
	orderUpdate(t, b, "node001", "U1")
	word := clone.UpdateWord{Report: clone.Report{Install: "U1", Stage: clone.StageFinish}}
	for name, m := range map[string]*machine{"a boot": boot, "another node": other, "nobody": b.machine(addrOf(11))} {
		if status, _ := m.ask("/v1/update", word, nil); status != 403 && status != 401 {
			t.Errorf("%s: %d", name, status)
		}
		if name == "another node" {
			continue
		}
		if status, _ := m.ask("/v1/task", clone.Idle{}, nil); status != 403 && status != 401 {
			t.Errorf("%s asks for work: %d", name, status)
		}
	}
	for _, w := range []clone.Report{{Install: "U0", Stage: clone.StageFinish}, {Install: "U0", Stage: clone.StageApply}, {Install: "U0", Stage: clone.StageFailed}} {
		if status, why := m.ask("/v1/update", clone.UpdateWord{Report: w}, nil); status != 403 || !strings.Contains(why, "taken back") {
			t.Errorf("%+v: %d, %s", w, status, why)
		}
	}
	if status, _ := m.ask("/v1/update", clone.UpdateWord{Report: clone.Report{Install: "U1", Stage: clone.StagePartition}}, nil); status != 400 {
		t.Errorf("a stage of installs: %d", status)
	}
	if n := b.node("node001"); !n.Update.Pending() || n.Runs != "head@1" {
		t.Errorf("%+v", n.Update)
	}
	if status, why := m.ask("/v1/update", clone.UpdateWord{Report: clone.Report{Install: "U1", Stage: clone.StageFailed, Detail: "no space"}}, nil); status != 204 {
		t.Errorf("%d, %s", status, why)
	}
	if n := b.node("node001"); n.Update.Failed != "no space" || n.Runs != "head@1" {
		t.Errorf("%+v", n.Update)
	}
	// A version that is gone ends the update, with the reason.
	b.imageErr = &store.MissingError{What: "manifest", ID: store.Sum([]byte(digest))}
	b.machines.Patience = time.Millisecond
	orderUpdate(t, b, "node001", "U2")
	if status, _ := m.ask("/v1/task", clone.Idle{}, nil); status != 204 {
		t.Errorf("%d", status)
	}
	if n := b.node("node001"); !strings.Contains(n.Update.Failed, "manifest") {
		t.Errorf("%+v", n.Update)
	}
}

func TestAdminDeployInPlace(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	if _, err := o.client.Assign(ctx, mac(1), "node001"); err != nil {
		t.Fatal(err)
	}
	req := Deploy{Nodes: []string{"node001"}, InPlace: true, Full: true}
	_, err := o.client.Deploy(ctx, req)
	wants(t, err, 1, "runs nothing that doppel installed", "doppel deploy")
	commit(t, o.cluster, cluster.Arm{Node: "node001", Install: "I", Image: "head@1", Digest: "d", After: "reboot"}, cluster.BeginInstall{Node: "node001", Install: "I"},
		cluster.Certify{Node: "node001", Install: "I", Key: "k"}, cluster.Finish{Node: "node001", Install: "I"})
	req.DryRun = true
	plan, err := o.client.Deploy(ctx, req)
	if err != nil || len(plan) != 1 || !plan[0].InPlace || plan[0].Install != "" || plan[0].Image != "head@1" || !strings.HasPrefix(plan[0].Erases, "nothing") {
		t.Fatalf("%+v, %v", plan, err)
	}
	if n, _ := o.cluster.Node("node001"); n.Update != nil {
		t.Errorf("the dry run ordered %+v", n.Update)
	}
	req.DryRun = false
	plan, err = o.client.Deploy(ctx, req)
	if n, _ := o.cluster.Node("node001"); err != nil || len(plan) != 1 || !n.Update.Pending() || n.Update.ID != plan[0].Install || !n.Update.Full || n.State != cluster.Installed {
		t.Fatalf("%+v, %v, %+v", plan, err, n.Update)
	}
	if nodes, err := o.client.Disarm(ctx, Named{Nodes: []string{"node001"}}); err != nil || nodes[0].Update.Pending() || nodes[0].State != cluster.Installed {
		t.Errorf("%+v, %v", nodes, err)
	}
	// Paths are made as in what the node runs, and do not hold it there.
	commit(t, o.cluster, cluster.HoldNode{Node: "node001", Held: true})
	plan, err = o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}, InPlace: true, Paths: []string{"/etc/motd"}})
	if n, _ := o.cluster.Node("node001"); err != nil || plan[0].Image != "head@1" || !slices.Equal(n.Update.Paths, []string{"/etc/motd"}) || !n.Held || !strings.Contains(plan[0].Erases, "/etc/motd") {
		t.Errorf("%+v, %v, %+v", plan, err, n.Update)
	}
	for _, bad := range []Deploy{{Paths: []string{"etc"}}, {InPlace: true, Disk: "/dev/vda"}, {InPlace: true, After: "reboot"}, {Force: true}, {Full: true}} {
		bad.Nodes = []string{"node001"}
		_, err := o.client.Deploy(ctx, bad)
		wants(t, err, 2, "place", "")
	}
}
