package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
)

// An install that ends by a fault of this machine or of the store is told to
// the head with its stage and reason, also when the head does not answer at
// once; what the head itself refused is not.
func TestGiveUp(t *testing.T) {
	chunk := store.Sum([]byte("chunk"))
	for name, c := range map[string]struct {
		why  error
		want string // empty: nothing is told
	}{
		"disk full":     {&clone.StageError{Stage: clone.StageApply, Err: &imaging.SpaceError{Path: "/target", Need: 200, Have: 100}}, "apply: the file system at /target has 100 bytes free and 200 are needed"},
		"full in midst": {&clone.StageError{Stage: clone.StageBootloader, Err: fmt.Errorf("grub-install: %w", unix.ENOSPC)}, "bootloader: grub-install: no space left on device"},
		"corrupt chunk": {&clone.StageError{Stage: clone.StageApply, Err: &store.CorruptError{What: "chunk", ID: chunk, Detail: "bad"}}, chunk.String()},
		"refused":       {fmt.Errorf("plan: %w", &refusal{message: "two disks qualify"}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHead(t, "127.0.0.1")
			var told []clone.Report
			busy := true
			h.do = func(w http.ResponseWriter, r *http.Request) {
				if busy {
					busy = false
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				var word clone.Report
				if err := json.NewDecoder(r.Body).Decode(&word); err != nil || r.URL.Path != "/v1/report" {
					t.Errorf("%s: %v", r.URL.Path, err)
				}
				told = append(told, word)
				w.WriteHeader(http.StatusNoContent)
			}
			head, err := newHead(h.URL, h.ca, time.Now, t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			screen, err := os.Create(filepath.Join(t.TempDir(), "screen"))
			if err != nil {
				t.Fatal(err)
			}
			defer screen.Close()
			in := &installer{head: head, plan: &clone.Plan{ID: "install-1"}, screen: &consoles{files: []*os.File{screen}}}
			in.giveUp(t.Context(), c.why)
			if c.want == "" {
				if len(h.calls) > 0 {
					t.Errorf("its own refusal is told to the head: %v", told)
				}
				return
			}
			if len(told) != 1 || told[0].Stage != clone.StageFailed || told[0].Install != "install-1" || !strings.Contains(told[0].Detail, c.want) {
				t.Errorf("told %+v, want %q", told, c.want)
			}
		})
	}
}
