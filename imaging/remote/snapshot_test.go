package remote

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// btrfsHead is a head whose tree is a subvolume of btrfs; top is where the
// whole of the file system is mounted.
func btrfsHead(t *testing.T) (h *headServer, top string, o Options) {
	t.Helper()
	needRoot(t)
	do := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	file := filepath.Join(t.TempDir(), "disk")
	top = t.TempDir()
	do("truncate", "-s", "512M", file)
	do("mkfs.btrfs", "-q", file)
	device := do("losetup", "-f", "--show", file)
	t.Cleanup(func() { do("losetup", "-d", device) })
	do("mount", device, top)
	t.Cleanup(func() { do("umount", top) })
	do("btrfs", "-q", "subvolume", "create", filepath.Join(top, "@"))
	signer, key := newKey(t)
	h = startHead(t, headSpec{mounts: []string{"mount -o subvol=@ " + device + " /mnt"}}, signer.PublicKey())
	h.tree = filepath.Join(top, "@")
	h.fill(60, 1<<20)
	return h, top, options(t, h, key)
}

// noSnapshot waits for the end of the keeper and fails the test when it left
// anything.
func noSnapshot(t *testing.T, h *headServer, keepers []int, top string) {
	t.Helper()
	for _, pid := range keepers {
		h.waitGone(pid)
	}
	for _, pattern := range []string{top + "/doppel-snapshot-*", "/run/doppel/doppel-snapshot-*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}

// children are the processes that a process has started.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	for _, p := range processes(t) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p)); err == nil && strings.Contains(string(b), fmt.Sprintf("\nPPid:\t%d\n", pid)) {
			pids = append(pids, p)
		}
	}
	return pids
}

func fromSnapshots() imaging.ScanRequest {
	req := mnt()
	req.Consistency.Snapshot = imaging.SnapshotRequire
	return req
}

// A capture over SSH reads the snapshot that its agent takes, and whatever
// breaks off in the middle of it, no snapshot and no process is left.
func TestAgentTakesSnapshots(t *testing.T) {
	h, top, o := btrfsHead(t)
	for name, end := range map[string]struct {
		kill func(agent, keeper int)
		want string // of the error; empty: none
	}{
		"whole":      {},
		"agent":      {func(agent, _ int) { unix.Kill(agent, unix.SIGKILL) }, "SIGKILL"},
		"keeper":     {func(_, keeper int) { unix.Kill(keeper, unix.SIGKILL) }, "the process that keeps snapshots has ended"},
		"connection": {func(int, int) { killAll(h.sessions()) }, "while capturing"},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := Agent(t.Context(), dialHead(t, h.target("root"), o), AgentOptions{Path: agentBinary})
			if err != nil {
				t.Fatal(err)
			}
			agent := h.agents()[0]
			sink := newTreeSink()
			var keepers []int
			sink.onBlock = func() {
				if keepers != nil {
					return
				}
				if keepers = children(t, agent); len(keepers) != 1 {
					t.Errorf("keepers: %v", keepers)
					return
				}
				writeFile(t, filepath.Join(h.tree, "zz"), "too late", 0o644)
				if end.kill != nil {
					end.kill(agent, keepers[0])
				}
			}
			err = src.Scan(t.Context(), fromSnapshots(), sink)
			if end.want == "" && err != nil || end.want != "" && (err == nil || !strings.Contains(err.Error(), end.want)) {
				t.Errorf("error %v, want %q", err, end.want)
			}
			if err := src.Close(); err != nil {
				t.Error(err)
			}
			h.waitGone(agent)
			noSnapshot(t, h, keepers, top)
			h.mustBeClean()
			if end.want == "" {
				_, late := sink.entries["zz"]
				if _, early := sink.entries["d0/f0"]; late || !early || len(sink.notes) != 2 || sink.notes[0].Kind != imaging.NoteSnapshot || sink.notes[1].Kind != imaging.NoteInstant {
					t.Errorf("late: %v, notes: %+v", late, sink.notes)
				}
			}
			if err := os.Remove(filepath.Join(h.tree, "zz")); err != nil {
				t.Error(err)
			}
		})
	}
}

func killAll(pids []int) {
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// Where nothing runs on the host, nothing can be kept still.
func TestSFTPTakesNoSnapshots(t *testing.T) {
	h, _, o := btrfsHead(t)
	src, err := SFTP(t.Context(), dialHead(t, h.target("root"), o))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := src.Scan(t.Context(), fromSnapshots(), newTreeSink()); err == nil || !strings.Contains(err.Error(), "SFTP") {
		t.Errorf("error %v", err)
	}
}
