package remote

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"doppel/imaging"
)

// newRSA makes an RSA key and writes it to a file.
func newRSA(t testing.TB, name string) ssh.Signer {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name, string(pem.EncodeToMemory(block)), 0o600)
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Hosts that know old algorithms alone are captured, and the user hears which.
func TestOldHosts(t *testing.T) {
	key := t.TempDir() + "/id_rsa"
	signer := newRSA(t, key)
	for name, c := range map[string]struct {
		config, weak []string
		rsa          bool
	}{
		"new":          {},
		"new with RSA": {rsa: true},
		"CentOS 6": {
			config: []string{"KexAlgorithms diffie-hellman-group14-sha1", "Ciphers aes128-cbc", "MACs hmac-sha1", "HostKeyAlgorithms ssh-rsa", "PubkeyAcceptedAlgorithms ssh-rsa"},
			weak:   []string{"diffie-hellman-group14-sha1", "ssh-rsa", "aes128-cbc", "ssh-rsa for the login's key"},
			rsa:    true,
		},
		"appliance": {
			config: []string{"KexAlgorithms diffie-hellman-group1-sha1", "Ciphers 3des-cbc", "MACs hmac-sha1-96", "HostKeyAlgorithms ssh-rsa", "PubkeyAcceptedAlgorithms ssh-rsa"},
			weak:   []string{"diffie-hellman-group1-sha1", "ssh-rsa", "3des-cbc", "hmac-sha1-96", "ssh-rsa for the login's key"},
			rsa:    true,
		},
		"old beside new": { // what is good is preferred
			config: []string{"KexAlgorithms diffie-hellman-group1-sha1,curve25519-sha256", "Ciphers 3des-cbc,aes128-ctr", "MACs hmac-sha1-96,hmac-sha2-256", "HostKeyAlgorithms ssh-rsa,rsa-sha2-256", "PubkeyAcceptedAlgorithms ssh-rsa,rsa-sha2-256"},
			rsa:    true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHead(t, headSpec{config: c.config, rsa: c.rsa}, signer.PublicKey())
			h.fill(3, 300_000)
			_, other := newKey(t)
			o := options(t, h, other)
			o.Keys = []string{key}
			var log bytes.Buffer
			o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			sink := newTreeSink()
			if err := scan(t, dialHead(t, h.target("root"), o), AgentOptions{}, sink); err != nil {
				t.Fatal(err)
			}
			if len(sink.entries) != 7 {
				t.Errorf("%d entries", len(sink.entries))
			}
			want := `algorithms="` + strings.Join(c.weak, ", ") + `"`
			if said := log.String(); len(c.weak) == 0 && said != "" || len(c.weak) > 0 && (!strings.Contains(said, want) || strings.Count(said, "\n") != 1) {
				t.Errorf("it warns %q, want %s", said, want)
			}
		})
	}
}

// On a host that confines its logins to SFTP the agent cannot run: that is
// said, with the way out, which works.
func TestChroot(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{config: []string{"ChrootDirectory /mnt", "ForceCommand internal-sftp", "MaxSessions 1"}}, signer.PublicKey())
	furnish(t, h.tree)
	conn := dialHead(t, h.target("root"), options(t, h, key))
	_, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
	mustHint(t, err, "runs no commands", "--sftp")
	src, err := SFTP(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	facts, _, err := src.Describe(t.Context(), "/")
	if err != nil || facts.Hostname != "head01" || facts.Cmdline != "" {
		t.Errorf("%+v, %v", facts, err)
	}
	sink := newTreeSink()
	if err := src.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, sink); err != nil {
		t.Fatal(err)
	}
	if e := sink.entries["etc/hostname"]; e.Size != 7 || len(e.Chunks) != 1 {
		t.Errorf("%+v", e)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
}

func mustHint(t *testing.T, err error, says, hint string) {
	t.Helper()
	var h interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), says) || !errors.As(err, &h) || !strings.Contains(h.Hint(), hint) {
		t.Errorf("%v", err)
	}
}

// Where a login has no shell that runs commands, the error repeats what the
// host says instead.
func TestNoShell(t *testing.T) {
	signer, key := newKey(t)
	for name, c := range map[string]struct {
		spec headSpec
		says string
	}{
		"nologin":       {headSpec{mounts: []string{loginShell("/usr/sbin/nologin")}}, "not available"},
		"rbash":         {headSpec{mounts: []string{loginShell("/bin/rbash"), "mount -t tmpfs none /root"}}, "restricted"},
		"menu":          {headSpec{config: []string{`ForceCommand echo "1 status 2 reboot"; exit 0`}}, "1 status 2 reboot"},
		"false":         {headSpec{mounts: []string{loginShell("/bin/false")}}, "runs no commands"},
		"no sessions":   {headSpec{config: []string{"MaxSessions 0"}}, "MaxSessions"},
		"broken bashrc": {headSpec{mounts: []string{loginShell("/bin/bash"), "mount -t tmpfs none /root", "echo exit 3 >/root/.bashrc"}}, "runs no commands"},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHead(t, c.spec, signer.PublicKey())
			_, err := Agent(t.Context(), dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{Path: agentBinary})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want …%s…", err, c.says)
			}
			if name != "no sessions" {
				mustHint(t, err, c.says, "--sftp")
			}
			h.mustBeClean()
		})
	}
}
