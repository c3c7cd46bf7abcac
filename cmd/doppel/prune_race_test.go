package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// doppelProcess is a doppel of its own, out of the test's binary, as in scripts.
func doppelProcess(work string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "doppel"
	cmd.Env = append(os.Environ(), "WORK="+work)
	return cmd
}

// pruneRace is a state directory that many work on at once, with a copy of
// every tree that became a version.
type pruneRace struct {
	t    *testing.T
	work string

	mu   sync.Mutex
	copy map[string]string // of each version
}

func (r *pruneRace) doppel(args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := doppelProcess(r.work, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("doppel %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return out, err
}

// captures changes a tree and captures it, again and again.
func (r *pruneRace) captures(name string, rounds int) error {
	tree := filepath.Join(r.work, "tree-"+name)
	random := rand.NewChaCha8([32]byte{name[0]})
	write := func(file string, size int) error {
		b := make([]byte, size)
		random.Read(b)
		return os.WriteFile(filepath.Join(tree, file), b, 0o644)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for i := range rounds {
		// Files come, stay for some versions, and come back with the same bytes.
		if err := write(fmt.Sprintf("own%d", i%4), 300<<10); err != nil {
			return err
		}
		again := bytes.Repeat([]byte(fmt.Sprintf("%s of round %d\n", name, i%3)), 20000)
		if err := os.WriteFile(filepath.Join(tree, "again"), again, 0o644); err != nil {
			return err
		}
		out, err := r.doppel("capture", "local", "--root", tree, "--name", name, "--json")
		if err != nil {
			return err
		}
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		var report struct{ Version int }
		if err := json.Unmarshal(lines[len(lines)-1], &report); err != nil {
			return err
		}
		ref := fmt.Sprintf("%s@%d", name, report.Version)
		to := filepath.Join(r.work, "copy-"+ref)
		if out, err := exec.Command("cp", "-a", tree, to).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		r.mu.Lock()
		r.copy[ref] = to
		r.mu.Unlock()
	}
	return nil
}

// restores restores what there is and compares, until told to stop.
func (r *pruneRace) restores(stop <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		var ref string
		r.mu.Lock()
		for ref = range r.copy { // any
			break
		}
		r.mu.Unlock()
		if ref == "" {
			continue
		}
		if err := r.restore(ref, fmt.Sprintf("restored-%d", i)); err != nil && !strings.Contains(err.Error(), "there is no image") {
			return err
		}
	}
}

func (r *pruneRace) restore(ref, into string) error {
	dir := filepath.Join(r.work, into)
	if _, err := r.doppel("image", "restore", ref, dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r.mu.Lock()
	want := r.copy[ref]
	r.mu.Unlock()
	if out, err := exec.Command("diff", "-r", want, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", ref, err, out)
	}
	return nil
}

// TestPruneRace: two captures, a prune with rules, one without, and a restore,
// each a process of its own, over and over. No version is ever less than whole.
func TestPruneRace(t *testing.T) {
	needRoot(t)
	r := &pruneRace{t: t, work: t.TempDir(), copy: map[string]string{}}
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	note := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		writers.Go(func() { note(r.captures(name, 12)) })
	}
	prunes := 0
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := r.doppel("image", "prune", "--keep-last", "3", "--yes"); err != nil {
				t.Error(err)
				return
			}
			prunes++
		}
	})
	others.Go(func() { note(r.restores(stop)) })
	writers.Wait()
	close(stop)
	others.Wait()
	if t.Failed() {
		return
	}
	out, err := r.doppel("image", "prune", "--keep-last", "3", "--json")
	note(err)
	if !strings.Contains(string(out), `"bytes_waiting": 0`) {
		t.Errorf("with nobody there any more: %s", out)
	}
	_, err = r.doppel("image", "verify", "--all", "--read-data")
	note(err)
	out, err = r.doppel("image", "ls", "--json")
	note(err)
	var list []struct {
		Image   string
		Version int
	}
	note(json.Unmarshal(out, &list))
	if len(list) != 6 || prunes < 2 {
		t.Errorf("%d versions after %d prunes: %s", len(list), prunes, out)
	}
	for i, v := range list {
		note(r.restore(fmt.Sprintf("%s@%d", v.Image, v.Version), fmt.Sprintf("last-%d", i)))
	}
	t.Logf("%d prunes beside %d captures", prunes, len(r.copy))
}
