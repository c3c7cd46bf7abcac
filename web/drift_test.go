package web

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// A node that waits for work is asked, and its answer is given to who asked.
func TestDrift(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = time.Minute
	b.machines.Update = func(n cluster.Node) Policy { return Policy{Keep: []string{"kept/of/" + n.Update.Image}} }
	m := b.certified("node001", 11)
	type answer struct {
		report json.RawMessage
		err    error
	}
	got := make(chan answer, 1)
	asked := make(chan clone.Task)
	poll := func() {
		var task clone.Task
		m.ask("/v1/task", clone.Idle{}, &task)
		asked <- task
	}
	go poll()
	go func() {
		r, err := b.machines.AskDrift(t.Context(), b.node("node001"), "head@1", digest, true)
		got <- answer{r, err}
	}()
	o := (<-asked).Drift
	if o == nil || o.Image != "head@1" || !o.Full || o.Digest != digest || len(o.Keep) != 1 || o.Keep[0] != "kept/of/head@1" || o.Head != nil {
		t.Fatalf("%+v", o)
	}
	go poll() // it was started anew before it answered
	if again := (<-asked).Drift; again == nil || again.ID != o.ID {
		t.Errorf("%+v", again)
	}
	other := b.certified("node002", 12)
	if status, _ := other.ask("/v1/drift", clone.DriftWord{ID: o.ID, Report: json.RawMessage(`{"entries":9}`)}, nil); status != 403 {
		t.Errorf("another node answers: %d", status)
	}
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID, Report: json.RawMessage(`{"entries":7}`)}, nil); status != 204 {
		t.Errorf("%d, %s", status, why)
	}
	if a := <-got; a.err != nil || string(a.report) != `{"entries":7}` {
		t.Errorf("%s, %v", a.report, a.err)
	}
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID}, nil); status != 403 || !strings.Contains(why, "nobody waits") {
		t.Errorf("twice: %d, %s", status, why)
	}

	// What the node could not do is told; who does not wait any more leaves
	// nothing behind.
	go poll()
	go func() {
		r, err := b.machines.AskDrift(t.Context(), b.node("node001"), "head@1", digest, false)
		got <- answer{r, err}
	}()
	o = (<-asked).Drift
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID, Failed: "no plan.json"}, nil); status != 204 {
		t.Errorf("%d, %s", status, why)
	}
	refused, ok := errors.AsType[*cluster.RefusedError]((<-got).err)
	if !ok || !strings.Contains(refused.What, "no plan.json") {
		t.Errorf("%v", refused)
	}
	b.noSecrets(m)
}

func TestAdminDrift(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	_, err := o.client.Drift(ctx, DriftRequest{Node: "node001"})
	wants(t, err, 1, "runs nothing that doppel installed", "doppel status")
	_, err = o.client.Drift(ctx, DriftRequest{Node: "nobody"})
	wants(t, err, 1, "no node", "")
}
