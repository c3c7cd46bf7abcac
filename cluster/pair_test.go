package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// paired is a cluster with two heads, head1 and head2, that run head@1 and are
// up, of which head1 is the active one and was captured as head@1.
func paired(t *testing.T) *Cluster {
	t.Helper()
	c := fresh(t)
	for i, name := range []string{"head1", "head2"} {
		m := mac(byte(60 + i))
		commit(t, c, AddNodes{Nodes: []Node{{Name: name, Role: Head, Addr: addr(byte(60 + i)), MAC: &m, Runs: "head@1", Key: "k" + name}}}, Up{Node: name, BootID: "b"})
	}
	commit(t, c, PairSync{Image: "head", Heads: [2]string{"head1", "head2"}})
	commit(t, c, captured(c, "head@1"))
	return c
}

// captured is a good round of the head that is active now.
func captured(c *Cluster, version string) EndRound {
	return EndRound{Image: "head", Round: Round{Begun: c.Now(), Ended: c.Now(), Version: version, Generation: c.Sync("head").Generation()}}
}

// updated has a node become a version.
func updated(t *testing.T, c *Cluster, name, version string, kept *Kept) {
	t.Helper()
	id := fmt.Sprint("U", len(entriesOf(t, c)))
	commit(t, c, OrderUpdate{Node: name, ID: id, Image: version, Digest: "d"}, EndUpdate{Node: name, ID: id, Kept: kept})
}

func turn(to, common string) TurnSync {
	return TurnSync{Image: "head", To: to, Common: common, Digest: "d"}
}

// There, the flow back, a decision, and back again: who is active, what the
// heads have in common, and what the old one has of its own.
func TestTurn(t *testing.T) {
	c := paired(t)
	if p := c.Sync("head").Pair; p.Active != "head1" || p.Generation != 1 || p.Common != "" || p.Other("head1") != "head2" || p.Other("head2") != "head1" {
		t.Fatalf("%+v", p)
	}
	commit(t, c, turn("head2", "head@1"))
	p := c.Sync("head").Pair
	if p.Active != "head2" || p.Generation != 2 || p.Common != "head@1" || p.Digest != "d" || p.Turned.IsZero() {
		t.Fatalf("%+v", p)
	}
	d := node(t, c, "head1").Parted
	if d == nil || d.Base != "head@1" || d.From != "head2" || d.Generation != 2 || !d.Open() || node(t, c, "head2").Parted != nil {
		t.Fatalf("%+v", d)
	}
	if c.Sync("head").Current() {
		t.Error("what head1 was captured as counts as head2's")
	}
	// A round of the time before that ends now says nothing of head2.
	commit(t, c, EndRound{Image: "head", Round: Round{Version: "head@9", Generation: 1}})
	if c.Sync("head").Current() || node(t, c, "head2").Runs != "head@1" {
		t.Error("a round of an earlier generation counts")
	}
	commit(t, c, captured(c, "head@2"))
	if n := node(t, c, "head2"); n.Runs != "head@2" || !c.Sync("head").Current() {
		t.Errorf("the active head runs %s", n.Runs)
	}
	updated(t, c, "head1", "head@2", &Kept{Own: 3, Both: 1})
	d = node(t, c, "head1").Parted
	if d == nil || d.Own != 3 || d.Both != 1 || d.Compared.IsZero() || !d.Open() {
		t.Fatalf("%+v", d)
	}
	refuses(t, c, turn("head1", "head@2"), "head1 has 3 paths of its own, 1 changed on both sides, that nobody has decided on", "--adopt or --revert")
	updated(t, c, "head1", "head@2", nil) // an agent that says nothing of it settles nothing
	updated(t, c, "head1", "head@3", &Kept{Own: 1})
	if d = node(t, c, "head1").Parted; d.Own != 1 || d.Both != 0 {
		t.Fatalf("%+v", d)
	}
	commit(t, c, captured(c, "head@3"))
	updated(t, c, "head1", "head@3", &Kept{})
	if d = node(t, c, "head1").Parted; d != nil {
		t.Fatalf("%+v", d)
	}
	commit(t, c, turn("head1", "head@3"))
	p = c.Sync("head").Pair
	if p.Active != "head1" || p.Generation != 3 || p.Common != "head@3" || node(t, c, "head1").Parted != nil || node(t, c, "head2").Parted.Base != "head@3" {
		t.Errorf("%+v", p)
	}
	var said []string
	for _, e := range c.Events(0, Filter{}) {
		if e.Kind == "turn" || e.Kind == "parted" || e.Kind == "equal" {
			said = append(said, e.Kind+" "+e.Node+": "+e.Text)
		}
	}
	want := strings.Join([]string{
		"turn : head1 and head2 are a pair: head1 is captured as head, and head2 follows (generation 1)",
		"turn head2: head2 is captured as head from now on, and head1 follows (generation 2); they parted with head@1 in common",
		"parted head1: head1 keeps 3 paths changed there since head@1, 1 of them on both sides: doppel sync drift head1 lists them",
		"parted head1: head1 keeps 1 path changed there since head@1, 0 of them on both sides: doppel sync drift head1 lists them",
		"equal head1: nothing on head1 is its own any more: it is equal to head@3 but for its identity",
		"turn head1: head1 is captured as head from now on, and head2 follows (generation 3); they parted with head@3 in common",
	}, "\n")
	if got := strings.Join(said, "\n"); got != want {
		t.Errorf("events:\n%s\nwant:\n%s", got, want)
	}
}

// refuses insists on a refusal with these words, after which nothing has
// changed.
func refuses(t *testing.T, c *Cluster, change Change, what, hint string) {
	t.Helper()
	before := len(entriesOf(t, c))
	err := c.Commit(t.Context(), change)
	r, ok := err.(*RefusedError)
	if !ok || !strings.Contains(r.What, what) || !strings.Contains(r.Hint, hint) {
		t.Errorf("%+v: %v; want %q and %q", change, err, what, hint)
	}
	if len(entriesOf(t, c)) != before {
		t.Errorf("%+v changed something", change)
	}
}

// Turns that would be regretted are refused with what to do; those that lose
// nothing can be forced.
func TestTurnRefused(t *testing.T) {
	for _, test := range []struct {
		name       string
		before     func(t *testing.T, c *Cluster)
		turn       TurnSync
		what, hint string
		force      string // how a forced one is refused; empty: it is not
	}{
		{"no pair", nil, TurnSync{Image: "other", To: "head2"}, "other is not kept between two heads", "between", "not kept between"},
		{"no image", nil, TurnSync{Image: "a@1", To: "head2"}, "is not the name of an image", "", "is not the name"},
		{"a stranger", nil, turn("node001", "head@1"), `"node001" is none of the two heads of head`, "head1 or head2", "none of the two"},
		{"the active one", nil, turn("head1", "head@1"), "head1 is captured already", "sync status", ""},
		{"another version by now", nil, turn("head2", "head@0"), "head2 runs head@1 by now", "again", "by now"},
		{"removed", func(t *testing.T, c *Cluster) { commit(t, c, RemoveNode{Name: "head2"}) }, turn("head2", "head@1"), "there is no node", "", "there is no node"},
		{"no agent", func(t *testing.T, c *Cluster) { commit(t, c, Unassign{Node: "head2"}) }, turn("head2", "head@1"), "head2 is not a node with an agent", "enlist", "not a node with an agent"},
		{"another image", func(t *testing.T, c *Cluster) { updated(t, c, "head2", "compute@1", nil) }, turn("head2", "compute@1"), "head2 never had a version of head", "deploy", "never had"},
		{"being updated", func(t *testing.T, c *Cluster) {
			commit(t, c, OrderUpdate{Node: "head2", ID: "U", Image: "head@2", Digest: "d"})
		}, turn("head2", "head@1"), "head2 is becoming head@2 at this moment", "end", ""},
		{"behind", func(t *testing.T, c *Cluster) { commit(t, c, captured(c, "head@2")) }, turn("head2", "head@1"), "head2 runs head@1, and head1, which is up, is at head@2", "doppel sync now head", ""},
		{"not captured yet", func(t *testing.T, c *Cluster) {
			commit(t, c, turn("head2", "head@1"))
			updated(t, c, "head1", "head@1", &Kept{})
		}, turn("head1", "head@1"), "nothing was captured from head2", "doppel sync now head", ""},
		{"not compared yet", func(t *testing.T, c *Cluster) {
			commit(t, c, turn("head2", "head@1"))
			commit(t, c, captured(c, "head@2"))
		}, turn("head1", "head@1"), "head1 has not had anything from head2 yet, and may have changes", "wait", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := paired(t)
			commit(t, c, add("node001", 11))
			if test.before != nil {
				test.before(t, c)
			}
			refuses(t, c, test.turn, test.what, test.hint)
			test.turn.Force = true
			if test.force != "" {
				refuses(t, c, test.turn, test.force, "")
				return
			}
			before := c.Sync("head").Pair
			commit(t, c, test.turn)
			p := c.Sync("head").Pair
			if p.Active != test.turn.To || p.Generation != before.Generation+1 {
				t.Errorf("forced: %+v", p)
			}
			if n := node(t, c, test.turn.To); n.Update.Pending() || n.Parted != nil {
				t.Errorf("the active head: %+v", n)
			}
		})
	}
}

// An active head that nothing was heard of lately is not waited for.
func TestTurnFromTheDead(t *testing.T) {
	c := paired(t)
	commit(t, c, captured(c, "head@2"))
	o := c.Options()
	now := o.Now()
	c.options.Now = func() time.Time { return now.Add(UpFor) }
	commit(t, c, turn("head2", "head@1"))
	if d := node(t, c, "head1"); d.Runs != "head@1" || d.Parted.Base != "head@1" {
		t.Errorf("%+v", d)
	}
}

// The heads may know a generation that this state does not.
func TestTurnAboveWhatIsKnown(t *testing.T) {
	c := paired(t)
	v := turn("head2", "head@1")
	v.Known = 7
	commit(t, c, v)
	if g := c.Sync("head").Generation(); g != 8 {
		t.Errorf("generation %d", g)
	}
	// To end a pair and make it anew, as a daemon does that is started without
	// its configuration once, neither begins at 1 again nor turns it.
	commit(t, c, PairSync{Image: "head"})
	refuses(t, c, turn("head1", "head@1"), "not kept between two heads", "")
	commit(t, c, OrderUpdate{Node: "head2", ID: "U", Image: "head@1", Digest: "d"}, CancelUpdate{Node: "head2"})
	commit(t, c, PairSync{Image: "head", Heads: [2]string{"head1", "head2"}}, PairSync{Image: "head", Heads: [2]string{"head2", "head1"}})
	if p := c.Sync("head").Pair; p.Generation != 10 || p.Active != "head2" || p.Common != "head@1" {
		t.Errorf("%+v", p)
	}
}

// Nobody makes the active head a version; paths that are named may be changed.
func TestActiveIsNotUpdated(t *testing.T) {
	c := paired(t)
	refuses(t, c, OrderUpdate{Node: "head1", ID: "U", Image: "head@1", Digest: "d"}, "head1 is the active head of head", "sync turn head --to head2")
	refuses(t, c, OrderUpdate{Node: "head1", ID: "U", Image: "head@1", Digest: "d", Force: true}, "head1 is the active head", "")
	for _, everything := range []string{"/", ".", "//", "/etc/.."} {
		refuses(t, c, OrderUpdate{Node: "head1", ID: "U", Image: "head@1", Digest: "d", Paths: []string{"/etc/motd", everything}}, "head1 is the active head", "")
	}
	refuses(t, c, Arm{Node: "head1", Install: "I", Image: "head@1", Digest: "d", After: "reboot"}, "an install would erase", "sync turn head --to head2")
	commit(t, c, OrderUpdate{Node: "head1", ID: "U", Image: "head@2", Digest: "d", Paths: []string{"etc/motd"}}, EndUpdate{Node: "head1", ID: "U"})
	if n := node(t, c, "head1"); n.Runs != "head@2" {
		t.Errorf("it runs %s", n.Runs)
	}
	// What was ordered of paths is not forgotten for others.
	commit(t, c, OrderUpdate{Node: "head1", ID: "P1", Image: "head@3", Digest: "d", Paths: []string{"etc/motd"}})
	refuses(t, c, OrderUpdate{Node: "head1", ID: "P2", Image: "head@4", Digest: "d", Paths: []string{"etc/hosts"}}, "other paths of head1 are being made as in head@3", "wait for its end: doppel status")
	if n := node(t, c, "head1"); n.Update.ID != "P1" || !n.Update.Pending() {
		t.Errorf("%+v", n.Update)
	}
	commit(t, c, EndUpdate{Node: "head1", ID: "P1"}, OrderUpdate{Node: "head1", ID: "P2", Image: "head@2", Digest: "d", Paths: []string{"etc/hosts"}}, EndUpdate{Node: "head1", ID: "P2"})
	refuses(t, c, OrderUpdate{Node: "head1", ID: "U3", Image: "other@2", Digest: "d", Paths: []string{"etc/motd"}}, "can only be made as in head@2", "")
	refuses(t, c, OrderUpdate{Node: "head2", ID: "U4", Image: "head@2", Digest: "d", Paths: []string{"etc/motd"}}, "can only be made as in head@1", "")
	// What a head has of its own is not undone by another image.
	commit(t, c, TurnSync{Image: "head", To: "head2", Common: "head@1", Digest: "d", Force: true})
	refuses(t, c, OrderUpdate{Node: "head1", ID: "U5", Image: "other@2", Digest: "d"}, "head1 may have changes of its own since head@1", "sync drift head1")
	commit(t, c, OrderUpdate{Node: "head1", ID: "U6", Image: "other@2", Digest: "d", Force: true})
}

// A head that serves itself can be enlisted by the server's address, and altered
// afterwards; a node that doppel installed cannot have it.
func TestEnlistTheServer(t *testing.T) {
	c := fresh(t)
	commit(t, c, EnlistNode{Name: "primary", MAC: mac(70), Addr: addr(1), Key: "k"})
	n := node(t, c, "primary")
	if n.State != Installed || n.Role != Head || n.Runs != "" || n.Netmask != 24 {
		t.Errorf("%+v", n)
	}
	commit(t, c, SetNode{Name: "primary", Domain: new("cluster")}, EnlistNode{Name: "primary", MAC: mac(70), Addr: addr(1), Key: "k2"})
	if n = node(t, c, "primary"); n.Domain != "cluster" || n.Key != "k2" {
		t.Errorf("%+v", n)
	}
	refuses(t, c, EnlistNode{Name: "primary", MAC: mac(71), Addr: addr(1), Key: "k"}, "primary is the machine 52:54:00:00:00:46", "node rm")
	refuses(t, c, EnlistNode{Name: "other", MAC: mac(70), Addr: addr(9), Key: "k"}, "this machine is the node primary already", "node rm primary")
	refuses(t, c, EnlistNode{Name: "a_b", MAC: mac(72), Addr: addr(9), Key: "k"}, "not a host name", "")
	refuses(t, c, EnlistNode{Name: "other", MAC: mac(72), Addr: addr(201), Key: "k"}, "in the pool", "")
	// Deployed, it is a node like any other.
	install(t, c, "primary", "I")
	commit(t, c, Certify{Node: "primary", Install: "I", Key: "k3"}, Finish{Node: "primary", Install: "I"})
	if n = node(t, c, "primary"); !n.Enlisted.IsZero() {
		t.Errorf("%+v", n)
	}
}

// A machine that is enlisted keeps what was changed on it since it was captured;
// the old primary of a pair, since that was turned.
func TestEnlistParts(t *testing.T) {
	c := paired(t)
	enlist := EnlistNode{Name: "found", MAC: mac(70), Addr: addr(70), Key: "k", Runs: "compute@2", Digest: "d2"}
	commit(t, c, enlist)
	if d := node(t, c, "found").Parted; d == nil || d.Base != "compute@2" || d.Digest != "d2" || d.Image != "compute" || !d.Open() {
		t.Errorf("%+v", d)
	}
	updated(t, c, "found", "compute@3", &Kept{})
	commit(t, c, enlist)
	if d := node(t, c, "found").Parted; d != nil {
		t.Errorf("enlisted again: %+v", d)
	}
	commit(t, c, RemoveNode{Name: "head1"}, turn("head2", "head@1"))
	commit(t, c, EnlistNode{Name: "head1", MAC: mac(60), Addr: addr(60), Key: "k", Runs: "head@0", Digest: "d0"})
	if n := node(t, c, "head1"); n.Runs != "head@1" || n.Parted == nil || n.Parted.Base != "head@1" || n.Parted.Digest != "d" || n.Parted.From != "head2" || n.Parted.Generation != 2 {
		t.Errorf("%+v: %+v", n, n.Parted)
	}
	// The active head is what it is captured as.
	commit(t, c, RemoveNode{Name: "head2"}, EnlistNode{Name: "head2", MAC: mac(61), Addr: addr(61), Key: "k", Runs: "head@1", Digest: "d"})
	commit(t, c, captured(c, "head@2"))
	if n := node(t, c, "head2"); n.Parted != nil || n.Runs != "head@2" {
		t.Errorf("%+v", n.Parted)
	}
}

// A reader cannot alter the state.
func TestPairIsCopied(t *testing.T) {
	c := paired(t)
	commit(t, c, turn("head2", "head@1"))
	c.Sync("head").Pair.Active = "altered"
	n := node(t, c, "head1")
	n.Parted.Own = 99
	if c.Sync("head").Pair.Active != "head2" || node(t, c, "head1").Parted.Own != 0 {
		t.Error("it can")
	}
}
