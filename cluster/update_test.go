package cluster

import (
	"context"
	"strings"
	"testing"
)

// updatable is a cluster with a node that runs head@3.
func updatable(t *testing.T) *Cluster {
	c := fresh(t)
	commit(t, c, add("n", 11), Assign{MAC: mac(1), Node: "n"})
	install(t, c, "n", "I")
	commit(t, c, Certify{Node: "n", Install: "I", Key: "k"}, Finish{Node: "n", Install: "I"})
	return c
}

func order(id string) OrderUpdate {
	return OrderUpdate{Node: "n", ID: id, Image: "head@4", Digest: "d4", Full: true}
}

func TestUpdate(t *testing.T) {
	ctx := context.Background()
	c := updatable(t)
	if n := node(t, c, "n"); n.Update.Pending() {
		t.Fatalf("%+v", n.Update)
	}
	commit(t, c, order("U1"))
	if n := node(t, c, "n"); !n.Update.Pending() || n.Update.Image != "head@4" || !n.Update.Full || !n.Update.Begun.IsZero() || n.State != Installed || n.Runs != "head@3" {
		t.Fatalf("ordered: %+v %+v", n, n.Update)
	}
	commit(t, c, BeginUpdate{Node: "n", ID: "U1"})
	begun := node(t, c, "n").Update.Begun
	seq := c.Seq()
	commit(t, c, BeginUpdate{Node: "n", ID: "U1"}) // the node was started again
	if begun.IsZero() || c.Seq() != seq {
		t.Errorf("begun at %v, and once more", begun)
	}
	for i, r := range []ReportUpdate{{Stage: "apply", Done: 1, Total: 9}, {Stage: "apply", Done: 5, Total: 9, Detail: "5 of 9\n"}} {
		r.Node, r.ID = "n", "U1"
		seq := c.Seq()
		if err := c.UpdateProgress(ctx, r); err != nil {
			t.Fatal(err)
		}
		if n := node(t, c, "n"); n.Update.Stage != "apply" || n.Update.Done != r.Done {
			t.Errorf("report %d: %+v", i, n.Update)
		}
		if wrote := c.Seq() > seq; wrote != (i == 0) {
			t.Errorf("report %d was written: %v", i, wrote)
		}
	}
	if err := c.UpdateProgress(ctx, ReportUpdate{Node: "n", ID: "U0", Stage: "apply"}); !isRefused(err) {
		t.Errorf("a report on another update: %v", err)
	}
	commit(t, c, EndUpdate{Node: "n", ID: "U1", Result: "3 written"})
	if n := node(t, c, "n"); n.Update.Pending() || n.Runs != "head@4" || n.Update.Result != "3 written" || n.Update.Done != 0 {
		t.Fatalf("done: %+v %+v", n, n.Update)
	}
	seq = c.Seq()
	commit(t, c, EndUpdate{Node: "n", ID: "U1"}, CancelUpdate{Node: "n"}) // nothing any more
	if c.Seq() != seq {
		t.Error("what had ended ended again")
	}

	commit(t, c, order("U2"), BeginUpdate{Node: "n", ID: "U2"}, EndUpdate{Node: "n", ID: "U2", Failed: "no space"})
	if n := node(t, c, "n"); n.Update.Failed != "no space" || n.Runs != "head@4" || n.State != Installed {
		t.Fatalf("failed: %+v %+v", n, n.Update)
	}
	commit(t, c, order("U3"), CancelUpdate{Node: "n"})
	if n := node(t, c, "n"); n.Update.Pending() || !strings.Contains(n.Update.Failed, "taken back") {
		t.Fatalf("taken back: %+v", n.Update)
	}
	// A later order takes the place of an earlier one, and an install that of both.
	commit(t, c, order("U4"), BeginUpdate{Node: "n", ID: "U4"}, order("U5"))
	if err := c.Commit(ctx, EndUpdate{Node: "n", ID: "U4"}); !isRefused(err) {
		t.Errorf("the update that was replaced: %v", err)
	}
	commit(t, c, arm("n", "I2"))
	if n := node(t, c, "n"); n.Update != nil {
		t.Errorf("armed: %+v", n.Update)
	}
	var kinds []string
	for _, e := range c.Events(0, Filter{Node: "n"}) {
		if strings.HasPrefix(e.Kind, "update") {
			kinds = append(kinds, e.Kind)
		}
	}
	if got := strings.Join(kinds, " "); got != "update updated update update-failed update update-failed update update" {
		t.Errorf("events: %s", got)
	}
}
