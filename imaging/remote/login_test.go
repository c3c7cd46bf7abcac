package remote

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// script answers questions in order and keeps them.
type scripted struct {
	answers   []string
	questions []string
	echoes    []bool
}

func (s *scripted) prompt(question string, echo bool) (string, error) {
	s.questions = append(s.questions, question)
	s.echoes = append(s.echoes, echo)
	if len(s.answers) == 0 {
		return "", errors.New("nobody answers")
	}
	answer := s.answers[0]
	s.answers = s.answers[1:]
	return answer, nil
}

func TestLogin(t *testing.T) {
	right, rightKey := newKey(t)
	_, wrongKey := newKey(t)
	h := startHead(t, headSpec{}, right.PublicKey())
	rightFile := func(home string) string { return writeKey(t, filepath.Join(home, "right"), rightKey, "") }

	t.Run("right key", func(t *testing.T) {
		c := dialHead(t, h.target("root"), options(t, h, rightKey))
		out, err := c.Run(t.Context(), "id -un")
		if err != nil || string(out) != "root\n" || c.Fingerprint() != ssh.FingerprintSHA256(h.key.PublicKey()) {
			t.Errorf("%q, %v, host key %s", out, err, c.Fingerprint())
		}
		if algorithms := c.client.Conn.(ssh.AlgorithmsConnMetadata).Algorithms(); algorithms.Read.Cipher != "aes128-gcm@openssh.com" {
			t.Errorf("cipher %s", algorithms.Read.Cipher)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		o := options(t, h, wrongKey)
		_, err := Dial(t.Context(), h.target("root"), o)
		var denied *AuthError
		if !errors.As(err, &denied) {
			t.Fatal(err)
		}
		if denied.User != "root" || !slices.Contains(denied.Allowed, "publickey") || len(denied.Tried) != 1 ||
			!strings.Contains(err.Error(), o.Keys[0]) || !strings.Contains(err.Error(), "SHA256:") || !strings.Contains(denied.Hint(), "-i") {
			t.Errorf("%v; %s", err, denied.Hint())
		}
	})
	t.Run("no key at all", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = nil
		_, err := Dial(t.Context(), h.target("root"), o)
		var denied *AuthError
		if !errors.As(err, &denied) || !strings.Contains(err.Error(), "nothing to try") {
			t.Error(err)
		}
	})
	t.Run("key file is not there", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = []string{"/nonexistent/key"}
		_, err := Dial(t.Context(), h.target("root"), o)
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/key") {
			t.Error(err)
		}
	})
	t.Run("default identity", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = nil
		writeKey(t, filepath.Join(o.Home, ".ssh", "id_rsa"), wrongKey, "")
		writeFile(t, filepath.Join(o.Home, ".ssh", "id_ecdsa"), "not a key", 0o600)
		writeKey(t, filepath.Join(o.Home, ".ssh", "id_ed25519"), rightKey, "")
		dialHead(t, h.target("root"), o)
	})
	t.Run("encrypted key", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = []string{writeKey(t, filepath.Join(o.Home, "locked"), rightKey, "open sesame")}
		user := &scripted{answers: []string{"wrong", "open sesame"}}
		o.Prompt = user.prompt
		dialHead(t, h.target("root"), o)
		if len(user.questions) != 2 || user.echoes[0] || !strings.Contains(user.questions[0], o.Keys[0]) {
			t.Errorf("asked %q", user.questions)
		}
		o.Prompt = nil
		_, err := Dial(t.Context(), h.target("root"), o)
		var denied *AuthError
		if !errors.As(err, &denied) || !strings.Contains(err.Error(), "encrypted") {
			t.Error(err)
		}
		o.Prompt = (&scripted{answers: []string{"a", "b", "c"}}).prompt
		if _, err = Dial(t.Context(), h.target("root"), o); !errors.Is(err, errPassphrase) {
			t.Error(err)
		}
	})
	t.Run("an encrypted key that is of no use is not asked for", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = []string{writeKey(t, filepath.Join(o.Home, "locked"), wrongKey, "x"), rightFile(o.Home)}
		user := &scripted{}
		o.Prompt = user.prompt
		dialHead(t, h.target("root"), o)
		if len(user.questions) > 0 {
			t.Errorf("asked %q", user.questions)
		}
	})
	t.Run("ssh-agent", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = nil
		o.AgentSocket = startAgent(t, wrongKey, rightKey)
		dialHead(t, h.target("root"), o)
	})
	t.Run("ssh-agent by SSH_AUTH_SOCK, for a public key", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Keys = []string{writeFile(t, filepath.Join(o.Home, "right.pub"), string(ssh.MarshalAuthorizedKey(right.PublicKey())), 0o600)}
		o.AgentSocket = ""
		t.Setenv("SSH_AUTH_SOCK", startAgent(t, wrongKey, rightKey))
		dialHead(t, h.target("root"), o)
		o.AgentSocket = "none"
		if _, err := Dial(t.Context(), h.target("root"), o); err == nil || !strings.Contains(err.Error(), "public key") {
			t.Error(err)
		}
	})
	t.Run("ssh-agent is gone", func(t *testing.T) {
		o := options(t, h, rightKey)
		o.AgentSocket = filepath.Join(t.TempDir(), "nobody")
		dialHead(t, h.target("root"), o)
	})
	t.Run("IdentitiesOnly", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.AgentSocket = startAgent(t, rightKey)
		o.Config = writeFile(t, filepath.Join(o.Home, "config"), "IdentitiesOnly yes\n", 0o600)
		var denied *AuthError
		if _, err := Dial(t.Context(), h.target("root"), o); !errors.As(err, &denied) || len(denied.Tried) != 1 {
			t.Error(err)
		}
	})
	t.Run("password", func(t *testing.T) {
		o := options(t, h, wrongKey)
		user := &scripted{answers: []string{"wrong", password}}
		o.Prompt = user.prompt
		c := dialHead(t, h.target("bob"), o)
		if out, err := c.Run(t.Context(), "id -un"); err != nil || string(out) != "bob\n" {
			t.Errorf("%q, %v", out, err)
		}
		if !strings.Contains(user.questions[0], "bob@127.0.0.1") || user.echoes[0] {
			t.Errorf("asked %q", user.questions)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Prompt = (&scripted{answers: []string{"a", "b", "c"}}).prompt
		_, err := Dial(t.Context(), h.target("bob"), o)
		var denied *AuthError
		if !errors.As(err, &denied) || !slices.Contains(denied.Tried, "a password") || strings.Contains(err.Error(), "correct") {
			t.Error(err)
		}
	})
	t.Run("the user breaks off", func(t *testing.T) {
		o := options(t, h, wrongKey)
		asked := 0
		o.Prompt = func(string, bool) (string, error) { asked++; return "", context.Canceled }
		if _, err := Dial(t.Context(), h.target("bob"), o); !errors.Is(err, context.Canceled) || asked != 1 {
			t.Errorf("asked %d times, then %v", asked, err)
		}
	})
	t.Run("BatchMode", func(t *testing.T) {
		o := options(t, h, wrongKey)
		o.Prompt = func(string, bool) (string, error) { t.Error("asked"); return "", errors.New("no") }
		o.Config = writeFile(t, filepath.Join(o.Home, "config"), "BatchMode yes\n", 0o600)
		if _, err := Dial(t.Context(), h.target("bob"), o); err == nil {
			t.Error("let in")
		}
	})
}

// startAgent runs an ssh-agent that holds the keys.
func startAgent(t *testing.T, keys ...ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "agent") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			agent.ServeAgent(ring, c)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return socket
}
