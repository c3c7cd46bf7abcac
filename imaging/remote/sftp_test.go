package remote

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// furnish makes a tree with a bit of everything.
func furnish(t *testing.T, tree string) {
	t.Helper()
	writeFile(t, tree+"/etc/hostname", "head01\n", 0o644)
	writeFile(t, tree+"/usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n", 0o644)
	writeFile(t, tree+"/etc/shadow", "root:*:\n", 0o600)
	writeFile(t, tree+"/home/name\xff\nodd", strings.Repeat("content", 100_000), 0o4750)
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, tree+"/bin/sh", string(program), 0o755)
	for _, err := range []error{
		os.Symlink("../usr/lib/os-release", tree+"/etc/os-release"),
		os.Symlink("/nowhere", tree+"/etc/dangling"),
		os.Link(tree+"/etc/hostname", tree+"/etc/hostname2"),
		os.Lchown(tree+"/etc/shadow", 7, 8),
		unix.Mkfifo(tree+"/home/fifo", 0o600),
		unix.Mknod(tree+"/home/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Lutimes(tree+"/etc/shadow", []unix.Timeval{{Sec: 5}, {Sec: 1234567890, Usec: 999}}),
		os.Mkdir(tree+"/empty", 0o755),
		unix.Chmod(tree+"/empty", 0o1777),
		unix.Chmod(tree+"/home/name\xff\nodd", 0o4750),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSFTP(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{config: []string{"ForceCommand internal-sftp", "MaxSessions 1"}}, signer.PublicKey())
	furnish(t, h.tree)
	conn := dialHead(t, h.target("root"), options(t, h, key))
	if _, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary}); err == nil || !strings.Contains(err.Error(), "runs no commands") {
		t.Errorf("the agent on a host without a shell: %v", err)
	}
	src, err := SFTP(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	facts, layout, err := src.Describe(t.Context(), "/mnt")
	if err != nil || layout != nil || facts.Hostname != "head01" || facts.OSRelease["VERSION_ID"] != "12" || facts.Arch != "x86_64" || facts.Cmdline != "" {
		t.Errorf("%+v, %+v, %v", facts, layout, err)
	}
	if whole, _, err := src.Describe(t.Context(), "/"); err != nil || whole.Cmdline == "" || whole.Firmware == "" {
		t.Errorf("%+v, %v", whole, err)
	}
	sink := newTreeSink()
	req := mnt()
	req.Exclude = []string{"bin/*"}
	if err := src.Scan(t.Context(), req, sink); err != nil {
		t.Fatal(err)
	}
	odd := sink.entries["home/name\xff\nodd"]
	if odd.Mode != 0o4750 || odd.Size != 700_000 || len(odd.Chunks) == 0 {
		t.Errorf("%+v", odd)
	}
	if e := sink.entries["etc/shadow"]; e.UID != 7 || e.GID != 8 || e.Mode != 0o600 || e.MTime != (imaging.Time{Sec: 1234567890}) {
		t.Errorf("%+v", e)
	}
	if e := sink.entries["etc/dangling"]; e.Kind != imaging.Symlink || e.Target != "/nowhere" {
		t.Errorf("%+v", e)
	}
	if e := sink.entries["home/fifo"]; e.Kind != imaging.FIFO {
		t.Errorf("%+v", e)
	}
	if e := sink.entries["etc/hostname2"]; e.Kind != imaging.Regular || e.Size != 7 {
		t.Errorf("%+v", e)
	}
	if e := sink.entries["empty"]; e.Kind != imaging.Directory || e.Mode != 0o1777 {
		t.Errorf("%+v", e)
	}
	if _, ok := sink.entries["home/null"]; ok {
		t.Error("a device without its numbers is in the image")
	}
	if _, ok := sink.entries["bin/sh"]; ok {
		t.Error("what was excluded is in the image")
	}
	lost := map[string]string{}
	for _, n := range sink.notes {
		if n.Kind == imaging.NoteLost {
			lost[n.Path] = n.Detail
		}
	}
	if len(lost) != 2 || !strings.Contains(lost["."], "hard links") || !strings.Contains(lost["home/null"], "device") {
		t.Errorf("lost: %v", lost)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	// The one session is free again.
	again, err := SFTP(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestSFTPRefusals(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	furnish(t, h.tree)
	none := startHead(t, headSpec{noSFTP: true}, signer.PublicKey())
	if _, err := SFTP(t.Context(), dialHead(t, none.target("root"), options(t, none, key))); err == nil || !strings.Contains(err.Error(), "no SFTP") {
		t.Error(err)
	}
	src, err := SFTP(t.Context(), dialHead(t, h.target("alice"), options(t, h, key)))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sink := newTreeSink()
	if err := src.Scan(t.Context(), mnt(), sink); !errors.Is(err, ErrNotRoot) || len(sink.entries) > 0 {
		t.Errorf("%d entries, %v", len(sink.entries), err)
	}
}

func TestSFTPCut(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(60, 1<<20)
	for name, end := range map[string]func(cancel context.CancelFunc){
		"cut":    func(context.CancelFunc) { kill(h.sessions()) },
		"cancel": func(cancel context.CancelFunc) { cancel() },
	} {
		src, err := SFTP(t.Context(), dialHead(t, h.target("root"), options(t, h, key)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		sink := newTreeSink()
		sink.onBlock = func() { end(cancel) }
		err = src.Scan(ctx, mnt(), sink)
		var lost *LostError
		if name == "cut" && !errors.As(err, &lost) || name == "cancel" && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		if err := src.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		cancel()
	}
}

func kill(pids []int) {
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
}

func TestELFArch(t *testing.T) {
	own, err := os.ReadFile(filepath.Join("/proc/self/exe"))
	if err != nil {
		t.Fatal(err)
	}
	if got := elfArch(own[:20]); got != "x86_64" {
		t.Error(got)
	}
	for _, b := range [][]byte{nil, []byte("#!/bin/sh\n"), bytes.Repeat([]byte{0}, 64), own[:19]} {
		if got := elfArch(b); got != "" {
			t.Errorf("%q: %s", b, got)
		}
	}
}
