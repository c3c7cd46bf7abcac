package remote

import (
	"errors"
	"strings"
	"testing"
)

func TestNotRoot(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	writeFile(t, h.tree+"/secret", "for root alone", 0o600)
	o := options(t, h, key)
	var hint interface{ Hint() string }

	t.Run("without --sudo", func(t *testing.T) {
		err := scan(t, dialHead(t, h.target("alice"), o), AgentOptions{}, newTreeSink())
		if !errors.Is(err, ErrNotRoot) || !strings.Contains(err.Error(), "alice") || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "--sudo") {
			t.Error(err)
		}
		h.mustBeClean()
	})
	t.Run("sudo without a password", func(t *testing.T) {
		sink := newTreeSink()
		if err := scan(t, dialHead(t, h.target("alice"), o), AgentOptions{Sudo: true}, sink); err != nil {
			t.Fatal(err)
		}
		if e := sink.entries["secret"]; e.Size != 14 || len(e.Chunks) != 1 {
			t.Errorf("%+v", e)
		}
		h.mustBeClean()
	})
	t.Run("sudo for root", func(t *testing.T) {
		if err := scan(t, dialHead(t, h.target("root"), o), AgentOptions{Sudo: true}, newTreeSink()); err != nil {
			t.Error(err)
		}
	})
	t.Run("sudo with a password", func(t *testing.T) {
		user := &scripted{answers: []string{"wrong", password}}
		sink := newTreeSink()
		h.fill(10, 1<<20)
		if err := scan(t, dialHead(t, h.target("bob"), o), AgentOptions{Sudo: true, Prompt: user.prompt}, sink); err != nil {
			t.Fatal(err)
		}
		if len(user.questions) != 2 || user.echoes[0] || !strings.Contains(user.questions[0], "bob") || len(sink.entries) != 15 {
			t.Errorf("asked %q, got %d entries", user.questions, len(sink.entries))
		}
		h.mustBeClean()
	})
	t.Run("nobody to ask", func(t *testing.T) {
		err := scan(t, dialHead(t, h.target("bob"), o), AgentOptions{Sudo: true}, newTreeSink())
		if !errors.Is(err, ErrNotRoot) || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "NOPASSWD") {
			t.Error(err)
		}
		h.mustBeClean()
	})
	t.Run("wrong password", func(t *testing.T) {
		user := &scripted{answers: []string{"a", "b", "c"}}
		err := scan(t, dialHead(t, h.target("bob"), o), AgentOptions{Sudo: true, Prompt: user.prompt}, newTreeSink())
		if err == nil || !strings.Contains(err.Error(), "did not take the password") {
			t.Error(err)
		}
		h.mustBeClean()
	})
	t.Run("not in sudoers", func(t *testing.T) {
		user := &scripted{answers: []string{password}}
		err := scan(t, dialHead(t, h.target("carol"), o), AgentOptions{Sudo: true, Prompt: user.prompt}, newTreeSink())
		if !errors.Is(err, ErrNotRoot) || !strings.Contains(err.Error(), "sudoers") {
			t.Error(err)
		}
		h.mustBeClean()
	})
	t.Run("cut under sudo", func(t *testing.T) {
		conn := dialHead(t, h.target("alice"), o)
		src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary, Sudo: true})
		if err != nil {
			t.Fatal(err)
		}
		agents := h.agents()
		conn.net.Close()
		var lost *LostError
		if err := src.Scan(t.Context(), mnt(), newTreeSink()); !errors.As(err, &lost) {
			t.Error(err)
		}
		src.Close()
		for _, pid := range agents {
			h.waitGone(pid)
		}
		h.mustBeClean()
	})
}

func TestNoPlaceForTheAgent(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{mounts: []string{
		"mount -o remount,noexec /tmp", "mount -o remount,noexec /var/tmp", "mount -o remount,noexec /dev/shm", "mount -t tmpfs -o noexec none /root"}}, signer.PublicKey())
	err := scan(t, dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{}, newTreeSink())
	var hint interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), "noexec") || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), installedAgent) {
		t.Error(err)
	}
	h.mustBeClean()
}

// Where the file system is too small for the agent, the next place takes it.
func TestSmallTemporaryDirectory(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{mounts: []string{"mount -t tmpfs -o size=1m,mode=1777 none /tmp"}}, signer.PublicKey())
	h.fill(1, 10)
	sink := newTreeSink()
	if err := scan(t, dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{}, sink); err != nil || len(sink.entries) != 3 {
		t.Errorf("%d entries, %v", len(sink.entries), err)
	}
	h.mustBeClean()
}

func TestInstalledAgent(t *testing.T) {
	signer, key := newKey(t)
	// The places to bring it to are all shut: only the installed one can run.
	h := startHead(t, headSpec{mounts: []string{
		"mkdir /srv/work", "mount -t tmpfs none /srv/work", "mkdir /srv/work/u /srv/work/w",
		"mount -t overlay -o lowerdir=/usr/lib,upperdir=/srv/work/u,workdir=/srv/work/w none /usr/lib",
		"mkdir -p /usr/lib/doppel", "cp /srv/agent " + installedAgent,
		"mount -o remount,noexec /tmp", "mount -o remount,noexec /var/tmp", "mount -o remount,noexec /dev/shm", "mount -t tmpfs -o noexec none /root"},
		files: map[string]string{"agent": agentBinary}}, signer.PublicKey())
	h.fill(1, 10)
	sink := newTreeSink()
	if err := scan(t, dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{}, sink); err != nil || len(sink.entries) != 3 {
		t.Errorf("%d entries, %v", len(sink.entries), err)
	}
	h.mustBeClean()
}

// What a capture that lost its connection too early left behind, the next one
// takes away; what is not its own or too young, it leaves.
func TestLeftovers(t *testing.T) {
	signer, key := newKey(t)
	old := "touch -d @1000000000 "
	h := startHead(t, headSpec{mounts: []string{
		"mkdir /tmp/" + dirPrefix + "old /tmp/other", "touch /tmp/" + dirPrefix + "old/" + agentFile, old + "/tmp/other /tmp/" + dirPrefix + "old",
		"mkdir /tmp/" + dirPrefix + "alices", "chown 4242 /tmp/" + dirPrefix + "alices", old + "/tmp/" + dirPrefix + "alices",
		"mkdir /tmp/" + dirPrefix + "young"}}, signer.PublicKey())
	h.fill(1, 10)
	if err := scan(t, dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{}, newTreeSink()); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(names(t, h.inside("/tmp")), " ")
	if want := dirPrefix + "alices " + dirPrefix + "young other"; got != want {
		t.Errorf("/tmp holds %s, want %s", got, want)
	}
}
