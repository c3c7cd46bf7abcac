package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"doppel/cluster"
	"doppel/imaging"
	resync "doppel/sync"
	"doppel/web"
)

// Who may adopt what, and which head takes it then.
func TestMayAdopt(t *testing.T) {
	parted := func(from string) *cluster.Parted { return &cluster.Parted{Image: "head", Base: "head@1", From: from} }
	pair := func(active string, good uint64) []web.SyncStatus {
		s := web.SyncStatus{Source: "node:" + active}
		s.Image, s.Pair = "head", &cluster.Pair{Heads: [2]string{"head1", "head2"}, Active: active, Generation: 2}
		s.Good = &cluster.Round{Generation: good}
		return []web.SyncStatus{s}
	}
	captured := []web.SyncStatus{{Source: "root@head"}}
	captured[0].Image = "head"
	follows := []web.SyncStatus{{}}
	follows[0].Image = "head"
	for _, c := range []struct {
		name   string
		parted *cluster.Parted
		syncs  []web.SyncStatus
		active string
		err    string
	}{
		{name: "a compute node", syncs: follows},
		{name: "no sync at all", parted: parted("")},
		{name: "enlisted, nothing is captured", parted: parted(""), syncs: follows},
		{name: "enlisted, of an image that is captured", parted: parted(""), syncs: captured, err: "head is captured from root@head, and the next round would undo it"},
		{name: "of an image that is captured", syncs: captured, err: "head is captured from root@head"},
		{name: "a head that parted", parted: parted("head2"), syncs: pair("head2", 2), active: "head2"},
		{name: "enlisted into a pair", parted: parted(""), syncs: pair("head2", 2), active: "head2"},
		{name: "the active one was not captured", parted: parted("head2"), syncs: pair("head2", 1), err: "head2 has not been captured yet"},
		{name: "the active one itself", parted: parted(""), syncs: pair("head1", 2), err: "head1 is the active head"},
		{name: "a head that did not part", syncs: pair("head2", 2), err: "head is captured from node:head2"},
		{name: "the pair is over", parted: parted("head2"), syncs: follows, err: "between two heads no more"},
		{name: "the pair is over, and one is captured", parted: parted("head2"), syncs: captured, err: "head is captured from root@head"},
	} {
		n := cluster.Node{Name: "head1", State: cluster.Installed, Key: "k", Role: cluster.Head, Runs: "head@1", Parted: c.parted}
		err := mayAdopt(c.syncs, n, "head", []string{"/etc/motd"})
		active := ""
		if err == nil {
			active, err = activeFor(c.syncs, n, "head")
		}
		if active != c.active || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", c.name, active, err)
		}
		if err != nil && hint(err) == "" {
			t.Errorf("%s: no remedy for %v", c.name, err)
		}
	}
}

func TestOwnBelow(t *testing.T) {
	n := cluster.Node{Name: "head1", Parted: &cluster.Parted{Base: "head@3", Compared: time.Unix(1, 0)}}
	own := []resync.Own{{Path: "."}, {Path: "etc"}, {Path: "etc/app/1"}, {Path: "opt/tool"}, {Path: "opt/tool/a"}, {Path: "srv/\ufffd"}}
	for _, c := range []struct {
		named     string
		want, err string
	}{
		{named: "/opt", want: "opt/tool opt/tool/a"},
		{named: "etc/app/", want: "etc/app/1"},
		{named: "/etc/.", want: "etc etc/app/1"},
		{named: "/opt/tool/a /etc/app", want: "etc/app/1 opt/tool/a"},
		{named: "/opt /usr", err: "nothing at /usr was changed on head1 since head@3"},
		{named: "/srv", err: "not UTF-8"},
	} {
		got, err := ownBelow(n, own, strings.Fields(c.named))
		if strings.Join(got, " ") != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", c.named, got, err)
		}
	}
	n.Parted.Compared = time.Time{}
	if _, err := ownBelow(n, nil, []string{"/etc"}); err == nil || !strings.Contains(err.Error(), "was not compared with head@3 yet") || !strings.Contains(hint(err), "next update") {
		t.Errorf("nothing is known: %v", err)
	}
}

// What captures of the image leave out is known to who captures a node for it.
func TestSyncTellsExclude(t *testing.T) {
	ts := newTestSyncer(t, "exclude = [\"var/lib/mysql\"]\n")
	list, err := ts.Status(t.Context())
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Exclude, []string{"var/lib/mysql"}) {
		t.Errorf("%+v, %v", list, err)
	}
}

// What cannot be ordered is refused before there is a version of it.
func TestMayOrder(t *testing.T) {
	a := &adoption{node: cluster.Node{Name: "head1"}, image: "head", paths: []string{"/usr"}}
	for n, want := range map[int]string{0: "is not there any more", cluster.MaxPaths + 1: "are 1001 paths and trees, and head2 can be ordered to take 1000 at once"} {
		err := a.mayOrder(t.Context(), "head2", imaging.Version{}, make([]string, n))
		if err == nil || !strings.Contains(err.Error(), want) || hint(err) == "" {
			t.Errorf("%d paths: %v", n, err)
		}
	}
}
