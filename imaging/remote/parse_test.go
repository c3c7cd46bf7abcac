package remote

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"
)

func TestParseTarget(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Target
	}{
		{"head", Target{Host: "head"}},
		{"root@head", Target{User: "root", Host: "head"}},
		{"root@head:2222", Target{User: "root", Host: "head", Port: 2222}},
		{"a@b@head", Target{User: "a@b", Host: "head"}},
		{"10.0.0.1:22", Target{Host: "10.0.0.1", Port: 22}},
		{"fe80::1%eth0", Target{Host: "fe80::1%eth0"}},
		{"root@[2001:db8::1]:22", Target{User: "root", Host: "2001:db8::1", Port: 22}},
		{"[::1]", Target{Host: "::1"}},
	} {
		got, err := ParseTarget(c.in)
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("%q came back as %+v, %v", got, again, err)
		}
	}
	for _, in := range []string{"", "@head", "root@", ":22", "head:", "head:0", "head:65536", "head:x", "[::1", "[::1]22", "[::1]:", "-oProxyCommand=x", "-l@head",
		"he ad", "head/x", "a:b:c", "head\n", "ro\x00ot@head", "[head", "h[ea]d:1"} {
		if got, err := ParseTarget(in); err == nil {
			t.Errorf("%q is %+v", in, got)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"head", "root@head:22", "[::1]:22", "a@[fe80::1%25x]", "::", "@:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			return
		}
		again, err := ParseTarget(got.String())
		if err != nil || again != got {
			t.Errorf("%q is %+v, which writes as %q and is then %+v, %v", s, got, got.String(), again, err)
		}
	})
}

func resolved(t testing.TB, config, alias string) (*host, error) {
	home := t.TempDir()
	file := filepath.Join(home, "config")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return resolve(Target{Host: alias}, Options{Config: file, Home: home})
}

func TestResolve(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/run/agent")
	t.Setenv("WHERE", "there")
	h, err := resolved(t, `
# comment
Host web-?? *.example !web-99
  HostName %h.internal
  Port=2200
  User "the admin"
  IdentityFile ~/.ssh/%n_%r_%p # mine
  IdentityFile "/keys/${WHERE}/a b"
  IdentityFile none
  IdentitiesOnly yes
  ConnectTimeout 7
  UserKnownHostsFile ~/k1 "~/k 2"
  GlobalKnownHostsFile none
  StrictHostKeyChecking no
  NumberOfPasswordPrompts 1
  IdentityAgent $WHERE
Match user nobody
  Port 1
Match originalhost web-01,web-02 !user nobody
  HostKeyAlias web
Match localnetwork 10.0.0.0/8
  Port 2
Host *
  Port 22
  ProxyJump a@gate1:2022, [::1]:23,ssh://gate3/
`, "web-01")
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Dir(h.knownHosts[0])
	if h.name != "web-01.internal" || h.port != 2200 || h.user != "the admin" || h.timeout != 7*time.Second || !h.only || h.strict != "accept-new" ||
		h.keyAlias != "web" || h.passwordTries != 1 || h.agentSocket != "there" {
		t.Errorf("%+v", h)
	}
	if want := []string{home + "/.ssh/web-01_the admin_2200", "/keys/there/a b"}; !slices.Equal(h.identities, want) {
		t.Errorf("identities %q, want %q", h.identities, want)
	}
	if want := []string{home + "/k1", home + "/k 2"}; !slices.Equal(h.knownHosts, want) {
		t.Errorf("known hosts %q, want %q", h.knownHosts, want)
	}
	if want := []Target{{User: "a", Host: "gate1", Port: 2022}, {Host: "::1", Port: 23}, {Host: "gate3"}}; !slices.Equal(h.jump, want) {
		t.Errorf("jumps %v, want %v", h.jump, want)
	}
	other, err := resolved(t, "Host web-?? !web-99\nPort 1\n", "web-99")
	if err != nil || other.port != 22 || other.strict != "ask" || len(other.identities) != len(defaultIdentities) || other.agentSocket != "/run/agent" {
		t.Errorf("%+v, %v", other, err)
	}
}

func TestBadConfig(t *testing.T) {
	for config, want := range map[string]string{
		"Port x":                           "not a number",
		"ProxyJump a b c":                  "ProxyJump",
		"ProxyCommand nc %h %p":            "ProxyCommand",
		strings.Repeat("Port 1\n", 200000): "larger",
	} {
		if _, err := resolved(t, config, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v", config, err)
		}
	}
	home := t.TempDir()
	loop := writeFile(t, filepath.Join(home, "loop"), "Include "+filepath.Join(home, "loop")+"\n", 0o600)
	if _, err := resolve(Target{Host: "x"}, Options{Config: loop, Home: home}); err == nil || !strings.Contains(err.Error(), "levels") {
		t.Error(err)
	}
	if _, err := resolve(Target{Host: "x"}, Options{Config: filepath.Join(home, "missing"), Home: home}); err == nil {
		t.Error("a configuration that was named and is not there")
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("Host *\n Port 22\nMatch all\nUser x\n")
	f.Add("Match host a,b !user c exec \"x\"\nIdentityFile \"~/a b\" # c\n")
	f.Add("Port\nPort=\n=\n\"\"\nHost\nMatch\nInclude\nInclude ~/nothing*\nProxyJump ,\n")
	f.Add("IdentityFile ${A\nIdentityFile %%%h%\nIdentityAgent $\n")
	home := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToLower(text), "include") && strings.ContainsAny(text, "/*~") {
			return // it would read this machine's files
		}
		file := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := resolve(Target{Host: "head"}, Options{Config: file, Home: home})
		if err == nil && (h.name == "" || h.user == "") {
			t.Errorf("%+v", h)
		}
	})
}

// What is left of a known_hosts file, the library can read.
func FuzzKnownHosts(f *testing.F) {
	const key = " ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEuAhMfsw7jJQlhT6gXxOqXrhSbVPkNqTkdjVZDJDVnv"
	f.Add([]byte("head" + key + "\n"))
	f.Add([]byte("[head]:22,!x" + key + " comment\r\n@cert-authority *" + key + "\n@revoked *" + key))
	f.Add([]byte("|1|AAAA|AAAA|" + key + "\n|2|AAAA|AAAA" + key + "\n|1|AAAA|AAAA" + key + "\n!" + key + "\n[x" + key + "\n"))
	f.Add([]byte("head ssh-dss AAAAB3NzaC1kc3MAAAABAA==\n@x y z\n,," + key))
	f.Fuzz(func(t *testing.T, text []byte) {
		clean := cleanKnownHosts(text)
		if got, want := strings.Count(string(clean), "\n"), strings.Count(string(text)+"\n", "\n"); got > want {
			t.Errorf("%d lines of %d", got, want)
		}
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, clean, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := knownhosts.New(file); err != nil {
			t.Errorf("%q: %v", clean, err)
		}
	})
}

func FuzzAnswers(f *testing.F) {
	f.Add("hello\n" + marker + "Linux x86_64 0 " + strings.Repeat("a", 64) + "\n")
	f.Add(marker + "\n" + marker + marker)
	f.Fuzz(func(t *testing.T, out string) {
		a := &agentSource{out: bufio.NewReader(strings.NewReader(out))}
		for {
			answer, chatter, err := a.nextAnswer()
			if err != nil {
				return
			}
			if !strings.Contains(out, string(chatter)) {
				t.Errorf("%q is no part of %q", chatter, out)
			}
			if m, err := parseMachine(answer); err == nil && (m.system == "" || m.arch == "" || m.uid < 0 || len(m.installed)%64 != 0) {
				t.Errorf("%q is %+v", answer, m)
			}
		}
	})
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"": "''", "/tmp/a.b": "/tmp/a.b", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func FuzzDeliveryAnswers(f *testing.F) {
	f.Add([]byte("hello\nbash: " + marker + answerSend + "\n" + marker + answerReady + "\n"))
	f.Add([]byte(marker + answerUnfit + " 2 /tmp: No space left on device\n"))
	f.Add([]byte(marker + answerUnfit + " -9 \x1b[2J\n" + marker + answerNone))
	f.Fuzz(func(t *testing.T, out []byte) {
		d := &delivery{conn: &Conn{host: &host{alias: "head"}}}
		a := &agentSource{out: bufio.NewReader(bytes.NewReader(out))}
		for {
			answer, _, err := a.nextAnswer()
			if err != nil {
				return
			}
			if strings.Contains(answer, "\n") {
				t.Errorf("an answer of two lines: %q", answer)
			}
			if err = d.refused(answer); err == nil || strings.ContainsAny(err.Error(), "\x1b\x00") {
				t.Errorf("%q gives %v", answer, err)
			}
		}
	})
}
