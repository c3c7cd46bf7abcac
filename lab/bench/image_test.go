package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/lab"
)

// TestMain gives the tests a network of their own: a bench's sshd and whatever
// it ran are then the only processes in it, and the only ones that send
// anything through the loopback interface.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() == 0 && os.Getenv("DOPPEL_BIN") == "" { // built outside, where modules can be fetched
			dir, err := os.MkdirTemp("", "doppel-bin-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(dir)
			build := exec.Command("go", "build", "-o", dir+"/", "doppel/cmd/doppel", "doppel/cmd/doppel-agent", "doppel/cmd/doppel-lab")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "building doppel: %v\n%s", err, out)
				return 1
			}
			os.Setenv("DOPPEL_BIN", dir)
		}
		if code, done := lab.Isolate(); done {
			return code
		}
		return m.Run()
	}())
}

// table is every row of the image bench, in order.
var table = []string{
	"capture-first-time", "capture-first-size",
	"capture-first-time-restic", "capture-first-size-restic", "capture-first-time-borg", "capture-first-size-borg", "capture-first-time-casync", "capture-first-size-casync",
	"capture-unchanged-time", "capture-unchanged-time-restic", "capture-unchanged-time-borg", "capture-unchanged-time-casync",
	"restore-time", "restore-time-restic", "restore-time-borg", "restore-time-casync", "apply-unchanged-time", "verify-speed",
	"upgrade-time", "upgrade-sent", "upgrade-added",
	"upgrade-time-restic", "upgrade-added-restic", "upgrade-time-borg", "upgrade-added-borg", "upgrade-time-casync", "upgrade-added-casync",
	"sync-unchanged-time", "sync-upgrade-time", "sync-upgrade-sent",
	"peak-memory", "peak-memory-restic", "peak-memory-borg", "peak-memory-casync", "peak-memory-million",
	"watch-quiet-time", "watch-idle-cpu", "watch-change-time", "watch-peak-memory",
}

// run is one run of doppel-lab bench image, on the small tree.
type run struct {
	t      *testing.T
	cmd    *exec.Cmd
	work   string
	file   string
	before map[int]bool // processes
	said   bytes.Buffer
}

func newRun(t *testing.T, options ...string) *run {
	if os.Geteuid() != 0 {
		t.Fatal("the bench mounts file systems and starts an sshd: run its test with sudo, as make test does")
	}
	// Not below /tmp: a tmpfs may not take the users' extended attributes.
	dir, err := os.MkdirTemp("/var/tmp", "doppel-bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := &run{t: t, work: filepath.Join(dir, "work"), file: filepath.Join(dir, "out", "bench.jsonl"), before: processes(t)}
	r.cmd = exec.CommandContext(t.Context(), filepath.Join(os.Getenv("DOPPEL_BIN"), "doppel-lab"),
		append([]string{"bench", "image", "--small", "--n", "1", "--work", r.work, "--file", r.file}, options...)...)
	r.cmd.Stderr = &r.said
	return r
}

// processes are those in the test's network, less the test itself.
func processes(t *testing.T) map[int]bool {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, link := range links {
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		// One that has ended has no network any more.
		if in, err := os.Readlink(link); err == nil && in == own && pid != os.Getpid() {
			found[pid] = true
		}
	}
	return found
}

// clean checks that the run has left nothing behind that runs or is mounted.
// What sshd ran may outlive it by a moment.
func (r *run) clean() {
	r.t.Helper()
	for pid := range processes(r.t) {
		if r.before[pid] {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		what, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((20 * time.Second).Milliseconds()))
		for err == unix.EINTR {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((20 * time.Second).Milliseconds()))
		}
		unix.Close(fd)
		if n != 1 || err != nil {
			r.t.Errorf("process %d still runs: %q (%v)", pid, bytes.ReplaceAll(what, []byte{0}, []byte{' '}), err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.work) {
			r.t.Errorf("still mounted: %s", line)
			if err := unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// rows reads the file of rows: one JSON object a line, each with all fields and
// none besides.
func (r *run) rows() (rows []Row) {
	r.t.Helper()
	f, err := os.Open(r.file)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var row Row
		var fields map[string]any
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		if err := errors.Join(d.Decode(&row), json.Unmarshal(lines.Bytes(), &fields)); err != nil {
			r.t.Fatalf("%v in %s", err, lines.Bytes())
		}
		for _, name := range []string{"name", "doppel", "peer", "peer_name", "unit", "n", "ratio", "goal", "met", "samples", "peer_command"} {
			if _, ok := fields[name]; !ok {
				r.t.Errorf("there is no %s in %s", name, lines.Bytes())
			}
		}
		rows = append(rows, row)
	}
	if err := lines.Err(); err != nil {
		r.t.Fatal(err)
	}
	return rows
}

// sound checks that a row of one pair says what the pair came to.
func sound(t *testing.T, r Row) {
	t.Helper()
	if r.Error != "" || r.N != 1 || len(r.Samples) != 1 {
		t.Fatalf("it has %d samples (n is %d) and the error %q", len(r.Samples), r.N, r.Error)
	}
	own, peer := r.Samples[0][0], r.Samples[0][1]
	if own <= 0 || peer <= 0 {
		t.Errorf("doppel's %g and the peer's %g were not measured", own, peer)
	}
	if r.Doppel != own || r.Peer != peer || math.Abs(r.Ratio-own/peer) > 1e-9*r.Ratio {
		t.Errorf("%g, %g and the ratio %g do not follow from %v", r.Doppel, r.Peer, r.Ratio, r.Samples)
	}
	if r.Unit == "" || r.PeerName == "" || r.PeerCommand == "" {
		t.Errorf("the unit is %q, the peer %q, its command %q", r.Unit, r.PeerName, r.PeerCommand)
	}
	figure, rest, _ := strings.Cut(r.Goal, " ")
	relation, bound, _ := strings.Cut(rest, " ")
	v, known := map[string]float64{"ratio": r.Ratio, "doppel": r.Doppel}[figure]
	limit, err := strconv.ParseFloat(bound, 64)
	if !known || err != nil || relation != "<=" && relation != ">=" {
		t.Fatalf("the goal is %q", r.Goal)
	}
	if met := relation == "<=" && v <= limit || relation == ">=" && v >= limit; met != r.Met {
		t.Errorf("the goal %q is met: %v, with the ratio %g and %g", r.Goal, r.Met, r.Ratio, r.Doppel)
	}
}

// The whole table, on a small tree: every row has a figure of doppel's and one
// of the peer's. How they compare says nothing here.
func TestImageBench(t *testing.T) {
	r := newRun(t)
	earlier := Row{Name: "earlier", Samples: [][2]float64{{1, 2}}}
	if err := appendRows(r.file, []Row{earlier}); err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, r.said.Bytes())
	}
	t.Logf("%s", out)
	r.clean()
	rows := r.rows()
	if len(rows) == 0 || rows[0].Name != earlier.Name {
		t.Fatalf("what an earlier run had appended is gone: %v", rows)
	}
	rows = rows[1:]
	var names []string
	_, printed, _ := strings.Cut(string(out), "\nROW ")
	for _, row := range rows {
		names = append(names, row.Name)
		t.Run(row.Name, func(t *testing.T) { sound(t, row) })
		if !strings.Contains(printed, "\n"+row.Name+" ") {
			t.Errorf("the table does not have the row %s", row.Name)
		}
	}
	if !slices.Equal(names, table) {
		t.Errorf("the rows are\n%v, want\n%v", names, table)
	}
}

// A row whose peer does not run says so, is not met, and ends nothing.
func TestPeerThatDoesNotRun(t *testing.T) {
	r := newRun(t, "--only", "capture-first")
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "zstd"), []byte("#!/bin/sh\necho zstd is out of order >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.cmd.Env = append(os.Environ(), "PATH="+broken+":"+os.Getenv("PATH"))
	out, err := r.cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, r.said.Bytes())
	}
	r.clean()
	rows := r.rows()
	if len(rows) != 8 {
		t.Fatalf("there are %d rows, want 8: %s", len(rows), out)
	}
	for _, row := range rows[:2] {
		if row.Met || row.Samples == nil || !strings.Contains(row.Error, "out of order") {
			t.Errorf("%s: met: %v, samples %v, error %q", row.Name, row.Met, row.Samples, row.Error)
		}
	}
	for _, row := range rows[2:] {
		sound(t, row)
	}
	if !strings.Contains(string(out), "out of order") {
		t.Errorf("the table does not say why: %s", out)
	}
}

// A run that is interrupted cleans up as well.
func TestInterrupted(t *testing.T) {
	r := newRun(t)
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	interrupted := false
	for lines.Scan() && !interrupted {
		if interrupted = lines.Text() == "first capture"; interrupted {
			if err := r.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := r.cmd.Wait(); err == nil || !interrupted {
		t.Errorf("interrupted: %v; it ended with %v: %s", interrupted, err, r.said.Bytes())
	}
	r.clean()
	if _, err := os.Stat(r.file); err == nil {
		t.Error("an interrupted run has added rows")
	}
}
