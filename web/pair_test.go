package web

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
)

// paired makes two nodes the heads of a pair.
func paired(t *testing.T, b *bench) (one, two *machine) {
	t.Helper()
	one, two = b.certified("node001", 11), b.certified("node002", 12)
	commit(t, b.cluster, cluster.PairSync{Image: "head", Heads: [2]string{"node001", "node002"}})
	b.machines.Pair = func(n cluster.Node) *clone.PairWord {
		p := b.cluster.Sync("head").Pair
		if !p.Has(n.Name) {
			return nil
		}
		return &clone.PairWord{Image: "head", Generation: p.Generation, Source: p.Active == n.Name}
	}
	return one, two
}

// A head is told the direction as soon as it asks for work and does not know
// it: after a daemon that ended between the turn and the word, too. One that
// does not take it is not told without end.
func TestTellPair(t *testing.T) {
	b := newBench(t)
	one, two := paired(t, b)
	b.machines.Patience = time.Millisecond
	ask := func(m *machine, known *clone.PairWord) *clone.PairOrders {
		t.Helper()
		var task clone.Task
		if status, why := m.ask("/v1/task", clone.Idle{Pair: known}, &task); status != 200 && status != 204 {
			t.Fatalf("%d, %s", status, why)
		}
		return task.Pair
	}
	source := clone.PairWord{Image: "head", Generation: 1, Source: true}
	if o := ask(one, nil); o == nil || o.PairWord != source || o.ID != "" {
		t.Fatalf("%+v", o)
	}
	if status, why := one.ask("/v1/pair", clone.PairAnswer{PairWord: source}, nil); status != 204 {
		t.Fatalf("%d, %s", status, why)
	}
	if o := ask(one, nil); o != nil {
		t.Error("it is told again at once")
	}
	if o := ask(one, &source); o != nil || b.machines.Knows("node001") != 1 {
		t.Error("it is told what it knows")
	}
	commit(t, b.cluster, cluster.TurnSync{Image: "head", To: "node002", Common: "head@1", Digest: digest, Force: true})
	if o := ask(two, &clone.PairWord{Image: "head", Generation: 1}); o == nil || !o.Source || o.Generation != 2 {
		t.Errorf("%+v", o)
	}

	// One that knows a later direction is told nothing, and an event says that
	// this doppel's state is the older one; once for each generation.
	for range 2 {
		if o := ask(two, &clone.PairWord{Image: "head", Generation: 7, Source: true}); o != nil {
			t.Errorf("%+v", o)
		}
	}
	stale := b.cluster.Events(0, cluster.Filter{Kind: "stale"})
	if len(stale) != 1 || stale[0].Node != "node002" || !strings.Contains(stale[0].Text, "node002 takes no orders from this doppel") || !strings.Contains(stale[0].Text, "generation 7") || b.machines.Knows("node002") != 7 {
		t.Errorf("%+v", stale)
	}
	b.noSecrets(one)
}

// A head is asked what it knows, and told, while somebody waits for its answer.
func TestAskPair(t *testing.T) {
	b := newBench(t)
	one, two := paired(t, b)
	b.machines.Patience = time.Minute
	known := clone.PairWord{Image: "head", Generation: 1, Source: true}
	answer := func(m *machine, a clone.PairAnswer) {
		var task clone.Task
		m.ask("/v1/task", clone.Idle{Pair: &known}, &task)
		if task.Pair == nil || task.Pair.ID == "" {
			t.Errorf("%+v", task)
			return
		}
		a.ID = task.Pair.ID
		if status, _ := two.ask("/v1/pair", a, nil); status != 403 {
			t.Errorf("another node answers: %d", status)
		}
		if status, why := m.ask("/v1/pair", a, nil); status != 204 {
			t.Errorf("%d, %s", status, why)
		}
	}
	go answer(one, clone.PairAnswer{PairWord: known})
	if w, err := b.machines.AskPair(t.Context(), "node001", clone.PairWord{}); err != nil || w != known {
		t.Errorf("%+v, %v", w, err)
	}
	go answer(one, clone.PairAnswer{PairWord: known, Failed: "no space left on device"})
	_, err := b.machines.AskPair(t.Context(), "node001", clone.PairWord{Image: "head", Generation: 2})
	if no, ok := errors.AsType[*cluster.RefusedError](err); !ok || !strings.Contains(no.What, "node001 does not take the direction: no space left") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.machines.AskPair(ctx, "node001", clone.PairWord{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A head that parted is told with its orders what both had in common, and what
// it kept is in the state; another image's orders say nothing of it.
func TestPartedOrders(t *testing.T) {
	b := newBench(t)
	one, _ := paired(t, b)
	b.machines.Patience = time.Minute
	commit(t, b.cluster, cluster.TurnSync{Image: "head", To: "node002", Common: "head@1", Digest: digest, Force: true})
	word := b.machines.Pair(b.node("node001"))
	// An agent that knows nothing of pairs would keep nothing.
	commit(t, b.cluster, cluster.OrderUpdate{Node: "node001", ID: "U0", Image: "head@2", Digest: digest})
	b.machines.Patience = time.Millisecond
	for i := range 2 {
		var task clone.Task
		if status, why := one.ask("/v1/task", clone.Idle{}, &task); task.Update != nil || (task.Pair != nil) != (i == 0) {
			t.Fatalf("%d, %s: %+v", status, why, task)
		}
	}
	b.machines.Patience = time.Minute
	order := func(id, image string, force bool) *clone.UpdateOrders {
		t.Helper()
		commit(t, b.cluster, cluster.OrderUpdate{Node: "node001", ID: id, Image: image, Digest: digest, Force: force})
		var task clone.Task
		if status, why := one.ask("/v1/task", clone.Idle{Pair: word}, &task); status != 200 || task.Update == nil {
			t.Fatalf("%d, %s: %+v", status, why, task)
		}
		return task.Update
	}
	o := order("U1", "head@2", false)
	if o.Parted == nil || o.Parted.Base != "head@1" || o.Parted.Digest != digest || o.Pair == nil || *o.Pair != *word {
		t.Fatalf("%+v", o)
	}
	done := clone.UpdateWord{Report: clone.Report{Install: "U1", Stage: clone.StageFinish}, Result: &clone.UpdateReport{Apply: &imaging.ApplyReport{}, Kept: &clone.Kept{Own: 4, Both: 1}}}
	if status, why := one.ask("/v1/update", done, nil); status != 204 {
		t.Fatalf("%d, %s", status, why)
	}
	if n := b.node("node001"); n.Parted == nil || n.Parted.Own != 4 || n.Parted.Both != 1 || !strings.Contains(n.Update.Result, "4 kept that were changed here, 1 of them on both sides") {
		t.Errorf("%+v, %+v", n.Parted, n.Update)
	}
	if o := order("U2", "other@2", true); o.Parted != nil {
		t.Errorf("%+v", o.Parted)
	}
}

func found(nics ...clone.NIC) clone.Found {
	return clone.Found{
		Hostname: "primary", NICs: nics, Hardware: clone.Hardware{Arch: "x86_64", Firmware: clone.BIOS},
		Trees: []clone.FoundTree{{Mount: "/", Type: "ext4", UUID: "1111-11"}, {Mount: "/srv", Type: "xfs", UUID: "2222"}}, Root: "UUID=1111-11",
	}
}

func nic(name, mac string, addrs ...string) clone.NIC {
	n := clone.NIC{Name: name, MAC: mac}
	for _, a := range addrs {
		n.Addrs = append(n.Addrs, netip.MustParsePrefix(a))
	}
	return n
}

// A machine that was not installed becomes a node by the address that it has in
// the network, with a certificate for its own key, by which it is let in.
func TestEnlist(t *testing.T) {
	b := newBench(t)
	csr := newCSR(t)
	f := found(nic("eth0", "52:54:00:00:00:21", "192.168.1.5/24"), nic("eth1", "52:54:00:00:00:22", "127.77.0.33/24"))
	f.CSR = csr
	req := EnlistRequest{Name: "primary", Runs: "head@3", Digest: digest, Found: f, DryRun: true}
	if a, err := b.machines.EnlistNode(t.Context(), req); err != nil || a.Certificate != nil || a.Plan.Found == nil || a.Node.Addr != addrOf(33) {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, there := b.cluster.Node("primary"); there {
		t.Error("a dry run keeps it")
	}
	req.DryRun = false
	a, err := b.machines.EnlistNode(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	n := b.node("primary")
	if n.State != cluster.Installed || n.Role != cluster.Head || n.Runs != "head@3" || n.MAC.String() != "52:54:00:00:00:22" || n.Enlisted.IsZero() || n.Key == "" {
		t.Errorf("%+v", n)
	}
	p := a.Plan
	if p.Node != "primary" || p.FileSystemAt("/srv") == nil || p.FileSystemAt("/").FS.UUID != "1111-11" || p.Server != "https://127.0.0.1:8443" || p.Addr.String() != "127.77.0.33/24" || p.Found.Root != "UUID=1111-11" {
		t.Errorf("%+v", p)
	}
	// Again: another key, the same node.
	again, err := b.machines.EnlistNode(t.Context(), req)
	if err != nil || b.node("primary").Key == "" || string(again.Certificate) == string(a.Certificate) {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		name  string
		alter func(*EnlistRequest)
		want  string
	}{
		{"no address", func(r *EnlistRequest) { r.Found.NICs = r.Found.NICs[:1] }, "has no address in 127.77.0.0/24; it has eth0 192.168.1.5/24"},
		{"another address", func(r *EnlistRequest) { r.Addr = addrOf(99) }, "has no address 127.77.0.99"},
		{"several", func(r *EnlistRequest) {
			r.Found.NICs = append(r.Found.NICs, nic("eth2", "52:54:00:00:00:23", "127.77.0.34/24"))
		}, "several addresses"},
		{"another machine of that name", func(r *EnlistRequest) { r.Found.NICs = []clone.NIC{nic("eth0", "52:54:00:00:00:29", "127.77.0.39/24")} }, "primary is the machine 52:54:00:00:00:22"},
		{"another name of that machine", func(r *EnlistRequest) { r.Name = "other" }, "this machine is the node primary already"},
		{"no root", func(r *EnlistRequest) { r.Found.Trees = nil }, "cannot be made a node"},
		{"no request for a certificate", func(r *EnlistRequest) { r.Found.CSR = nil }, "certificate request cannot be used"},
		{"installed by doppel", func(r *EnlistRequest) { r.Name = "node001" }, "node001 is a node that doppel installed"},
	} {
		if c.name == "installed by doppel" {
			b.certified("node001", 11)
		}
		r := req
		c.alter(&r)
		before := b.cluster.Seq()
		if _, err := b.machines.EnlistNode(t.Context(), r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if b.cluster.Seq() != before {
			t.Errorf("%s: something was changed", c.name)
		}
	}
}
