package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
	resync "doppel/sync"
)

// heads are two heads of a pair: the tree of the one that took over, of which
// versions are captured, and the node that was the active one.
type heads struct {
	*testNode
	t       *testing.T
	theirs  string
	catalog *imaging.Catalog
	store   string
	base    *clone.PartedOrders
	count   int
}

// newHeads gives both trees the same files, captures them as head@1, and lets
// the heads part.
func newHeads(t *testing.T, files map[string]string) *heads {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes owners: run it as root")
	}
	h := &heads{testNode: newTestNode(t), t: t, theirs: t.TempDir()}
	plant(t, h.theirs, headFiles(files))
	var err error
	if h.catalog, err = imaging.OpenCatalog(t.TempDir(), imaging.CatalogOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := h.catalog.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := h.catalog.Store()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(store.Handler(st))
	t.Cleanup(s.Close)
	h.store = s.URL
	h.shell(h.theirs, `ln srv/link/one srv/link/two 2>/dev/null; ln srv/link/a srv/link/b 2>/dev/null; true`)
	if err := os.RemoveAll(h.root); err != nil {
		t.Fatal(err)
	}
	h.shell("/", fmt.Sprintf("cp -a %s %s && mkdir -p %s/boot/grub && echo node001 >%s/etc/hostname", h.theirs, h.root, h.root, h.root))
	base := h.capture()
	h.base = &clone.PartedOrders{Base: base.Image, Manifest: base.Manifest, Digest: base.Digest}
	return h
}

// shell runs a line in a tree.
func (h *heads) shell(dir, line string) {
	h.t.Helper()
	c := exec.Command("sh", "-ec", line)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// capture captures the active head, and makes orders of it.
func (h *heads) capture() *clone.UpdateOrders {
	h.t.Helper()
	src := imaging.NewLocal(h.theirs)
	report, err := imaging.Capture(h.t.Context(), h.catalog, src, imaging.CaptureOptions{Name: "head", Root: h.theirs})
	if err != nil || src.Close() != nil {
		h.t.Fatal(err)
	}
	v, err := h.catalog.Resolve(h.t.Context(), report.Digest)
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := h.catalog.Manifest(h.t.Context(), v)
	if err != nil {
		h.t.Fatal(err)
	}
	vault, err := h.catalog.Vault(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var refs []store.Ref
	for _, e := range m.List.All() {
		for _, c := range e.Chunks {
			refs = append(refs, store.Ref{Audience: e.Class.Audience(), ID: c.ID})
		}
	}
	packs, err := vault.PacksOf(refs)
	if err != nil {
		h.t.Fatal(err)
	}
	keys, err := h.catalog.Keys()
	if err != nil {
		h.t.Fatal(err)
	}
	h.count++
	return &clone.UpdateOrders{
		ID: fmt.Sprint("U", h.count), Image: v.Ref(), Parted: h.base,
		Access: clone.Access{Manifest: v.Blob, Digest: report.Digest, Packs: packs, Store: h.store, Cluster: keys.Cluster[:], Head: keys.Head[:]},
	}
}

// do carries an update out as the agent does.
func (h *heads) do(ctx context.Context, o *clone.UpdateOrders) (*clone.UpdateReport, error) {
	return h.update(ctx, slog.New(slog.DiscardHandler), o)
}

func (h *heads) become(o *clone.UpdateOrders) *clone.UpdateReport {
	h.t.Helper()
	go func() {
		for range h.words { // what is told meanwhile
		}
	}()
	r, err := h.do(h.t.Context(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// own lists what the old head keeps, a word for each path.
func (h *heads) own() string {
	h.t.Helper()
	list, err := h.ownPaths()
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, o := range list {
		word := string(o.How) + " " + o.Path
		if o.Both {
			word += " both"
		}
		out = append(out, word)
	}
	return strings.Join(out, "\n")
}

// wants insists on files' contents; empty: there is none, /: a directory.
func (h *heads) wants(files map[string]string) {
	h.t.Helper()
	for name, want := range files {
		fi, err := os.Lstat(filepath.Join(h.root, name))
		switch {
		case want == "" && err == nil:
			h.t.Errorf("%q is there", name)
		case want == "":
		case err != nil:
			h.t.Errorf("%q: %v", name, err)
		case want == "/" && !fi.IsDir():
			h.t.Errorf("%q is no directory", name)
		case want != "/":
			if b, err := os.ReadFile(filepath.Join(h.root, name)); err != nil || strings.TrimSuffix(string(b), "\n") != want {
				h.t.Errorf("%q is %q, %v, not %q", name, b, err, want)
			}
		}
	}
}

func common() map[string]string {
	files := map[string]string{"srv/link/one": "linked", "srv/link/a": "linked too", "var/lib/state": "base"}
	for _, name := range []string{
		"etc/alone", "etc/same", "etc/mine", "etc/theirs", "etc/both", "etc/mode", "etc/touched", "opt/gone/by/them", "opt/gone/mine", "opt/dropped/a", "opt/dropped/b", "opt/half/a",
		"opt/tree/a", "opt/tree/deep/b", "opt/deleted/here", "opt/deleted/there", "opt/file", "opt/dir/x",
	} {
		files[name] = "base"
	}
	return files
}

// parted is what becomes of both trees in TestParted.
const (
	onMine = `
echo mine >etc/mine; echo mine >etc/both; echo alike >etc/same; chmod 600 etc/mode; touch etc/touched
echo mine >opt/gone/mine; echo new >opt/gone/added
rm -r opt/dropped; rm -r opt/half; mv opt/tree opt/renamed
rm opt/deleted/here; echo mine >opt/deleted/there
echo mine >srv/link/two; rm srv/link/a
rm opt/file; mkdir opt/file; echo mine >opt/file/inside
echo mine >opt/dir/y
mkdir -p srv/new/deep; echo mine >srv/new/deep/file; echo mine >srv/clash
printf x >"$(printf 'srv/\377name')"
echo log >>etc/hostname; mkdir -p var/log; echo mine >var/log/mine`
	onTheirs = `
echo theirs >etc/theirs; echo theirs >etc/both; echo alike >etc/same
rm -r opt/gone; echo theirs >opt/half/b; rm opt/tree/a
rm opt/deleted/there; echo theirs >opt/deleted/here
rm -r opt/dir; echo theirs >opt/dir
mkdir -p srv/other; echo theirs >srv/other/file; echo theirs >srv/clash; echo theirs >srv/link/c`
)

// What was changed on the head that was the active one stays, all that is new on
// the other one comes, and what both have changed is told apart; until it is
// decided, over any number of updates.
func TestParted(t *testing.T) {
	h := newHeads(t, common())
	h.shell(h.root, onMine)
	h.shell(h.theirs, onTheirs)
	r := h.become(h.capture())
	after := map[string]string{
		"etc/alone": "base", "etc/same": "alike", "etc/mine": "mine", "etc/theirs": "theirs", "etc/both": "mine",
		"opt/gone/mine": "mine", "opt/gone/added": "new", "opt/gone/by": "", "opt/dropped": "", "opt/half/a": "", "opt/half/b": "theirs",
		"opt/tree/a": "", "opt/tree/deep/b": "", "opt/renamed/a": "base", "opt/renamed/deep/b": "base",
		"opt/deleted/here": "", "opt/deleted/there": "mine", "srv/link/one": "mine", "srv/link/two": "mine", "srv/link/a": "", "srv/link/c": "theirs",
		"opt/file/inside": "mine", "opt/dir/y": "mine", "srv/new/deep/file": "mine", "srv/clash": "mine", "srv/other/file": "theirs",
		"srv/\377name": "x", "etc/hostname": "node001\nlog", "var/log/mine": "mine",
	}
	h.wants(after)
	want := strings.Join([]string{
		"changed etc/both both", "changed etc/mine", "changed etc/mode",
		"changed opt/deleted/there both", "removed opt/deleted/here both",
	}, "\n")
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); !slices.Contains(strings.Split(h.own(), "\n"), line) {
			t.Errorf("%q is not among what is kept:\n%s", line, h.own())
		}
	}
	for _, line := range []string{
		"changed opt/gone/mine both", "added opt/gone/added both", "removed opt/dropped", "removed opt/dropped/a", "removed opt/half/a",
		"added opt/renamed", "added opt/renamed/deep/b", "removed opt/tree/deep/b", "changed srv/link/one", "changed srv/link/two", "removed srv/link/a",
		"changed opt/file", "added opt/file/inside", "changed opt/dir both", "added opt/dir/y both", "added srv/new", "added srv/new/deep/file",
		"added srv/clash both", "added srv/\377name",
	} {
		if !slices.Contains(strings.Split(h.own(), "\n"), line) {
			t.Errorf("%q is not among what is kept:\n%s", line, h.own())
		}
	}
	for _, never := range []string{"etc/same", "etc/touched", "etc/alone", "etc/theirs", "hostname", "var/log", "srv/other", "removed opt/tree/a\n"} {
		if strings.Contains(h.own()+"\n", never) {
			t.Errorf("%s is kept:\n%s", never, h.own())
		}
	}
	list, _ := h.ownPaths()
	if r.Kept == nil || r.Kept.Own != len(list) || r.Kept.Both != resync.Both(list) || r.Kept.Both < 5 {
		t.Errorf("%+v of %d", r.Kept, len(list))
	}
	if fi, err := os.Stat(filepath.Join(h.root, "etc/mode")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("etc/mode: %v, %v", fi.Mode(), err)
	}

	// Another version brings what is new in it, and keeps the same; what is
	// changed here from now on is a standby's, and undone.
	h.shell(h.theirs, `echo more >etc/theirs; echo more >etc/mine; rm -r srv/other`)
	h.shell(h.root, `echo late >etc/alone; echo late >etc/late`)
	before := h.own()
	if r = h.become(h.capture()); r.Kept == nil || r.Kept.Own != len(list) {
		t.Errorf("%+v of %d", r.Kept, len(list))
	}
	after["etc/theirs"], after["srv/other/file"], after["etc/late"] = "more", "", ""
	h.wants(after)
	if have := h.own(); have != strings.Replace(before, "changed etc/mine", "changed etc/mine both", 1) {
		t.Errorf("kept:\n%s\nnot\n%s", have, before)
	}

	// Decided: one path is undone here, another is what the other head has now.
	o := h.capture()
	o.Paths = []string{"/etc/both", "opt/renamed"}
	if r = h.become(o); r.Kept == nil || r.Kept.Own != len(list)-5 {
		t.Errorf("%+v of %d", r.Kept, len(list))
	}
	h.wants(map[string]string{"etc/both": "theirs", "opt/renamed": "", "etc/mine": "mine"})
	h.shell("/", fmt.Sprintf("cp -a %s/etc/mine %s/etc/mine; cp -a %s/srv/clash %s/srv/clash", h.root, h.theirs, h.root, h.theirs))
	h.become(h.capture())
	for _, gone := range []string{"etc/both", "opt/renamed", "etc/mine", "srv/clash"} {
		if strings.Contains(h.own()+"\n", " "+gone+"\n") || strings.Contains(h.own(), gone+" both") {
			t.Errorf("%s is kept:\n%s", gone, h.own())
		}
	}

	// All the rest is undone: the two are equal.
	o = h.capture()
	o.Paths = nil
	for _, v := range strings.Split(h.own(), "\n") {
		_, path, _ := strings.Cut(strings.TrimSuffix(v, " both"), " ")
		o.Paths = append(o.Paths, path)
	}
	if r = h.become(o); r.Kept == nil || r.Kept.Own != 0 {
		t.Errorf("%+v", r.Kept)
	}
	h.become(h.capture())
	drift, err := h.drift(t.Context(), &clone.DriftOrders{Image: "head", Full: true, Access: h.capture().Access})
	if err != nil || !drift.Equal() || len(drift.Own) > 0 {
		t.Errorf("%v, %v", drift.Differences, err)
	}
}

// An update that is cut off anywhere, and another version after it, keep
// nothing but what was changed here, and lose nothing of that.
func TestPartedCutOff(t *testing.T) {
	for cut := range 12 {
		h := newHeads(t, common())
		h.shell(h.root, onMine)
		h.shell(h.theirs, onTheirs)
		go func() {
			for range h.words {
			}
		}()
		ctx, cancel := context.WithCancelCause(t.Context())
		left := cut
		errCut := errors.New("cut off")
		o := h.capture()
		plan, disk, err := h.installed()
		if err != nil {
			t.Fatal(err)
		}
		m, vault, err := openImage(ctx, &o.Access, "")
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.part(ctx, plan, m, o, func(clone.Report) {})
		if err != nil {
			t.Fatal(err)
		}
		_, err = clone.Update(ctx, h.machine, plan, m, vault, clone.UpdateOptions{
			Root: h.root, Work: t.TempDir(), Disk: disk, Orders: *o, Own: p.keeps, Skip: p.skips,
			Change: func(imaging.ApplyChange) {
				if left--; left <= 0 {
					cancel(errCut)
				}
			},
		})
		cancel(nil)
		if err == nil && cut < 3 {
			t.Fatalf("cut %d: it was not cut off", cut)
		}
		h.shell(h.theirs, `echo newer >etc/theirs; echo newer >srv/newer; rm -r srv/other`)
		h.become(h.capture())
		h.wants(map[string]string{"etc/theirs": "newer", "srv/newer": "newer", "srv/other": "", "etc/both": "mine", "etc/mine": "mine", "opt/renamed/a": "base", "opt/deleted/here": "", "srv/clash": "mine", "srv/link/c": "theirs"})
		for _, never := range []string{"etc/theirs", "srv/other", "srv/newer", "etc/alone", "srv/link/c", "opt/half/b"} {
			if strings.Contains(h.own(), never) {
				t.Errorf("cut %d: %s counts as changed here:\n%s", cut, never, h.own())
			}
		}
	}
}

// What is changed here while the first update runs is kept as well.
func TestPartedWhileUpdating(t *testing.T) {
	h := newHeads(t, common())
	h.shell(h.theirs, `echo theirs >etc/theirs; echo theirs >etc/alone; rm opt/dropped/a`)
	o := h.capture()
	programs := h.machine
	h.machine = &clone.Recorder{Ran: func(c clone.Command) error {
		if c.Args[0] == "/bin/sh" { // the operator's command, after the comparison and before the apply
			h.shell(h.root, `echo late >etc/theirs; echo late >etc/late; echo late >opt/dropped/a; rm etc/mine; mkdir -p srv/late; echo late >srv/late/file`)
			return nil
		}
		return programs.Run(t.Context(), c)
	}, Out: discard{}}
	o.Pre = "late"
	r := h.become(o)
	h.wants(map[string]string{"etc/theirs": "late", "etc/alone": "theirs", "etc/late": "late", "opt/dropped/a": "late", "etc/mine": "", "srv/late/file": "late"})
	if want := "added etc/late\nremoved etc/mine\nchanged etc/theirs both\nchanged opt/dropped/a both\nadded srv/late"; h.own() != want || r.Kept.Own != 5 || r.Kept.Both != 2 {
		t.Errorf("%+v:\n%s\nwant\n%s", r.Kept, h.own(), want)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// Nothing was changed: the heads are equal after one update, and what a later
// parting finds is of that one alone.
func TestPartedTwice(t *testing.T) {
	h := newHeads(t, common())
	h.shell(h.theirs, `echo theirs >etc/theirs`)
	if r := h.become(h.capture()); r.Kept == nil || *r.Kept != (clone.Kept{}) {
		t.Errorf("%+v:\n%s", r.Kept, h.own())
	}
	h.wants(map[string]string{"etc/theirs": "theirs"})
	now := h.capture()
	h.base = &clone.PartedOrders{Base: now.Image, Manifest: now.Manifest, Digest: now.Digest}
	h.shell(h.root, `echo mine >etc/mine`)
	h.shell(h.theirs, `echo again >etc/theirs`)
	h.become(h.capture())
	if have := h.own(); have != "changed etc/mine" {
		t.Errorf("kept:\n%s", have)
	}
	// Without a parting nothing is kept.
	o := h.capture()
	o.Parted = nil
	if r := h.become(o); r.Kept != nil || h.own() != "" {
		t.Errorf("%+v", r.Kept)
	}
	h.wants(map[string]string{"etc/mine": "base"})
}

// Too much is refused before anything is touched, and so is a base that is not
// there.
func TestPartedRefused(t *testing.T) {
	h := newHeads(t, common())
	h.shell(h.root, `mkdir srv/many; cd srv/many; seq 1 100001 | xargs touch`)
	h.shell(h.theirs, `echo theirs >etc/theirs`)
	var no *clone.RefusedError
	if _, err := h.do(t.Context(), h.capture()); !errors.As(err, &no) || !strings.Contains(no.What, "paths were changed on node001 since head@1") || !strings.Contains(no.Hint, "install it anew") {
		t.Errorf("%v", err)
	}
	h.wants(map[string]string{"etc/theirs": "base"})
	if fi, err := os.Stat(filepath.Join(h.root, "srv/many/77")); err != nil || fi.Size() != 0 {
		t.Error(err)
	}
	h.shell(h.root, `rm -r srv/many`)
	wrong := *h.base
	wrong.Digest = "sha256:00"
	o := h.capture()
	o.Parted = &wrong
	if _, err := h.do(t.Context(), o); err == nil || !strings.Contains(err.Error(), "reading head@1, which both heads had in common") {
		t.Errorf("%v", err)
	}
	h.wants(map[string]string{"etc/theirs": "base"})
}

// A file's time cannot be set by what changes it.
func TestChangedAt(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	fi, err := os.Lstat(name)
	if err != nil || unix.Stat(name, &st) != nil || !changedAt(fi).Equal(time.Unix(st.Ctim.Unix())) || changedAt(fi).Year() < 2000 {
		t.Errorf("%v, %v", changedAt(fi), err)
	}
}
