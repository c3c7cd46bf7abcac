package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// The whole table of states: what each change makes of a node in each state;
// a dash: refused; an equals sign: nothing to do.
const stateTable = `
             discovered  assigned    armed       installing  installed   failed
assign       Assigned    =           =           =           =           =
unassign     =           Discovered  Discovered  -           Discovered  Discovered
arm          -           Armed       Armed       -           Armed       Armed
disarm       =           =           Assigned    Assigned    =           Assigned
boot         -           -           Armed       Installing  -           -
begin        -           -           Installing  Installing  -           -
stage        -           -           Armed       Installing  -           -
finish       -           -           -           Installed   =           -
fail         -           -           Failed      Failed      -           =
up           Discovered  Assigned    Armed       Installing  Installed   Failed
remove       gone        gone        -           -           gone        gone
`

func TestStates(t *testing.T) {
	ctx := context.Background()
	rows := strings.Split(strings.TrimSpace(stateTable), "\n")
	states := strings.Fields(rows[0])
	for _, row := range rows[1:] {
		fields := strings.Fields(row)
		for i, want := range fields[1:] {
			t.Run(fields[0]+"/"+states[i], func(t *testing.T) {
				c := fresh(t)
				bring(t, c, states[i])
				seq := c.Seq()
				err := c.Commit(ctx, changeCalled(t, fields[0]))
				got := "gone"
				if n, ok := c.Node("n"); ok {
					got = string(n.State)
				}
				switch {
				case isRefused(err):
					got = "-"
				case err != nil:
					t.Fatal(err)
				case c.Seq() == seq:
					got = "="
				}
				if got != want {
					t.Errorf("%s of a node that is %s: %s, want %s (%v)", fields[0], states[i], got, want, err)
				}
			})
		}
	}
}

func bring(t *testing.T, c *Cluster, state string) {
	t.Helper()
	commit(t, c, add("n", 11))
	if state == "discovered" {
		return
	}
	commit(t, c, Assign{MAC: mac(1), Node: "n"})
	if state == "assigned" {
		return
	}
	commit(t, c, arm("n", "I"))
	if state == "armed" {
		return
	}
	commit(t, c, BeginBoot{Node: "n", Boot: nonce}, Enrol{Node: "n", Boot: nonce}, BeginInstall{Node: "n", Install: "I"})
	switch state {
	case "installed":
		commit(t, c, Finish{Node: "n", Install: "I"})
	case "failed":
		commit(t, c, Fail{Node: "n", Install: "I", Reason: "no disk"})
	}
}

func changeCalled(t *testing.T, name string) Change {
	t.Helper()
	switch name {
	case "assign":
		return Assign{MAC: mac(1), Node: "n"}
	case "unassign":
		return Unassign{Node: "n"}
	case "arm":
		return arm("n", "I2")
	case "disarm":
		return Disarm{Node: "n"}
	case "boot":
		return BeginBoot{Node: "n", Boot: nonce + "2"}
	case "begin":
		return BeginInstall{Node: "n", Install: "I"}
	case "stage":
		return ReportStage{Node: "n", Install: "I", Stage: "tools"}
	case "finish":
		return Finish{Node: "n", Install: "I"}
	case "fail":
		return Fail{Node: "n", Install: "I", Reason: "why"}
	case "up":
		return Up{Node: "n", BootID: "b", DiskGUID: "d"}
	case "remove":
		return RemoveNode{Name: "n"}
	}
	t.Fatalf("no change is called %s", name)
	return nil
}

// One node's life, with what is known of it at each step.
func TestLife(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("n", 11))
	if n := node(t, c, "n"); n.State != Discovered || n.Role != Compute || n.Netmask != 24 || n.Added.IsZero() {
		t.Fatalf("added: %+v", n)
	}
	commit(t, c, Assign{MAC: mac(1), Node: "n"}, arm("n", "I1"), BeginBoot{Node: "n", Boot: nonce})
	if n := node(t, c, "n"); n.State != Armed || n.Install.Boot != nonce || n.Install.Enrolled || n.Install.Armed.IsZero() {
		t.Fatalf("armed: %+v %+v", n, n.Install)
	}
	commit(t, c, Enrol{Node: "n", Boot: nonce}, BeginInstall{Node: "n", Install: "I1"})
	commit(t, c, ReportStage{Node: "n", Install: "I1", Stage: "apply", Done: 5, Total: 10, Writes: true})
	if n := node(t, c, "n"); n.State != Installing || n.Install.Stage != "apply" || n.Install.Done != 5 {
		t.Fatalf("installing: %+v %+v", n, n.Install)
	}
	// The power is cut: another boot, and the same install goes on.
	commit(t, c, BeginBoot{Node: "n", Boot: nonce + "2"})
	if err := c.Commit(context.Background(), Enrol{Node: "n", Boot: nonce}); !isRefused(err) {
		t.Fatalf("the boot before enrolled: %v", err)
	}
	commit(t, c, Enrol{Node: "n", Boot: nonce + "2"}, BeginInstall{Node: "n", Install: "I1"})
	if n := node(t, c, "n"); n.State != Installing || n.Install.ID != "I1" || n.Install.Stage != "apply" {
		t.Fatalf("resumed: %+v %+v", n, n.Install)
	}
	commit(t, c, Finish{Node: "n", Install: "I1"})
	if n := node(t, c, "n"); n.State != Installed || n.Runs != "head@3" || n.Install.Finished.IsZero() {
		t.Fatalf("installed: %+v %+v", n, n.Install)
	}
	commit(t, c, Up{Node: "n", DiskGUID: "I1", BootID: "b1", Kernel: "6.1"})
	if n := node(t, c, "n"); n.LastUp.IsZero() || n.UpFrom != "I1" || n.Kernel != "6.1" {
		t.Fatalf("up: %+v", n)
	}
	// Armed again and taken back: its disk was not touched.
	commit(t, c, arm("n", "I2"), Disarm{Node: "n"})
	if n := node(t, c, "n"); n.State != Installed || n.Runs != "head@3" || n.Install != nil {
		t.Fatalf("disarmed: %+v", n)
	}
	// Given a plan and taken back before anything was written: likewise.
	commit(t, c, arm("n", "I3"), BeginInstall{Node: "n", Install: "I3"}, ReportStage{Node: "n", Install: "I3", Stage: "tools"}, Disarm{Node: "n"})
	if n := node(t, c, "n"); n.State != Installed {
		t.Fatalf("disarmed before writing: %+v", n)
	}
	// Taken back while writing: what was there is gone.
	commit(t, c, arm("n", "I4"), BeginInstall{Node: "n", Install: "I4"})
	commit(t, c, ReportStage{Node: "n", Install: "I4", Stage: "partition", Writes: true}, Disarm{Node: "n"})
	if n := node(t, c, "n"); n.State != Assigned || n.Runs != "" {
		t.Fatalf("disarmed while writing: %+v", n)
	}
	// Failed: says why until it is deployed again.
	commit(t, c, arm("n", "I5"), Fail{Node: "n", Install: "I5", Reason: "chunk sha256:12 is corrupt"})
	if n := node(t, c, "n"); n.State != Failed || n.Reason != "chunk sha256:12 is corrupt" {
		t.Fatalf("failed: %+v", n)
	}
	commit(t, c, arm("n", "I6"))
	if n := node(t, c, "n"); n.State != Armed || n.Reason != "" {
		t.Fatalf("armed after a failure: %+v", n)
	}
	commit(t, c, Unassign{Node: "n"})
	if n := node(t, c, "n"); n.State != Discovered || n.MAC != nil || n.Install != nil || n.Key != "" {
		t.Fatalf("unassigned: %+v", n)
	}
	if _, ok := c.NodeByMAC(mac(1)); ok {
		t.Error("its machine is still found")
	}
}

func TestInventory(t *testing.T) {
	c := fresh(t)
	everything(t, c)
	commit(t, c, arm("node002", "I9"))
	b, err := c.Export().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	inv, err := ParseInventory(b)
	if err != nil {
		t.Fatal(err)
	}
	other := fresh(t)
	commit(t, other, AddNodes{Nodes: inv.Nodes})
	for _, n := range c.Nodes() {
		got := node(t, other, n.Name)
		want := n.State
		if want == Armed || want == Failed { // no arming is imported
			want = Assigned
		}
		if !nodesEqual(&got, &n) || got.State != want || got.Install != nil || got.Runs != n.Runs || got.Key != n.Key {
			t.Errorf("imported: %+v\nwas: %+v", got, n)
		}
	}
	for _, bad := range []string{"", "{}", "[]", `{"doppel_nodes":2,"nodes":[]}`, `{"doppel_nodes":1,"nodes":[{"nme":"x"}]}`, `{"doppel_nodes":1}{}`} {
		if _, err := ParseInventory([]byte(bad)); err == nil {
			t.Errorf("%s was taken for an inventory", bad)
		}
	}
}

func FuzzInventory(f *testing.F) {
	f.Add([]byte(`{"doppel_nodes":1,"nodes":[{"name":"n","role":"compute","addr":"10.77.0.5","netmask":24,"state":"Discovered","added":"2026-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"doppel_nodes":1,"nodes":[{"name":"n","mac":"52:54:00:00:00:01","addr":"10.77.0.5","state":"Armed","install":{"id":"x"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		inv, err := ParseInventory(b)
		if err != nil {
			return
		}
		s := newState(testOptions().filled())
		at := newClock().now()
		err = s.carryOut(&request{changes: []Change{AddNodes{Nodes: inv.Nodes}}}, at)
		if err != nil && !isRefused(err) {
			t.Fatalf("neither taken nor refused: %v", err)
		}
		for _, n := range s.nodes {
			if n.State == Armed || n.State == Installing || n.Install != nil {
				t.Fatalf("an import has armed %+v", n)
			}
			if _, err := EncodeEntry(s.journal.entries[0]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRefusedErrorText(t *testing.T) {
	err := error(&RefusedError{What: "it cannot be", Hint: "do this"})
	if err.Error() != "it cannot be (do this)" {
		t.Errorf("got %q", err)
	}
	if err := error(&RefusedError{What: "it cannot be"}); err.Error() != "it cannot be" {
		t.Errorf("got %q", err)
	}
	if errors.Is(err, ErrClosed) {
		t.Error("it is another error")
	}
}
