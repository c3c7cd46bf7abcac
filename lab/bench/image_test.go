package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every row of the table is measured, on both sides, and nothing is left
// behind. How fast it was says nothing here: the tree is a small one.
func TestSmallBench(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo, as make test does")
	}
	bin := os.Getenv("DOPPEL_BIN")
	if bin == "" {
		bin = t.TempDir()
		build := exec.Command("go", "build", "-o", bin, "doppel/cmd/doppel", "doppel/cmd/doppel-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	work, file := filepath.Join(t.TempDir(), "work"), filepath.Join(t.TempDir(), "out/bench.jsonl")
	var table bytes.Buffer
	o := Options{Bin: bin, Work: work, N: 1, Small: true, Out: &table, File: file}
	rows, err := Image(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, table.String())
	}
	want := []string{
		"capture-first-time", "capture-first-size", "capture-unchanged-time", "restore-time", "apply-unchanged-time", "verify-speed",
		"upgrade-time", "upgrade-sent", "upgrade-added", "peak-memory", "peak-memory-million",
	}
	var got []string
	for _, r := range rows {
		got = append(got, r.Name)
		switch {
		case r.Error != "":
			t.Errorf("%s: %s", r.Name, r.Error)
		case len(r.Samples) != 1 || r.Samples[0][0] <= 0 || r.Samples[0][1] <= 0 || r.Ratio <= 0 || r.N != 1:
			t.Errorf("%s was not measured on both sides: %+v", r.Name, r)
		case r.PeerName == "" || r.PeerCommand == "" || r.Unit == "" || r.Goal == "":
			t.Errorf("%s does not say what it is: %+v", r.Name, r)
		}
		if !strings.Contains(table.String(), "\n"+r.Name+" ") {
			t.Errorf("%s is not in the table", r.Name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}

	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var written []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r Row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Errorf("line %d of the file: %v", len(written)+1, err)
		}
		written = append(written, r.Name)
	}
	if !slices.Equal(written, want) {
		t.Errorf("in the file are %q", written)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || bytes.Contains(mounts, []byte(work)) {
		t.Errorf("something stays mounted: %v", err)
	}
	if out, err := exec.Command("pgrep", "-af", work).Output(); err == nil {
		t.Errorf("something goes on:\n%s", out)
	}

	// A second run, of one row, takes the trees that are there.
	o.Only, o.File = []string{"verify"}, ""
	table.Reset()
	if rows, err = Image(t.Context(), o); err != nil || len(rows) != 1 || rows[0].Name != "verify-speed" {
		t.Errorf("one row: %+v, %v", rows, err)
	}
	if strings.Contains(table.String(), "making the head's tree") {
		t.Error("the tree was made anew")
	}
}
