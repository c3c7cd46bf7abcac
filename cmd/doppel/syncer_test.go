package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"doppel/cluster"
	"doppel/web"
)

// testSyncer is the daemon's syncer with a state of its own, whose source is a
// directory.
type testSyncer struct {
	*syncer
	t    *testing.T
	root string
	now  time.Time
	log  bytes.Buffer
}

func newTestSyncer(t *testing.T, more string) *testSyncer {
	t.Helper()
	needRoot(t)
	ts := &testSyncer{t: t, root: t.TempDir(), now: time.Now()}
	ts.write("etc/motd", "welcome\n")
	config, problems := parseConfig(fmt.Appendf(nil, "[network]\ninterface = \"eth1\"\npool = \"10.77.0.200-10.77.0.250\"\n[[sync]]\nimage = \"head\"\nsource = \"local\"\nroot = %q\nnodes = [\"@head\", \"@compute\"]\n%s", ts.root, more))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	state := t.TempDir()
	d := &daemon{g: &globals{state: state}, config: config, log: slog.New(slog.NewTextHandler(&ts.log, nil))}
	var err error
	if d.catalog, err = d.openCatalog(); err != nil {
		t.Fatal(err)
	}
	if err := d.catalog.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.cluster, err = cluster.Open(filepath.Join(state, "cluster.db"), cluster.Options{Network: netip.MustParsePrefix("10.77.0.0/24"), Now: func() time.Time { return ts.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	ts.syncer = newSyncer(d)
	return ts
}

func (ts *testSyncer) write(name, text string) {
	ts.t.Helper()
	at := filepath.Join(ts.root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		ts.t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
		ts.t.Fatal(err)
	}
}

func (ts *testSyncer) commit(changes ...cluster.Change) {
	ts.t.Helper()
	if err := ts.d.cluster.Commit(ts.t.Context(), changes...); err != nil {
		ts.t.Fatal(err)
	}
}

// node adds a node that runs a version and is up.
func (ts *testSyncer) node(name string, last byte, role cluster.Role, runs string) {
	ts.t.Helper()
	mac := cluster.MAC{0x52, 0x54, 0, 0, 0, last}
	ts.commit(cluster.AddNodes{Nodes: []cluster.Node{{Name: name, Role: role, Addr: netip.AddrFrom4([4]byte{10, 77, 0, last}), MAC: &mac, Runs: runs, Key: "k" + name}}},
		cluster.Up{Node: name, BootID: "b", DiskGUID: "g"})
}

func (ts *testSyncer) round(wanted bool) cluster.Sync {
	ts.t.Helper()
	ts.syncer.round(ts.t.Context(), ts.syncs[0], wanted)
	return ts.state(ts.syncs[0])
}

// pending lists the nodes that are being updated, and to what.
func (ts *testSyncer) pending() string {
	ts.t.Helper()
	if err := ts.roll(ts.t.Context(), ts.syncs[0]); err != nil {
		ts.t.Fatal(err)
	}
	var out []string
	for _, n := range ts.d.cluster.Nodes() {
		if n.Update.Pending() {
			out = append(out, n.Name+" "+n.Update.Image)
		}
	}
	return strings.Join(out, ", ")
}

func (ts *testSyncer) end(name, failed string) {
	ts.t.Helper()
	n, _ := ts.d.cluster.Node(name)
	ts.commit(cluster.EndUpdate{Node: name, ID: n.Update.ID, Failed: failed})
}

// shown is what doppel sync status prints.
func (ts *testSyncer) shown() string {
	ts.t.Helper()
	list, err := ts.Status(ts.t.Context())
	if err != nil {
		ts.t.Fatal(err)
	}
	var b strings.Builder
	for _, s := range list {
		if err := printSync(&b, s, ts.now); err != nil {
			ts.t.Fatal(err)
		}
	}
	return b.String()
}

func (ts *testSyncer) shows(words ...string) {
	ts.t.Helper()
	have := ts.shown()
	for _, w := range words {
		if !strings.Contains(have, w) {
			ts.t.Errorf("status does not say %q:\n%s", w, have)
		}
	}
}

// A source is captured when it has changed, and what came of it is kept; the
// word that nothing had changed is written once a minute.
func TestSyncRounds(t *testing.T) {
	ts := newTestSyncer(t, "")
	ts.shows("head  from local every 15 min", "last round  none yet", "next round  now", "none yet")
	if s := ts.round(false); s.Good == nil || s.Good.Version != "head@1" || s.Good.Unchanged || s.Good.Added == 0 {
		t.Fatalf("%+v\n%s", s.Last, ts.log.String())
	}
	ts.now = ts.now.Add(10 * time.Second)
	seq := ts.d.cluster.Seq()
	if s := ts.round(false); !s.Last.Unchanged || s.Last.Version != "head@1" || s.Last.Begun != ts.d.cluster.Now() {
		t.Errorf("%+v", s.Last)
	}
	if ts.d.cluster.Seq() != seq {
		t.Error("a round that changed nothing was written at once")
	}
	if s := ts.round(true); !s.Last.Unchanged || ts.d.cluster.Seq() == seq {
		t.Errorf("a round that somebody waits for was not written: %+v", s.Last)
	}
	ts.now = ts.now.Add(2 * time.Minute)
	seq = ts.d.cluster.Seq()
	if ts.round(false); ts.d.cluster.Seq() == seq {
		t.Error("after two minutes the word that nothing had changed was not written")
	}
	ts.write("etc/motd", "another\n")
	if s := ts.round(false); s.Good.Version != "head@2" || s.Good.Unchanged {
		t.Errorf("%+v", s.Last)
	}
	ts.now = ts.now.Add(5 * time.Minute)
	ts.shows("last round  5 min ago: new version head@2", "next round  in 10 min", "2 versions, the latest is head@2")

	// Once a week everything is read anew, though nothing seems to have changed.
	ts.now = ts.now.Add(8 * 24 * time.Hour)
	if s := ts.round(false); !s.Last.Full || !s.Last.Unchanged || s.Last.Read == 0 || !s.Full.Equal(ts.d.cluster.Now()) {
		t.Errorf("%+v, read anew at %v", s.Last, s.Full)
	}
	ts.now = ts.now.Add(time.Second)
	if s := ts.round(false); s.Last.Full {
		t.Errorf("%+v", s.Last)
	}

	// A source that is not there fails, is told once, and does not hurt what is there.
	if err := os.Rename(ts.root, ts.root+".away"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ts.now = ts.now.Add(time.Minute)
		ts.round(false)
	}
	ts.shows("failed: ", "3 rounds in a row failed; the last that did not was 3 min ago", "next round  in 2 min")
	if events := ts.d.cluster.Events(0, cluster.Filter{Kind: "sync-failed"}); len(events) != 1 {
		t.Errorf("events: %+v", events)
	}
	if err := os.Rename(ts.root+".away", ts.root); err != nil {
		t.Fatal(err)
	}
	if s := ts.round(false); s.Failures != 0 || s.Good.Version != "head@2" {
		t.Errorf("%+v", s)
	}
	// A round that the daemon's end cuts short was nobody's failure.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := ts.d.cluster.Sync("head")
	ts.syncer.round(ctx, ts.syncs[0], true)
	if after := ts.d.cluster.Sync("head"); *after.Last != *before.Last {
		t.Errorf("%+v", after.Last)
	}
	ts.commit(cluster.PauseSync{Image: "head", Paused: true})
	ts.shows("paused since")
}

// Nodes that follow are updated one after the other; none after one that has
// failed, until it has succeeded.
func TestSyncFollows(t *testing.T) {
	ts := newTestSyncer(t, "max_unavailable = 1\n")
	ts.round(false)
	ts.write("etc/motd", "second\n")
	ts.round(false)
	ts.node("node001", 11, cluster.Compute, "head@1")
	ts.node("node002", 12, cluster.Compute, "head@1")
	ts.node("node003", 13, cluster.Compute, "other@1")
	ts.node("standby", 2, cluster.Head, "head@2")
	expect := func(want string) {
		t.Helper()
		if have := ts.pending(); have != want {
			t.Errorf("updates of %q, want %q\n%s", have, want, ts.shown())
		}
	}
	expect("node001 head@2")
	expect("node001 head@2") // and no other meanwhile
	ts.now = ts.now.Add(time.Second)
	ts.shows("node001     runs head@1, not head@2", "to become head@2 when it is heard from", "node003     runs other@1, which is no version of head", "standby     equal to head@2: has what the source was")
	ts.end("node001", "")
	expect("node002 head@2")
	ts.end("node002", "no space left on device")
	expect("")
	ts.write("etc/motd", "third\n")
	ts.round(false)
	expect("standby head@3") // another version is another try
	ts.end("standby", "")
	expect("node001 head@3")
	ts.end("node001", "")
	expect("node002 head@3")
	ts.end("node002", "no space left on device")
	expect("")
	ts.shows("did not become head@3", "no space left on device", "no other node is updated to head@3 until node002 has succeeded")
	ts.now = ts.now.Add(2 * time.Minute)
	expect("node002 head@3") // it is tried again
	ts.end("node002", "no space left on device")
	ts.now = ts.now.Add(90 * time.Second)
	expect("") // not so soon
	ts.now = ts.now.Add(time.Minute)
	expect("node002 head@3")
	ts.end("node002", "")
	expect("")

	// Who is down is left until it is up; who is held, and what is paused, is
	// not touched.
	ts.write("etc/motd", "fourth\n")
	ts.round(false)
	ts.commit(cluster.PauseSync{Image: "head", Paused: true})
	expect("")
	ts.commit(cluster.PauseSync{Image: "head"}, cluster.HoldNode{Node: "node001", Held: true})
	ts.now = ts.now.Add(time.Hour)
	expect("")
	ts.shows("not heard from for 65 min", "stays there: doppel sync resume --node node001")
	ts.commit(cluster.Up{Node: "node001"}, cluster.Up{Node: "node002"})
	expect("node002 head@4")
}

// Versions that no rule keeps go, but for those that a node runs or a tag names.
func TestSyncKeeps(t *testing.T) {
	ts := newTestSyncer(t, "keep_last = 2\n")
	ts.node("standby", 2, cluster.Head, "head@1")
	for i := range 5 {
		ts.write("etc/motd", strings.Repeat("x", i+1))
		ts.round(false)
		if i == 1 {
			if _, err := ts.d.catalog.Tag(t.Context(), "head@2", "golden"); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := ts.d.catalog.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, v := range list {
		have = append(have, v.Ref())
	}
	if got := strings.Join(have, " "); got != "head@1 head@2 head@4 head@5" {
		t.Errorf("there are %s\n%s", got, ts.log.String())
	}
}

// What holds for updates is said by the sync whose image the node gets.
func TestSyncPolicy(t *testing.T) {
	ts := newTestSyncer(t, "keep = [\"srv/**\"]\npre_update = \"before\"\n")
	n := cluster.Node{Update: &cluster.Update{Image: "head@3"}}
	if p := ts.policy(n); p.Pre != "before" || len(p.Keep) != 1 {
		t.Errorf("%+v", p)
	}
	n.Update.Image = "other@3"
	if p := ts.policy(n); p.Pre != "" {
		t.Errorf("%+v", p)
	}
}

func TestSyncConfig(t *testing.T) {
	head := "[network]\ninterface = \"eth1\"\npool = \"10.77.0.200-10.77.0.250\"\n[[sync]]\n"
	for _, c := range []struct{ text, want string }{
		{"image = \"a b\"\nsource = \"local\"", "sync 1, image: "},
		{"image = \"head\"", "sync 1, nodes: there is neither a source nor a node"},
		{"image = \"head\"\nsource = \"root@\"", "sync 1, source: "},
		{"image = \"head\"\nsource = \"local\"\nsudo = true", "sync 1, source: --sudo means nothing for local"},
		{"image = \"head\"\nsource = \"node:standby\"\npre_capture = \"true\"", "sync 1, source: no command can be run on a node"},
		{"image = \"head\"\nsource = \"local\"\ninterval = \"soon\"", "sync 1, interval: \"soon\" is not a duration"},
		{"image = \"head\"\nsource = \"local\"\ninterval = \"10ms\"", "of 1s or more"},
		{"image = \"head\"\nsource = \"local\"\nwindows = [\"never\"]", "sync 1, windows: \"never\" is no window"},
		{"image = \"head\"\nsource = \"local\"\nkeep = [\"/srv\"]", "sync 1, keep: \"/srv\" is not a path from the root"},
		{"image = \"head\"\nsource = \"local\"\nkeep = [\"srv/[\"]", "sync 1, keep: \"srv/[\" is no pattern"},
		{"image = \"head\"\nsource = \"local\"\nmax_unavailable = -1", "sync 1, max_unavailable: "},
		{"image = \"head\"\nsource = \"local\"\nkeep_last = -1", "sync 1, keep_last: "},
		{"image = \"head\"\nsource = \"local\"\nlimit = \"much\"", "sync 1, source: --limit"},
		{"image = \"head\"\nsource = \"local\"\nsnapshot = \"perhaps\"", "sync 1, snapshot: --snapshot: \"perhaps\" is none of"},
		{"image = \"head\"\nsource = \"local\"\nfreeze_for = \"1h\"", "sync 1, snapshot: --freeze-for"},
		{"image = \"head\"\nsource = \"local\"\npost_snapshot = \"true\"", "sync 1, source: --post-snapshot needs"},
		{"image = \"head\"\nsource = \"node:n1\"\nsnapshot = \"require\"\npost_snapshot = \"true\"", "sync 1, source: no command can be run"},
		{"image = \"head\"\nsource = \"local\"\nnodes = [\"n[1-\"]", "sync 1, nodes: "},
		{"image = \"head\"\nsource = \"local\"\n[[sync]]\nimage = \"head\"\nsource = \"local\"", "sync 2, image: there is another sync of head"},
		{"image = \"head\"\nbetween = [\"head1\"]", "sync 1, between: name the two heads, as in between = [\"head1\", \"head2\"]"},
		{"image = \"head\"\nbetween = []", "sync 1, between: name the two heads"},
		{"image = \"head\"\nbetween = [\"head1\", \"head1\"]", "sync 1, between: name the two heads"},
		{"image = \"head\"\nbetween = [\"@head\", \"head1\"]", "sync 1, between: \"@head\" is not the name of one node"},
		{"image = \"head\"\nbetween = [\"head[1-2]\", \"head1\"]", "sync 1, between: \"head[1-2]\" is not the name of one node"},
		{"image = \"head\"\nbetween = [\"head1\", \"head2\"]\nsource = \"local\"", "sync 1, between: leave source out: one of the two heads is the source"},
		{"image = \"head\"\nbetween = [\"head1\", \"head2\"]\nroot = \"/srv\"", "sync 1, root: heads of a pair are captured whole"},
		{"image = \"head\"\nbetween = [\"head1\", \"head2\"]\nsudo = true", "sync 1, sudo: leave it out: heads of a pair are captured through their agents"},
		{"image = \"head\"\nbetween = [\"head1\", \"head2\"]\npre_capture = \"x\"", "sync 1, pre_capture: leave it out"},
		{"image = \"a\"\nbetween = [\"head1\", \"head2\"]\n[[sync]]\nimage = \"b\"\nbetween = [\"head3\", \"head2\"]", "sync 2, between: head2 is of the pair of sync 1 already"},
		{"image = \"head\"\nnodes = [\"@head\"]\nkeep_last = 3\nwatch = true", "sync 1, watch: there is no source to be watched"},
		{"image = \"head\"\nsource = \"local\"\nwatch = true", "sync 1, watch: a source that is watched makes many versions"},
		{"image = \"head\"\nsource = \"local\"\nkeep_last = 3\nwatch = true\nsnapshot = \"auto\"", "sync 1, watch: what is kept still"},
		{"image = \"head\"\nsource = \"local\"\nkeep_last = 3\nwatch = true\nrescan_every = \"0s\"", "sync 1, rescan_every: "},
		{"image = \"head\"\nevery = \"15m\"", "unknown key \"sync.every\""},
	} {
		_, problems := parseConfig([]byte(head + c.text + "\n"))
		if got := strings.Join(problems, "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%s\nsays %q, want %q", c.text, got, c.want)
		}
	}
	// The help shows every key, and what it shows can be.
	_, example, _ := strings.Cut(syncHelp, "\n  [[sync]]\n")
	var lines []string
	for line := range strings.Lines(example) {
		lines = append(lines, strings.ReplaceAll(strings.TrimSpace(line), "…", "true"))
	}
	c, problems := parseConfig([]byte(head + strings.Join(lines, "\n") + "\n"))
	if len(problems) > 0 || len(c.Syncs) != 1 || c.Syncs[0].AtOnce != 1 || c.Syncs[0].Retain.Weekly != 4 || len(c.Syncs[0].Schedule.Windows) != 2 {
		t.Errorf("the help's example: %v", problems)
	}
	_, example, _ = strings.Cut(pairHelp, "\n  [[sync]]\n")
	c, problems = parseConfig([]byte(head + strings.ReplaceAll(example, "\n  ", "\n") + "\n"))
	if len(problems) > 0 || !c.Syncs[0].pair() || strings.Join(c.Syncs[0].Nodes, " ") != "head1 head2" || !c.Syncs[0].captures() {
		t.Errorf("the help's example of a pair: %v", problems)
	}
}

// The source itself may be a node, and among those that are meant: it is never
// made equal to its own image.
func TestSyncSourceDoesNotFollow(t *testing.T) {
	ts := newTestSyncer(t, "")
	ts.round(false)
	ts.write("etc/motd", "second\n")
	ts.round(false)
	ts.node("primary", 3, cluster.Head, "head@1")
	ts.node("standby", 2, cluster.Head, "head@1")
	for _, source := range []string{"root@primary", "root@10.77.0.3", "admin@primary.cluster:2222"} {
		ts.syncs[0].Source = source
		if have := ts.pending(); have != "standby head@2" {
			t.Errorf("%s: updates of %q", source, have)
		}
	}
	ts.shows("primary     is the source itself")
}

func TestSyncStatusWithoutSyncs(t *testing.T) {
	_, err := web.NewClient(filepath.Join(t.TempDir(), "doppel.sock")).Syncs(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no doppel serve answers") {
		t.Error(err)
	}
}

// Of a pair nobody is updated before the head that is the active one now was
// captured, and a round of the one that was is nobody's any more.
func TestSyncPair(t *testing.T) {
	ts := newTestSyncer(t, "")
	o := ts.syncs[0]
	ts.round(false)
	ts.node("head1", 3, cluster.Head, "head@1")
	ts.node("head2", 2, cluster.Head, "head@1")
	o.Between = [2]string{"head1", "head2"}
	ts.pairUp(t.Context())
	ts.pairUp(t.Context()) // as with every start
	// Heads are captured through their agents, which are not here: the rounds'
	// ends are what they would be.
	captured := func(version string) {
		t.Helper()
		ts.commit(cluster.EndRound{Image: "head", Round: cluster.Round{Begun: ts.now, Ended: ts.now, Version: version, Generation: ts.d.cluster.Sync("head").Generation()}})
	}
	if ts.sourceOf(o) != "node:head1" || ts.pending() != "" {
		t.Errorf("from %s, updates of %q", ts.sourceOf(o), ts.pending())
	}
	ts.shows("direction   head1 to head2, generation 1", "nothing was captured in it yet, so nobody is updated", "head1       is the active head, which is captured")
	o.Between = [2]string{}
	o.Source = "local"
	ts.write("etc/motd", "second\n")
	ts.round(false)
	o.Between, o.Source = [2]string{"head1", "head2"}, ""
	captured("head@2")
	if have := ts.pending(); have != "head2 head@2" {
		t.Errorf("updates of %q", have)
	}
	if w := ts.pairOf(cluster.Node{Name: "head2"}); w == nil || w.Source || w.Generation != 1 || w.Image != "head" {
		t.Errorf("%+v", w)
	}
	if w := ts.pairOf(cluster.Node{Name: "node001"}); w != nil {
		t.Errorf("%+v", w)
	}
	ts.end("head2", "")
	ts.commit(cluster.TurnSync{Image: "head", To: "head2", Common: "head@2", Digest: "d"})
	if ts.sourceOf(o) != "node:head2" || ts.pending() != "" {
		t.Errorf("from %s, updates of %q", ts.sourceOf(o), ts.pending())
	}
	ts.shows("head1       equal to head@2", "was the active head until", "head2       is the active head")
	captured("head@2")
	if have := ts.pending(); have != "" { // it has that
		t.Errorf("updates of %q", have)
	}
	if users := userOf(ts.d.cluster.Nodes(), ts.d.cluster.Syncs(), "head@2"); users == "" {
		t.Error("the version that both have in common may be removed")
	}
	// A daemon without the pair in its configuration ends it.
	o.Between, o.Source = [2]string{}, "local"
	ts.pairUp(t.Context())
	if p := ts.d.cluster.Sync("head").Pair; p.Active != "" || p.Generation != 3 {
		t.Errorf("%+v", p)
	}
}
