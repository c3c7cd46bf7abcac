package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/imaging/store"
)

// A node takes its head's agent when it is what the head said, and runs here;
// otherwise it goes on as it is, and says why.
func TestNodeRenewsItsAgent(t *testing.T) {
	runs, err := os.ReadFile("/bin/true") // for which any argument is right
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		given, said []byte
		size        int64
		self        string
		why         string // it is refused
		lost        bool   // it did not arrive
		full        bool   // the disk is
	}{
		"right":          {given: runs, said: runs},
		"another one":    {given: append([]byte("x"), runs[1:]...), said: runs, why: "its digest is"},
		"does not run":   {given: []byte("#!/bin/false\n"), said: []byte("#!/bin/false\n"), why: "does not run here"},
		"no program":     {given: []byte("nothing"), said: []byte("nothing"), why: "does not run here"},
		"too short":      {given: runs[:10], said: runs, lost: true},
		"too long":       {given: append(runs[:len(runs):len(runs)], 0), said: runs, lost: true},
		"of no size":     {given: runs, said: runs, size: -1, why: "cannot be"},
		"no room":        {given: runs, said: runs, full: true, why: "no space left"},
		"runs elsewhere": {given: runs, said: runs, self: "/bin/sh", why: "the agent that runs is not"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			path := filepath.Join(n.root, "usr/lib/doppel/doppel-agent")
			plant(t, n.root, map[string]string{"usr/lib/doppel/doppel-agent": "the old one"})
			if c.why == "" && !c.lost {
				plant(t, n.root, map[string]string{"usr/lib/doppel/.doppel-agent-1": "cut off"})
			}
			if c.full {
				must := func(args ...string) {
					if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
				must("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", filepath.Dir(path))
				t.Cleanup(func() { must("umount", filepath.Dir(path)) })
				plant(t, n.root, map[string]string{"usr/lib/doppel/doppel-agent": "the old one"})
			}
			n.self = filepath.Join(t.TempDir(), "exe")
			if err := os.Symlink(path, n.self); err != nil {
				t.Fatal(err)
			}
			if c.self != "" {
				n.self = filepath.Join(t.TempDir(), "exe")
				if err := os.Symlink(c.self, n.self); err != nil {
					t.Fatal(err)
				}
			}
			size := int64(len(c.said))
			if c.size != 0 {
				size = c.size
			}
			idles, became := make(chan clone.Idle, 100), make(chan string, 1)
			n.become = func(path string) error { became <- path; return nil }
			n.do = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/agent" {
					w.Write(c.given)
					return
				}
				var idle clone.Idle
				if json.NewDecoder(r.Body).Decode(&idle) != nil {
					return // the node has stopped asking
				}
				if idle.AgentRefused == nil {
					json.NewEncoder(w).Encode(clone.Task{Agent: &clone.AgentOrders{Digest: store.Sum(c.said), Size: size}})
				} else {
					w.WriteHeader(http.StatusNoContent)
				}
				idles <- idle
			}
			switch stop := n.obeying(t); {
			case c.lost:
				// It is asked for again after a while, and nothing is refused.
				first := <-idles
				stop()
				if own, err := ownDigest(); err != nil || first.Agent != own {
					t.Errorf("it says that it is %s, %v", first.Agent.Hex(), err)
				}
				select {
				case i := <-idles:
					t.Errorf("it asked again at once: %+v", i)
				default:
				}
			case c.why != "":
				for i := range idles {
					if i.AgentRefused == nil {
						continue
					}
					if !strings.Contains(i.AgentRefused.Why, c.why) || i.AgentRefused.Digest != store.Sum(c.said) {
						t.Errorf("refused %+v", i.AgentRefused)
					}
					break
				}
			default:
				select {
				case at := <-became:
					if at != path {
						t.Errorf("it became %s", at)
					}
				case <-time.After(time.Minute):
					t.Fatal("it did not become the new one")
				}
			}
			want := "the old one"
			if c.why == "" && !c.lost {
				want = string(runs)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("the agent there is %.20q, %v", got, err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// The process goes on as another program of the same service.
func TestNodeBecomes(t *testing.T) {
	if program := os.Getenv("DOPPEL_TEST_BECOME"); program != "" {
		t.Fatal(becomeService(program))
	}
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho became $1 by $DOPPEL_TEST_BECOME as $$\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNodeBecomes$")
	cmd.Env = append(os.Environ(), "DOPPEL_TEST_BECOME="+script)
	out, err := cmd.Output()
	if want := "became node by " + script + " as"; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: %s", err, out)
	}
}

// Nothing is kept where that would make a directory that was not there.
func TestTablesNeedAPlace(t *testing.T) {
	n := &node{root: t.TempDir()}
	if got := n.tables(); got != "" {
		t.Errorf("without /var/lib: %s", got)
	}
	plant(t, n.root, map[string]string{"var/lib/other": ""})
	if got := n.tables(); got != filepath.Join(n.root, "var/lib/doppel/tables") {
		t.Errorf("with /var/lib: %s", got)
	}
	if err := os.RemoveAll(filepath.Join(n.root, "var/lib")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(n.root, "var/lib")); err != nil {
		t.Fatal(err)
	}
	if got := n.tables(); got != "" {
		t.Errorf("with a link: %s", got)
	}
}
