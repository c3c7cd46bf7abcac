package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
)

// imageOf captures a tree of files and gives what a node needs to read it.
func imageOf(t *testing.T, files map[string]string) clone.Access {
	t.Helper()
	dir, state := t.TempDir(), t.TempDir()
	plant(t, dir, files)
	catalog, err := imaging.OpenCatalog(state, imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := catalog.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	src := imaging.NewLocal(dir)
	report, err := imaging.Capture(t.Context(), catalog, src, imaging.CaptureOptions{Name: "head", Root: dir})
	if err != nil || src.Close() != nil {
		t.Fatal(err)
	}
	v, err := catalog.Resolve(t.Context(), report.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := catalog.Manifest(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	vault, err := catalog.Vault(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var refs []store.Ref
	for _, e := range m.List.All() {
		for _, c := range e.Chunks {
			refs = append(refs, store.Ref{Audience: e.Class.Audience(), ID: c.ID})
		}
	}
	packs, err := vault.PacksOf(refs)
	if err != nil {
		t.Fatal(err)
	}
	st, err := catalog.Store()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := catalog.Keys()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(store.Handler(st))
	t.Cleanup(s.Close)
	return clone.Access{Manifest: v.Blob, Digest: report.Digest, Packs: packs, Store: s.URL, Cluster: keys.Cluster[:], Head: keys.Head[:]}
}

func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// headFiles are what an image needs to be taken for one that starts a machine.
func headFiles(more map[string]string) map[string]string {
	files := map[string]string{
		"boot/vmlinuz-6.1.0-1-amd64": "kernel", "boot/initrd.img-6.1.0-1-amd64": "initramfs", "usr/lib/modules/6.1.0-1-amd64/modules.dep": "",
		"usr/sbin/grub-install": "#!", "usr/sbin/grub-mkconfig": "#!", "usr/lib/grub/i386-pc/kernel.img": "", "usr/lib/grub/i386-pc/moddep.lst": "",
		"usr/lib/grub/i386-pc/normal.mod": "", "usr/lib/grub/i386-pc/boot.img": "", "etc/os-release": "ID=debian\n", "etc/hosts": "127.0.0.1 localhost\n",
	}
	for name, text := range more {
		files[name] = text
	}
	return files
}

// testNode is a node in a directory, whose head gives it the tasks.
type testNode struct {
	*node
	*testHead
	mu    sync.Mutex
	tasks []*clone.UpdateOrders
	words chan clone.UpdateWord
	// refuse has the head refuse words from this stage on.
	refuse clone.Stage
	// status, if any, is the answer to words of this stage that changes nothing.
	status map[clone.Stage]int
	given  int // tasks
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	h := newTestHead(t, "127.0.0.1")
	hd, err := newHead(h.URL, h.ca, time.Now, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{testHead: h, words: make(chan clone.UpdateWord, 1000)}
	n.node = &node{
		dir: t.TempDir(), root: t.TempDir(), work: t.TempDir(), head: hd, machine: &clone.Recorder{Out: io.Discard, Ran: func(c clone.Command) error {
			if filepath.Base(c.Args[0]) != "grub-mkconfig" {
				return nil
			}
			return os.WriteFile(filepath.Join(c.Root, c.Args[2]), []byte("root 1111-11 /vmlinuz-6.1.0-1-amd64"), 0o600)
		}},
		disk: func() (string, error) { return "/dev/vda", nil },
		rest: func(context.Context, time.Duration) {},
	}
	plan := &clone.Plan{
		ID: "I", Node: "node001", Role: "head", Firmware: clone.BIOS, Arch: "", Addr: netip.MustParsePrefix("10.77.0.11/24"),
		Partitions: []clone.Partition{{Number: 1, GUID: "G", FS: &imaging.FileSystem{Type: "ext4", UUID: "1111-11", Mount: "/"}}},
	}
	text, err := clone.EncodePlan(plan)
	if err != nil {
		t.Fatal(err)
	}
	plant(t, n.dir, map[string]string{"plan.json": string(text)})
	plant(t, n.root, headFiles(map[string]string{"etc/hostname": "node001\n", "srv/old": "old", "boot/grub/grubenv": ""}))
	h.do = func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		switch r.URL.Path {
		case "/v1/task":
			if len(n.tasks) == 0 {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			n.given++
			json.NewEncoder(w).Encode(clone.Task{Update: n.tasks[0]})
		case "/v1/update":
			var word clone.UpdateWord
			if err := json.NewDecoder(r.Body).Decode(&word); err != nil {
				t.Error(err)
			}
			if status := n.status[word.Stage]; status != 0 {
				w.WriteHeader(status)
				io.WriteString(w, `{"error":"the body is not what it should be"}`)
			} else if n.refuse != "" && word.Stage == n.refuse {
				n.tasks = nil
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"error":"this update was taken back"}`)
			} else if word.Stage == clone.StageFinish || word.Stage == clone.StageFailed {
				n.tasks = nil
			}
			n.words <- word
		}
	}
	return n
}

// rests has the node rest, when it has a reason to, until it is stopped. What it
// gives waits for that, and tells for how long it would.
func (n *testNode) rests(t *testing.T) func() time.Duration {
	resting := make(chan time.Duration, 1)
	n.rest = func(ctx context.Context, d time.Duration) {
		resting <- d
		<-ctx.Done()
	}
	return func() time.Duration {
		t.Helper()
		select {
		case d := <-resting:
			return d
		case <-time.After(time.Minute):
			t.Fatal("it does not rest")
			return 0
		}
	}
}

// obeying lets the node work until the test ends or stop is called.
func (n *testNode) obeying(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.obey(ctx, slog.New(slog.DiscardHandler)) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func (n *testNode) last(t *testing.T) clone.UpdateWord {
	t.Helper()
	for w := range n.words {
		if w.Stage == clone.StageFinish || w.Stage == clone.StageFailed {
			return w
		}
	}
	return clone.UpdateWord{}
}

func (n *testNode) order(o *clone.UpdateOrders) {
	n.mu.Lock()
	n.tasks = append(n.tasks, o)
	n.mu.Unlock()
}

func TestNodeUpdates(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes owners: run it as root")
	}
	n := newTestNode(t)
	access := imageOf(t, headFiles(map[string]string{"etc/hostname": "head\n", "etc/motd": "welcome\n", "etc/hosts": "127.0.0.1 localhost\n10.77.0.9 other\n"}))
	n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Access: access})
	n.obeying(t)
	w := n.last(t)
	if w.Stage != clone.StageFinish || w.Install != "U1" || w.Result == nil || w.Result.Apply.Written == 0 || w.Result.Apply.Deleted == 0 {
		t.Fatalf("%+v %+v", w, w.Result)
	}
	for name, want := range map[string]string{"etc/hostname": "node001\n", "etc/motd": "welcome\n", "srv/old": ""} {
		b, err := os.ReadFile(filepath.Join(n.root, name))
		if string(b) != want || err != nil && want != "" {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(n.root, "etc/hosts")); !strings.Contains(string(b), "10.77.0.9 other") || !strings.Contains(string(b), "10.77.0.11\tnode001") {
		t.Errorf("/etc/hosts is %q", b)
	}

	// What cannot be is told, and nothing is touched.
	wrong := access
	wrong.Digest = "sha256:0000"
	n.order(&clone.UpdateOrders{ID: "U2", Image: "head@3", Access: wrong})
	if w := n.last(t); w.Stage != clone.StageFailed || w.Install != "U2" || !strings.Contains(w.Detail, "was deployed") {
		t.Errorf("%+v", w)
	}
	if err := os.Remove(filepath.Join(n.dir, "plan.json")); err != nil {
		t.Fatal(err)
	}
	n.order(&clone.UpdateOrders{ID: "U3", Image: "head@2", Access: access})
	if w := n.last(t); w.Stage != clone.StageFailed || !strings.Contains(w.Detail, "install it anew") {
		t.Errorf("%+v", w)
	}
}

// An update that the head takes back stops, and the node asks for other work.
func TestNodeUpdateTakenBack(t *testing.T) {
	n := newTestNode(t)
	n.refuse = clone.StagePre
	told := make(chan struct{})
	programs := n.machine
	n.machine = &clone.Recorder{Out: io.Discard, Ran: func(c clone.Command) error {
		<-told // the update gets no further before its head has refused it
		return programs.Run(t.Context(), c)
	}}
	access := imageOf(t, headFiles(map[string]string{"etc/motd": "welcome\n"}))
	n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Pre: "true", Access: access})
	n.obeying(t)
	for w := range n.words {
		if w.Stage == clone.StagePre {
			break
		}
	}
	n.mu.Lock()
	n.refuse = ""
	n.mu.Unlock()
	close(told)
	n.order(&clone.UpdateOrders{ID: "U2", Image: "head@2", Access: access})
	if w := n.last(t); w.Stage != clone.StageFinish || w.Install != "U2" {
		t.Errorf("%+v", w)
	}
}

// A head that does not understand a node's words has said nothing about the
// orders, and gives them again: the node leaves it alone for a while.
func TestNodeUpdateNotUnderstood(t *testing.T) {
	access := imageOf(t, headFiles(nil))
	for _, c := range []struct {
		stage  clone.Stage
		status int
	}{{clone.StageCheck, http.StatusBadRequest}, {clone.StageFinish, http.StatusBadRequest}, {clone.StageFinish, http.StatusRequestEntityTooLarge}} {
		t.Run(fmt.Sprint(c.stage, c.status), func(t *testing.T) {
			n := newTestNode(t)
			rested := n.rests(t)
			n.status = map[clone.Stage]int{c.stage: c.status}
			n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Access: access})
			stop := n.obeying(t)
			d := rested()
			stop()
			if n.given != 1 || d != updatePatience {
				t.Errorf("it was given its orders %d times, and then rested for %v", n.given, d)
			}
		})
	}
}

// What a program says without end, and what an image has without end, is not
// told: the head takes no word of that size, and would not hear how it ended.
func TestNodeUpdateSaysLittle(t *testing.T) {
	n := newTestNode(t)
	n.machine = &clone.Recorder{Out: io.Discard, Ran: func(clone.Command) error { return errors.New(strings.Repeat("ä", 1<<20)) }}
	n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Pre: "false", Access: imageOf(t, headFiles(nil))})
	n.obeying(t)
	if w := n.last(t); w.Stage != clone.StageFailed || len(w.Detail) > 4096 || !strings.Contains(w.Detail, "ää") || !utf8.ValidString(w.Detail) {
		t.Errorf("%s: %d bytes", w.Stage, len(w.Detail))
	}
	r := clone.UpdateReport{Apply: &imaging.ApplyReport{Written: 3, Lost: 1, Withheld: []string{"a"}, Losses: []imaging.Loss{{Path: "b"}}}}
	if b := brief(&r); b.Apply.Written != 3 || b.Apply.Lost != 1 || b.Apply.Withheld != nil || b.Apply.Losses != nil || len(r.Apply.Withheld) != 1 {
		t.Errorf("%+v of %+v", b.Apply, r.Apply)
	}
}

// A node that is asked says in what it differs, its identity apart.
func TestNodeDrift(t *testing.T) {
	n := newTestNode(t)
	access := imageOf(t, headFiles(map[string]string{"etc/hostname": "head\n", "etc/motd": "welcome\n", "srv/kept": "the image's"}))
	n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Access: access})
	stop := n.obeying(t)
	if w := n.last(t); w.Stage != clone.StageFinish {
		t.Fatalf("%+v", w)
	}
	stop()
	plant(t, n.root, map[string]string{"etc/motd": "WELCOME\n", "opt/extra": "by hand", "srv/kept": "the node's", "etc/hostname": "node001\n"})
	drift := func(full bool) []string {
		t.Helper()
		r, err := n.drift(t.Context(), &clone.DriftOrders{Image: "head@2", Full: full, Keep: []string{"srv/**"}, Access: access})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, d := range r.Differences {
			out = append(out, string(d.Kind)+" "+d.Path)
		}
		return out
	}
	want := []string{"content etc/motd", "mtime etc/motd", "extra opt", "extra opt/extra"}
	for _, full := range []bool{false, true} {
		have := drift(full)
		for _, w := range want {
			if !slices.Contains(have, w) {
				t.Errorf("full %v: %q is not among %q", full, w, have)
			}
		}
		for _, h := range have {
			if strings.Contains(h, "hostname") || strings.Contains(h, "srv/") {
				t.Errorf("full %v: %s", full, h)
			}
		}
	}
}

// A head that has nothing to do is no head that does not answer: the node does
// not ask less and less often.
func TestNodeIdle(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	asked := 0
	h.do = func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.WriteHeader(http.StatusNoContent)
	}
	hd, err := newHead(h.URL, h.ca, time.Now, func(format string, args ...any) { t.Errorf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	var task clone.Task
	if _, err := hd.ask(t.Context(), "/v1/task", clone.Idle{}, &task); err != nil || asked != 1 || task != (clone.Task{}) {
		t.Errorf("asked %d times: %+v, %v", asked, task, err)
	}
}
