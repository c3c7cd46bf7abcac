package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func isRefused(err error) bool {
	_, ok := errors.AsType[*RefusedError](err)
	return ok
}

// clock is a clock that goes a second further with each look.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(time.Second)
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func testOptions() Options {
	return Options{
		Network:     netip.MustParsePrefix("10.77.0.0/24"),
		Server:      netip.MustParseAddr("10.77.0.1"),
		PoolFirst:   netip.MustParseAddr("10.77.0.200"),
		PoolLast:    netip.MustParseAddr("10.77.0.250"),
		Now:         newClock().now,
		LockTimeout: 50 * time.Millisecond,
	}
}

func open(t *testing.T, path string, o Options) *Cluster {
	t.Helper()
	c, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return c
}

func fresh(t *testing.T) *Cluster {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "cluster.db"), testOptions())
}

func commit(t *testing.T, c *Cluster, changes ...Change) {
	t.Helper()
	if err := c.Commit(context.Background(), changes...); err != nil {
		t.Fatalf("committing %+v: %v", changes, err)
	}
}

func addr(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, last}) }

func mac(last byte) MAC { return MAC{0x52, 0x54, 0, 0, 0, last} }

func node(t *testing.T, c *Cluster, name string) Node {
	t.Helper()
	n, ok := c.Node(name)
	if !ok {
		t.Fatalf("no node %s", name)
	}
	return n
}

func add(name string, last byte) AddNodes {
	return AddNodes{Nodes: []Node{{Name: name, Addr: addr(last)}}}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	open(t, path, testOptions())
	c, err := Open(path, testOptions())
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("a second Open gave %v, %v", c, err)
	}
	if !strings.Contains(err.Error(), "another doppel serve owns this state") || !strings.Contains(err.Error(), path) {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
}

func TestOpenPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	open(t, path, testOptions())
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
}

func TestOpenSomethingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database\n", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Open(path, testOptions()); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, %v", c, err)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	c := open(t, path, testOptions())
	everything(t, c)
	before := c.Snapshot()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(context.Background(), add("late", 99)); !errors.Is(err, ErrClosed) {
		t.Errorf("a commit after Close gave %v", err)
	}
	after := open(t, path, testOptions()).Snapshot()
	sameState(t, before, after)
}

func sameState(t *testing.T, a, b Snapshot) {
	t.Helper()
	x, err := json.MarshalIndent(a, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if string(x) != string(y) {
		t.Errorf("the states differ:\n%s\n---\n%s", x, y)
	}
	if !reflect.DeepEqual(a, b) {
		t.Error("the states differ in what JSON does not show")
	}
}

// everything makes at least one change of every kind.
func everything(t *testing.T, c *Cluster) {
	t.Helper()
	ctx := context.Background()
	commit(t, c, AddNodes{Nodes: []Node{
		{Name: "node001", Addr: addr(11)}, {Name: "node002", Addr: addr(12), Gateway: addr(254), Domain: "hpc.example"},
		{Name: "node003", Addr: addr(13), Role: Head, Image: "head@latest"}, {Name: "gone", Addr: addr(99)},
	}})
	commit(t, c, SetNode{Name: "node001", Image: new("head@1"), Gateway: new(addr(253))})
	commit(t, c, RemoveNode{Name: "gone"})
	for i := range 4 {
		if err := c.Sight(ctx, Sighting{MAC: mac(byte(i)), Arch: "uefi-x86_64", UUID: "u", Interface: "eth1"}); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, c, ForgetSighting{MAC: mac(3)})
	commit(t, c, OpenCollection{Until: c.Now().Add(time.Hour), Auto: true})
	commit(t, c, AutoAssign{MAC: mac(1)}, Assign{MAC: mac(2), Node: "node003"}, Unassign{Node: "node003"}, Assign{MAC: mac(2), Node: "node002"})
	commit(t, c, CloseCollection{}, OpenCollection{Until: c.Now().Add(2 * time.Hour)})
	install(t, c, "node001", "I1")
	commit(t, c, Finish{Node: "node001", Install: "I1"}, Up{Node: "node001", DiskGUID: "I1", BootID: "b", Kernel: "6.1"})
	commit(t, c, OrderUpdate{Node: "node001", ID: "U1", Image: "head@4", Digest: "sha256:bb"}, BeginUpdate{Node: "node001", ID: "U1"},
		ReportUpdate{Node: "node001", ID: "U1", Stage: "apply"}, EndUpdate{Node: "node001", ID: "U1", Result: "done"})
	commit(t, c, OrderUpdate{Node: "node001", ID: "U2", Image: "head@5", Digest: "sha256:cc"}, CancelUpdate{Node: "node001"})
	commit(t, c, EndRound{Image: "head", Round: Round{Begun: c.Now(), Ended: c.Now(), Version: "head@4", Sent: 9}}, PauseSync{Image: "head", Paused: true}, HoldNode{Node: "node001", Held: true})
	commit(t, c, EnlistNode{Name: "primary", MAC: mac(77), Addr: addr(77), Key: "k", Runs: "head@4", Digest: "sha256:aa"}, RemoveNode{Name: "primary"})
	commit(t, c, PairSync{Image: "head", Heads: [2]string{"node001", "node002"}}, TurnSync{Image: "head", To: "node001", Force: true})
	install(t, c, "node002", "I2")
	commit(t, c, Fail{Node: "node002", Install: "I2", Reason: "no disk"}, Disarm{Node: "node002"})
	commit(t, c, PutLease{Lease{Addr: addr(200), MAC: mac(9), ClientID: []byte{1, 2}, Hostname: "x", Expires: c.Now().Add(time.Hour)}})
	commit(t, c, PutLease{Lease{Addr: addr(201), MAC: mac(8), Expires: c.Now()}}, DeleteLease{Addr: addr(201)})
	commit(t, c, Note{What: "refused", Node: "node001", MAC: new(mac(1)), Text: "a note"})
}

func arm(name, install string) Arm {
	return Arm{Node: name, Install: install, Image: "head@3", Digest: "sha256:aa", After: "reboot"}
}

const nonce = "0123456789abcdef"

// install brings an assigned node to the middle of an install.
func install(t *testing.T, c *Cluster, name, id string) {
	t.Helper()
	commit(t, c, arm(name, id), BeginBoot{Node: name, Boot: nonce}, Enrol{Node: name, Boot: nonce})
	commit(t, c, BeginInstall{Node: name, Install: id, Detail: "/dev/vda"})
	commit(t, c, ReportStage{Node: name, Install: id, Stage: "apply", Done: 1, Total: 9, Writes: true}, Certify{Node: name, Install: id, Key: "k" + id})
}

func TestCommitAllOrNothing(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11))
	before := c.Snapshot()
	err := c.Commit(context.Background(), add("node002", 12), Assign{MAC: mac(1), Node: "node002"}, Assign{MAC: mac(2), Node: "nobody"})
	if !isRefused(err) {
		t.Fatalf("got %v", err)
	}
	sameState(t, before, c.Snapshot())
	// What was taken back leaves nothing behind in the writer, either.
	commit(t, c, add("node002", 12), Assign{MAC: mac(1), Node: "node001"})
	if n, ok := c.NodeByMAC(mac(1)); !ok || n.Name != "node001" {
		t.Errorf("%s is %v", mac(1), n.Name)
	}
}

func TestTry(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11))
	before := c.Snapshot()
	nodes, err := c.Try(context.Background(), add("node002", 12), Assign{MAC: mac(1), Node: "node002"})
	if err != nil || len(nodes) != 2 || nodes[1].State != Assigned {
		t.Errorf("got %+v, %v", nodes, err)
	}
	if _, err := c.Try(context.Background(), add("node001", 12)); !isRefused(err) {
		t.Errorf("got %v, want a refusal", err)
	}
	sameState(t, before, c.Snapshot())
}

func TestCommitConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	c := open(t, path, testOptions())
	var group sync.WaitGroup
	refused := make([]int, 8)
	for i := range refused {
		group.Go(func() {
			for j := range 20 {
				// Every address is wanted by two; one of them gets it.
				a := byte(i/2*20 + j + 11)
				name := string(rune('a'+i)) + string(rune('a'+j))
				err := c.Commit(context.Background(), add(name, a))
				if isRefused(err) {
					refused[i]++
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	total := 0
	for _, n := range refused {
		total += n
	}
	if got := len(c.Nodes()); got != 80 || total != 80 {
		t.Errorf("%d nodes, %d refused, want 80 and 80", got, total)
	}
	before := c.Snapshot()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	sameState(t, before, open(t, path, testOptions()).Snapshot())
}

func TestCommitCancelled(t *testing.T) {
	c := fresh(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("changed my mind")
	cancel(why)
	if err := c.Commit(ctx, add("node001", 11)); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if len(c.Nodes()) != 0 {
		t.Error("it was done all the same")
	}
}

// The last fsync of a transaction may fail when all is on disk already. What
// is on disk then is the truth, for the writer and for readers.
func TestRecover(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11))
	at := c.options.now()
	if err := c.work.carryOut(&request{changes: []Change{add("node002", 12), Assign{MAC: mac(2), Node: "node002"}}}, at); err != nil {
		t.Fatal(err)
	}
	if err := c.persist(c.work); err != nil {
		t.Fatal(err)
	}
	if err := c.recover(); err != nil {
		t.Fatal(err)
	}
	if n := node(t, c, "node002"); n.State != Assigned {
		t.Errorf("node002 is %s", n.State)
	}
	checkIndexes(t, c)
	commit(t, c, add("node003", 13))
	sameState(t, c.Snapshot(), replay(t, c, testOptions()).Snapshot())
}

func TestReadsAreCopies(t *testing.T) {
	c := fresh(t)
	everything(t, c)
	before := c.Snapshot()
	for _, n := range c.Nodes() {
		if n.MAC != nil {
			n.MAC[0] = 0xee
		}
		if n.Install != nil {
			n.Install.ID = "altered"
		}
	}
	for _, l := range c.Leases() {
		if len(l.ClientID) > 0 {
			l.ClientID[0] = 0xee
		}
	}
	for _, e := range c.Events(0, Filter{}) {
		if e.MAC != nil {
			e.MAC[0] = 0xee
		}
	}
	sameState(t, before, c.Snapshot())
}

func TestWatch(t *testing.T) {
	c := fresh(t)
	ctx, cancel := context.WithCancel(context.Background())
	ch := c.Watch(ctx)
	other := c.Watch(context.Background())
	commit(t, c, add("node001", 11))
	commit(t, c, add("node002", 12))
	if _, ok := <-ch; !ok {
		t.Fatal("closed too early")
	}
	cancel()
	for range ch { // ends when it is closed
	}
	if _, ok := <-other; !ok {
		t.Fatal("closed with another's context")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range other {
	}
	if _, ok := <-c.Watch(context.Background()); ok {
		t.Error("a watch of a closed cluster is not closed")
	}
}

func TestEvents(t *testing.T) {
	c := fresh(t)
	everything(t, c)
	all := c.Events(0, Filter{})
	if len(all) == 0 || all[0].Seq != 1 || all[len(all)-1].Seq != c.LastEvent() {
		t.Fatalf("%d events, the last is %d", len(all), c.LastEvent())
	}
	for i, e := range all {
		if e.Seq != uint64(i+1) || e.Time.IsZero() || e.Kind == "" || e.Text == "" {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	if got := c.Events(all[4].Seq, Filter{}); !reflect.DeepEqual(got, all[5:]) {
		t.Error("Events since another do not follow on it")
	}
	var kinds []string
	for _, e := range c.Events(0, Filter{Node: "node001"}) {
		kinds = append(kinds, e.Kind)
	}
	want := "add set sighting assign arm boot enrol install stage certify installed up update updated update update-failed held turn refused"
	if got := strings.Join(kinds, " "); got != want {
		t.Errorf("node001's events: %s\nwant: %s", got, want)
	}
	if got := c.Events(0, Filter{Kind: "failed"}); len(got) != 1 || !strings.Contains(got[0].Text, "no disk") {
		t.Errorf("failed events: %+v", got)
	}
}

func TestEventsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	o := testOptions()
	o.KeepEvents = 10
	c := open(t, path, o)
	for range 25 {
		commit(t, c, Note{What: "note", Text: "x"})
	}
	before := c.Events(0, Filter{})
	if len(before) != 10 || before[0].Seq != 16 {
		t.Fatalf("%d events from %d", len(before), before[0].Seq)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if after := open(t, path, o).Events(0, Filter{}); !reflect.DeepEqual(before, after) {
		t.Errorf("after opening again: %+v", after)
	}
}

func TestNodesInOrder(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("n10", 20), add("n9", 19), add("n1", 11))
	var names []string
	for _, n := range c.Nodes() {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"n1", "n9", "n10"}) {
		t.Errorf("got %v", names)
	}
}

func TestNodeAt(t *testing.T) {
	o := testOptions()
	k := newClock()
	o.Now = k.now
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	commit(t, c, add("node001", 11), Assign{MAC: mac(1), Node: "node001"})
	name := func(a netip.Addr) string {
		n, _ := c.NodeAt(a)
		return n.Name
	}
	if got := name(addr(11)); got != "node001" {
		t.Errorf("by its reservation: %q", got)
	}
	if got := name(netip.MustParseAddr("::ffff:10.77.0.11")); got != "node001" {
		t.Errorf("by its reservation, mapped: %q", got)
	}
	commit(t, c, PutLease{Lease{Addr: addr(205), MAC: mac(1), Expires: c.Now().Add(time.Hour)}})
	if got := name(addr(205)); got != "node001" {
		t.Errorf("by the lease from before it was assigned: %q", got)
	}
	commit(t, c, PutLease{Lease{Addr: addr(11), MAC: mac(7), Expires: c.Now().Add(time.Hour)}})
	if got := name(addr(11)); got != "" {
		t.Errorf("a stranger holds its address by a lease: %q", got)
	}
	k.advance(2 * time.Hour)
	if got := name(addr(205)); got != "" {
		t.Errorf("by a lease that has ended: %q", got)
	}
	if got := name(addr(11)); got != "node001" {
		t.Errorf("the stranger's lease has ended: %q", got)
	}
}
