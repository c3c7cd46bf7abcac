package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func entriesOf(t *testing.T, c *Cluster) []Entry {
	t.Helper()
	var out []Entry
	if err := c.Log(0, func(e Entry) error { out = append(out, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// kinds are all changes that a log may hold.
func kinds() []Change {
	return []Change{
		AddNodes{}, SetNode{}, RemoveNode{}, Sight{}, ForgetSighting{}, Assign{}, Unassign{}, OpenCollection{}, CloseCollection{},
		Arm{}, Disarm{}, BeginBoot{}, Enrol{}, BeginInstall{}, ReportStage{}, Certify{}, Finish{}, Fail{}, Up{}, PutLease{}, DeleteLease{}, Note{},
		OrderUpdate{}, BeginUpdate{}, ReportUpdate{}, EndUpdate{}, CancelUpdate{}, EndRound{}, PauseSync{}, HoldNode{}, PairSync{}, TurnSync{}, EnlistNode{},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	c := fresh(t)
	everything(t, c)
	seen := map[string]bool{}
	for i, e := range entriesOf(t, c) {
		if e.Seq != uint64(i+1) {
			t.Errorf("entry %d has the number %d", i+1, e.Seq)
		}
		seen[e.Change.Kind()] = true
		b, err := EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeEntry(b)
		if err != nil || !reflect.DeepEqual(e, back) {
			t.Errorf("%s\nbecomes %+v\nnot %+v (%v)", b, back, e, err)
		}
	}
	for _, k := range kinds() {
		if !seen[k.Kind()] {
			t.Errorf("the test makes no change of kind %s", k.Kind())
		}
		back, err := DecodeEntry(must(EncodeEntry(Entry{Seq: 1, Change: k})))
		if err != nil || back.Change.Kind() != k.Kind() {
			t.Errorf("%s does not come back: %v", k.Kind(), err)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestDecodeEntryRefuses(t *testing.T) {
	for _, s := range []string{
		``, `{}`, `null`, `[]`,
		`{"v":2,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"note","change":{"kind":"a","text":"b"}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"unheard-of","change":{}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"auto-assign","change":{"mac":"52:54:00:00:00:01"}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"make-room","change":{}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00+01:00","kind":"close-collection","change":{}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"close-collection","change":{"x":1}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"close-collection","change":{}} x`,
		`{"v":1,"seq":-1,"time":"2026-01-01T00:00:00Z","kind":"close-collection","change":{}}`,
		`{"v":1,"seq":1,"time":"2026-01-01T00:00:00Z","kind":"assign","change":{"mac":"zz","node":"n"}}`,
	} {
		if e, err := DecodeEntry([]byte(s)); err == nil {
			t.Errorf("%s was taken for %+v", s, e)
		}
	}
}

func FuzzEntry(f *testing.F) {
	c, err := Open(filepath.Join(f.TempDir(), "cluster.db"), testOptions())
	if err != nil {
		f.Fatal(err)
	}
	changes := []Change{
		add("node001", 11), Assign{MAC: mac(1), Node: "node001"}, arm("node001", "I"), BeginBoot{Node: "node001", Boot: nonce},
		PutLease{Lease{Addr: addr(201), MAC: mac(3), ClientID: []byte{1}, Expires: time.Unix(1e9, 0)}},
		Note{What: "refused", MAC: new(mac(1)), Text: "text"}, Sight{Sighting{MAC: mac(1), Arch: "bios"}},
		SetNode{Name: "node001", Gateway: new(addr(254))}, Up{Node: "node001", BootID: "b"},
	}
	if err := c.Commit(context.Background(), changes...); err != nil {
		f.Fatal(err)
	}
	if err := c.Log(0, func(e Entry) error { f.Add(must(EncodeEntry(e))); return nil }); err != nil {
		f.Fatal(err)
	}
	if err := c.Close(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		one, err := EncodeEntry(e)
		if err != nil {
			t.Fatalf("%s is read as %+v, which cannot be written: %v", b, e, err)
		}
		again, err := DecodeEntry(one)
		if err != nil {
			t.Fatalf("%s cannot be read: %v", one, err)
		}
		two, err := EncodeEntry(again)
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s becomes %s (%v)", one, two, err)
		}
		// Whatever an entry says, applying it ends in order.
		s := newState(testOptions().filled())
		from := s.mark()
		e.Seq = 1
		if s.carryOut(&request{entries: []Entry{e}}, e.Time) != nil {
			s.rollback(from)
			if len(s.nodes)+len(s.sightings)+len(s.leases)+len(s.journal.events) > 0 {
				t.Fatalf("%s was refused, but left something behind", one)
			}
		}
	})
}

// replay applies a cluster's log to an empty state.
func replay(t *testing.T, from *Cluster, o Options) *Cluster {
	t.Helper()
	to := open(t, filepath.Join(t.TempDir(), "replica.db"), o)
	var entries []Entry
	for _, e := range entriesOf(t, from) {
		back, err := DecodeEntry(must(EncodeEntry(e)))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, back)
	}
	// In two parts, as replication would.
	half := len(entries) / 2
	for _, part := range [][]Entry{entries[:half], entries[half:]} {
		if err := to.Replicate(context.Background(), part...); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestReplay(t *testing.T) {
	c := fresh(t)
	everything(t, c)
	// The replica's clock, rules and limits are others.
	o := Options{Now: func() time.Time { return time.Unix(0, 0) }, KeepSightings: 1}
	sameState(t, c.Snapshot(), replay(t, c, o).Snapshot())
}

// Any changes whatever, taken or refused: the log gives the same state.
func TestReplayAnything(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			c := fresh(t)
			taken := 0
			for range 500 {
				var changes []Change
				for range 1 + r.IntN(3) {
					changes = append(changes, anything(r, c.Now()))
				}
				if c.Commit(context.Background(), changes...) == nil {
					taken++
				}
			}
			if taken < 40 {
				t.Fatalf("only %d were taken", taken)
			}
			checkIndexes(t, c)
			sameState(t, c.Snapshot(), replay(t, c, testOptions()).Snapshot())
		})
	}
}

func anything(r *rand.Rand, at time.Time) Change {
	name := fmt.Sprintf("n%d", r.IntN(6))
	m := mac(byte(r.IntN(6)))
	id := fmt.Sprintf("I%d", r.IntN(4))
	boot := nonce + fmt.Sprint(r.IntN(2))
	switch r.IntN(32) {
	case 0, 1:
		return add(name, byte(11+r.IntN(6)))
	case 2:
		return SetNode{Name: name, Addr: new(addr(byte(11 + r.IntN(8))))}
	case 3:
		return RemoveNode{Name: name}
	case 4:
		return Sight{Sighting{MAC: m, Arch: "bios"}}
	case 5, 6:
		return Assign{MAC: m, Node: name}
	case 7:
		return Unassign{Node: name}
	case 8:
		return OpenCollection{Until: at.Add(time.Duration(1+r.IntN(100)) * time.Second), Auto: r.IntN(2) == 0}
	case 9:
		return AutoAssign{MAC: m}
	case 10, 11:
		return arm(name, id)
	case 12:
		return BeginBoot{Node: name, Boot: boot}
	case 13:
		return Enrol{Node: name, Boot: boot}
	case 14:
		return BeginInstall{Node: name, Install: id}
	case 15:
		return ReportStage{Node: name, Install: id, Stage: "apply", Writes: r.IntN(2) == 0}
	case 16:
		return Finish{Node: name, Install: id}
	case 17:
		return Fail{Node: name, Install: id, Reason: "r"}
	case 20:
		return Certify{Node: name, Install: id, Key: "k"}
	case 21, 22:
		return OrderUpdate{Node: name, ID: id, Image: "head@4", Digest: "d4"}
	case 23:
		return BeginUpdate{Node: name, ID: id}
	case 24:
		return ReportUpdate{Node: name, ID: id, Stage: "apply", Done: int64(r.IntN(9))}
	case 25:
		return EndUpdate{Node: name, ID: id, Failed: []string{"", "why"}[r.IntN(2)]}
	case 27:
		return EndRound{Image: "head", Round: Round{Version: "head@4", Failed: []string{"", "why"}[r.IntN(2)], Unchanged: r.IntN(2) == 0}}
	case 28:
		return PauseSync{Image: "head", Paused: r.IntN(2) == 0}
	case 30:
		return PairSync{Image: "head", Heads: [][2]string{{"node001", "node002"}, {"node002", "node003"}, {}}[r.IntN(3)]}
	case 31:
		return TurnSync{Image: "head", To: name, Common: "head@4", Digest: "d4", Known: uint64(r.IntN(9)), Force: r.IntN(2) == 0}
	case 29:
		return HoldNode{Node: name, Held: r.IntN(2) == 0}
	case 26:
		return CancelUpdate{Node: name}
	case 18:
		return PutLease{Lease{Addr: addr(byte(200 + r.IntN(4))), MAC: m, Expires: at}}
	}
	return Disarm{Node: name}
}

// checkIndexes compares what is found by MAC and address with the nodes.
func checkIndexes(t *testing.T, c *Cluster) {
	t.Helper()
	for _, s := range []*state{c.seen, c.work} {
		macs := 0
		for name, n := range s.nodes {
			if s.byAddr[n.Addr] != name {
				t.Errorf("%s is not found by %s", name, n.Addr)
			}
			if n.MAC == nil {
				continue
			}
			macs++
			if s.byMAC[*n.MAC] != name {
				t.Errorf("%s is not found by %s", name, n.MAC)
			}
		}
		if len(s.byAddr) != len(s.nodes) || len(s.byMAC) != macs {
			t.Errorf("%d addresses and %d MACs for %d nodes, %d with a MAC", len(s.byAddr), len(s.byMAC), len(s.nodes), macs)
		}
	}
}

func TestReplicateRefuses(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11))
	before := c.Snapshot()
	for name, entries := range map[string][]Entry{
		"a gap":      {{Seq: 3, Change: Note{What: "a", Text: "b"}}},
		"a repeat":   {{Seq: 1, Change: Note{What: "a", Text: "b"}}},
		"half right": {{Seq: 2, Change: Note{What: "a", Text: "b"}}, {Seq: 3, Change: Assign{MAC: mac(1), Node: "nobody"}}},
		"no fit":     {{Seq: 2, Change: Finish{Node: "node001", Install: "I"}}},
	} {
		if err := c.Replicate(context.Background(), entries...); err == nil {
			t.Errorf("%s was taken", name)
		}
		sameState(t, before, c.Snapshot())
	}
}

func TestLogIsBounded(t *testing.T) {
	o := testOptions()
	o.KeepLog = 8
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	for range 20 {
		commit(t, c, Note{What: "a", Text: "b"})
	}
	err := c.Log(0, func(Entry) error { return nil })
	compacted, ok := errors.AsType[*CompactedError](err)
	if !ok || compacted.First != 13 {
		t.Fatalf("got %v", err)
	}
	var seqs []uint64
	if err := c.Log(12, func(e Entry) error { seqs = append(seqs, e.Seq); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(seqs) != 8 || seqs[0] != 13 || seqs[7] != 20 {
		t.Errorf("got %v", seqs)
	}
	if err := c.Log(20, func(Entry) error { return errors.New("there are no more") }); err != nil {
		t.Error(err)
	}
	if !strings.Contains(compacted.Error(), "13") {
		t.Error(compacted)
	}
}
