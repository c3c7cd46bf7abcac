package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestHostKey(t *testing.T) {
	signer, key := newKey(t)
	other, _ := newKey(t)
	h := startHead(t, headSpec{config: []string{"HostKey /etc/ssh/ssh_host_rsa_key"}, mounts: []string{
		"mount -t tmpfs none /etc/ssh", `ssh-keygen -q -t rsa -b 2048 -N "" -f /etc/ssh/ssh_host_rsa_key`}}, signer.PublicKey())
	print := ssh.FingerprintSHA256(h.key.PublicKey())
	unknown := func(t *testing.T) Options {
		o := options(t, h, key)
		o.KnownHosts = filepath.Join(o.Home, "new", "known_hosts")
		return o
	}
	t.Run("unknown, nobody to ask", func(t *testing.T) {
		o := unknown(t)
		_, err := Dial(t.Context(), h.target("root"), o)
		var e *HostKeyError
		if !errors.As(err, &e) || e.Reason != HostKeyUnknown || !strings.HasPrefix(e.Fingerprint, "SHA256:") || !strings.Contains(e.Hint(), "--accept-new") {
			t.Fatal(err)
		}
		if _, err := os.Stat(o.KnownHosts); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("known_hosts was made: %v", err)
		}
	})
	t.Run("accept-new", func(t *testing.T) {
		o := unknown(t)
		o.AcceptNew = true
		first := dialHead(t, h.target("root"), o)
		st, err := os.Stat(o.KnownHosts)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", st, err)
		}
		text, _ := os.ReadFile(o.KnownHosts)
		o.AcceptNew = false
		second := dialHead(t, h.target("root"), o)
		if again, _ := os.ReadFile(o.KnownHosts); string(again) != string(text) || first.Fingerprint() != second.Fingerprint() {
			t.Errorf("known_hosts was %q, is %q", text, again)
		}
	})
	t.Run("asked, yes", func(t *testing.T) {
		o := unknown(t)
		writeFile(t, o.KnownHosts, "other.example ssh-ed25519 AAAA no newline", 0o600)
		user := &scripted{answers: []string{"maybe", "yes"}}
		o.Prompt = user.prompt
		c := dialHead(t, h.target("root"), o)
		if !strings.Contains(user.questions[0], c.Fingerprint()) || !user.echoes[0] {
			t.Errorf("asked %q", user.questions)
		}
		text, _ := os.ReadFile(o.KnownHosts)
		if lines := strings.Split(string(text), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[1], fmt.Sprintf("[127.0.0.1]:%d ", h.port)) {
			t.Errorf("known_hosts is %q", text)
		}
	})
	t.Run("asked, no", func(t *testing.T) {
		o := unknown(t)
		o.Prompt = (&scripted{answers: []string{"no"}}).prompt
		_, err := Dial(t.Context(), h.target("root"), o)
		var e *HostKeyError
		if !errors.As(err, &e) || e.Reason != HostKeyUnknown {
			t.Fatal(err)
		}
		o.Prompt = (&scripted{answers: []string{e.Fingerprint}}).prompt
		dialHead(t, h.target("root"), o)
	})
	t.Run("changed", func(t *testing.T) {
		o := options(t, h, key)
		o.AcceptNew = true
		writeFile(t, o.KnownHosts, fmt.Sprintf("# one\n\n[127.0.0.1]:%d %s", h.port, ssh.MarshalAuthorizedKey(other.PublicKey())), 0o600)
		_, err := Dial(t.Context(), h.target("root"), o)
		var e *HostKeyError
		if !errors.As(err, &e) || e.Reason != HostKeyChanged || e.Fingerprint != print {
			t.Fatal(err)
		}
		if !strings.Contains(err.Error(), o.KnownHosts+":3 ") || !strings.Contains(e.Hint(), fmt.Sprintf("ssh-keygen -f %s -R '[127.0.0.1]:%d'", o.KnownHosts, h.port)) {
			t.Errorf("%v; %s", err, e.Hint())
		}
	})
	t.Run("hashed, beside lines that make no sense", func(t *testing.T) {
		o := options(t, h, key)
		writeFile(t, o.KnownHosts, "nonsense\nx ssh-dss AAAAB3NzaC1kc3MAAAABAA==\n@marker x y z\n"+
			knownhosts.HashHostname(fmt.Sprintf("[127.0.0.1]:%d", h.port))+" "+string(ssh.MarshalAuthorizedKey(h.key.PublicKey()))+
			strings.Repeat("x", 100_000)+"\n", 0o600)
		dialHead(t, h.target("root"), o)
	})
	t.Run("the key known is asked for", func(t *testing.T) {
		// sshd has two keys: with either one known, it is shown that one.
		public, err := os.ReadFile(h.inside("/etc/ssh/ssh_host_rsa_key.pub"))
		if err != nil {
			t.Fatal(err)
		}
		o := options(t, h, key)
		writeFile(t, o.KnownHosts, fmt.Sprintf("[127.0.0.1]:%d %s", h.port, public), 0o600)
		dialHead(t, h.target("root"), o)
		dialHead(t, h.target("root"), options(t, h, key))
	})
	t.Run("HashKnownHosts and HostKeyAlias", func(t *testing.T) {
		o := unknown(t)
		o.Config = writeFile(t, filepath.Join(o.Home, "config"), "HashKnownHosts yes\nHostKeyAlias the-head\nStrictHostKeyChecking accept-new\n", 0o600)
		dialHead(t, h.target("root"), o)
		text, _ := os.ReadFile(o.KnownHosts)
		if !strings.HasPrefix(string(text), "|1|") {
			t.Errorf("known_hosts is %q", text)
		}
		o.Config = writeFile(t, filepath.Join(o.Home, "config"), "HostKeyAlias the-head\nStrictHostKeyChecking yes\n", 0o600)
		dialHead(t, h.target("root"), o)
		o.Config = writeFile(t, filepath.Join(o.Home, "config"), "StrictHostKeyChecking yes\n", 0o600)
		o.Prompt = func(string, bool) (string, error) { t.Error("asked"); return "yes", nil }
		var e *HostKeyError
		if _, err := Dial(t.Context(), h.target("root"), o); !errors.As(err, &e) || e.Reason != HostKeyUnknown {
			t.Error(err)
		}
	})
	t.Run("known_hosts cannot be written", func(t *testing.T) {
		o := unknown(t)
		o.AcceptNew = true
		o.KnownHosts = "/proc/nowhere/known_hosts"
		if _, err := Dial(t.Context(), h.target("root"), o); err == nil || !strings.Contains(err.Error(), o.KnownHosts) {
			t.Error(err)
		}
	})
}

func TestRevokedHostKey(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	o := options(t, h, key)
	writeFile(t, o.KnownHosts, "\n@revoked * "+string(ssh.MarshalAuthorizedKey(h.key.PublicKey())), 0o600)
	o.AcceptNew = true
	_, err := Dial(t.Context(), h.target("root"), o)
	var e *HostKeyError
	if !errors.As(err, &e) || e.Reason != HostKeyRevoked || !strings.Contains(err.Error(), o.KnownHosts+":2") {
		t.Error(err)
	}
}

func TestHostCertificate(t *testing.T) {
	authority, _ := newKey(t)
	hostKey, _ := newKey(t)
	cert := &ssh.Certificate{Key: hostKey.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(zeroes{}, authority); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, hostKey)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(certified)
	target := listen(t, func(raw net.Conn) {
		if c, chans, reqs, err := ssh.NewServerConn(raw, config); err == nil {
			waitPeer(c, chans, reqs)
		}
	})
	o := bare(t)
	o.AcceptNew = false
	writeFile(t, o.KnownHosts, fmt.Sprintf("@cert-authority [127.0.0.1]:%d %s", target.Port, ssh.MarshalAuthorizedKey(authority.PublicKey())), 0o600)
	dialHead(t, target, o)
	// An authority that is not known makes the key in the certificate one
	// that is not known.
	stranger, _ := newKey(t)
	writeFile(t, o.KnownHosts, "@cert-authority * "+string(ssh.MarshalAuthorizedKey(stranger.PublicKey())), 0o600)
	var e *HostKeyError
	if _, err := Dial(t.Context(), target, o); !errors.As(err, &e) {
		t.Error(err)
	}
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestSSHConfig(t *testing.T) {
	signer, key := newKey(t)
	inner := startHead(t, headSpec{}, signer.PublicKey())
	outer := startHead(t, headSpec{}, signer.PublicKey())
	o := options(t, inner, key)
	known := writeFile(t, filepath.Join(o.Home, "both"), fmt.Sprintf("[127.0.0.1]:%d %s[127.0.0.1]:%d %s",
		inner.port, ssh.MarshalAuthorizedKey(inner.key.PublicKey()), outer.port, ssh.MarshalAuthorizedKey(outer.key.PublicKey())), 0o600)
	writeKey(t, filepath.Join(o.Home, "keys", "by-config"), key, "")
	writeFile(t, filepath.Join(o.Home, ".ssh", "conf.d", "gate.conf"), fmt.Sprintf(`
Host gate
    HostName 127.0.0.1
    Port = %d
    User root
`, outer.port), 0o600)
	writeFile(t, filepath.Join(o.Home, ".ssh", "config"), fmt.Sprintf(`
Include conf.d/*.conf
UserKnownHostsFile "%s"
Match exec "true"
    User nobody
Match final all
Host inner !outer
    HostName 127.0.0.1
    Port %d
    ProxyJump gate
Host direct
    HostName 127.0.0.1
    Port %d
Host loop
    ProxyJump loop
Host command
    ProxyCommand nc %%h %%p
Host *
    User root # who else
    IdentityFile ~/keys/by-config
    ConnectTimeout 12
`, known, inner.port, inner.port), 0o600)
	o.Config, o.KnownHosts, o.Keys = "", "", nil

	if c := dialHead(t, Target{Host: "direct"}, o); c.via != nil || c.User() != "root" || c.Host() != "direct" {
		t.Errorf("%+v", c.host)
	}
	c := dialHead(t, Target{Host: "inner"}, o)
	if c.via == nil || c.via.Host() != "gate" {
		t.Fatal("it did not go by way of the jump host")
	}
	sink := newTreeSink()
	inner.fill(1, 3_000_000)
	if err := scan(t, c, AgentOptions{}, sink); err != nil || len(sink.entries) != 3 {
		t.Errorf("%d entries, %v", len(sink.entries), err)
	}
	inner.mustBeClean()
	if err := c.Close(); err != nil || c.via.Err() == nil {
		t.Errorf("Close: %v; the jump host's connection: %v", err, c.via.Err())
	}
	if _, err := Dial(t.Context(), Target{Host: "loop"}, o); err == nil || !strings.Contains(err.Error(), "names itself") && !strings.Contains(err.Error(), "name itself") {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), Target{Host: "command"}, o); err == nil || !strings.Contains(err.Error(), "ProxyCommand") {
		t.Error(err)
	}
	// The jump host's own troubles are told as its own.
	outer.cmd.Process.Kill()
	for _, pid := range outer.sessions() {
		outer.waitGone(pid)
	}
	var e *DialError
	if _, err := Dial(context.WithoutCancel(t.Context()), Target{Host: "inner"}, o); !errors.As(err, &e) || e.Host != "gate" || !strings.Contains(err.Error(), "jump host") {
		t.Error(err)
	}
}
