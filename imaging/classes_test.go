package imaging

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	for path, want := range map[string]Class{
		"etc/ssh/ssh_host_ed25519_key":                      ClassNode,
		"etc/ssh/ssh_host_ed25519_key.pub":                  ClassNone,
		"etc/machine-id":                                    ClassNode,
		"var/lib/dbus/machine-id":                           ClassNode,
		"var/lib/systemd/random-seed":                       ClassNode,
		"etc/iscsi/initiatorname.iscsi":                     ClassNode,
		"var/lib/NetworkManager/secret_key":                 ClassNode,
		"var/lib/dhcp/dhclient.eth0.leases":                 ClassNode,
		"etc/munge/munge.key":                               ClassCluster,
		"etc/slurm/slurm.key":                               ClassCluster,
		"etc/shadow":                                        ClassCluster,
		"etc/gshadow-":                                      ClassCluster,
		"etc/slurm/jwt_hs256.key":                           ClassHead,
		"etc/slurm/slurmdbd.conf":                           ClassHead,
		"etc/ssl/private/ssl-cert-snakeoil.key":             ClassHead,
		"etc/ssl/private/sub/x":                             ClassHead,
		"etc/pki/tls/private/localhost.key":                 ClassHead,
		"etc/letsencrypt/archive/head.example/privkey1.pem": ClassHead,
		"etc/letsencrypt/archive/head.example/cert1.pem":    ClassNone,
		"etc/krb5.keytab":                                   ClassHead,
		"etc/httpd/conf/http.keytab":                        ClassHead,
		"etc/ldap.secret":                                   ClassHead,
		"etc/mysql/debian.cnf":                              ClassHead,
		"root/.ssh/id_rsa":                                  ClassHead,
		"root/.ssh/id_rsa.pub":                              ClassNone,
		"root/.ssh/authorized_keys":                         ClassNone,
		"home/u/.ssh/id_ed25519":                            ClassHead,
		"etc/corosync/authkey":                              ClassHead,
		"etc/ssl/certs/ca-certificates.crt":                 ClassNone,
		"usr/bin/ssh":                                       ClassNone,
		"srv/chroot/etc/shadow":                             ClassNone,
	} {
		if got, _ := Classify(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if _, known := Classify("usr/share/doc/x/key.pem"); !known {
		t.Error("keys of documentation are to be known")
	}
	if _, known := Classify("opt/app/server.pem"); known {
		t.Error("no rule knows opt/app/server.pem")
	}
}

// TestSecretRules: each rule is a pattern that is found for a file it stands for,
// and not overruled there by one of another class.
func TestSecretRules(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range secretRules {
		g, err := parseGlob(r.pattern)
		if err != nil {
			t.Error(err)
			continue
		}
		if g[0] != "**" && strings.ContainsAny(g[0], "*?[") {
			t.Errorf("%q does not begin with a directory", r.pattern)
		}
		if seen[r.pattern] {
			t.Errorf("%q is there twice", r.pattern)
		}
		seen[r.pattern] = true
		if class, known := Classify(samplePath(r.pattern)); !known || class != r.class {
			t.Errorf("%q, which %q stands for, is of class %v (%v), want %v", samplePath(r.pattern), r.pattern, class, known, r.class)
		}
	}
}

const base64Lines = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACB0Z3N0\n"

func TestDetectSecret(t *testing.T) {
	cert := "-----BEGIN CERTIFICATE-----\n" + base64Lines + "-----END CERTIFICATE-----\n"
	for name, c := range map[string]struct {
		head string
		want bool
	}{
		"pkcs8":           {"-----BEGIN PRIVATE KEY-----\n" + base64Lines, true},
		"rsa":             {"-----BEGIN RSA PRIVATE KEY-----\r\n" + base64Lines, true},
		"rsa encrypted":   {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES", true},
		"pkcs8 encrypted": {"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + base64Lines, true},
		"openssh":         {"-----BEGIN OPENSSH PRIVATE KEY-----\n" + base64Lines, true},
		"pgp":             {"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + base64Lines, true},
		"behind a cert":   {cert + "-----BEGIN EC PRIVATE KEY-----\n" + base64Lines, true},
		"yaml":            {"ssh_keys:\n  rsa_private: |\n    -----BEGIN RSA PRIVATE KEY-----\n    " + base64Lines, true},
		"json":            {`{"private_key": "-----BEGIN PRIVATE KEY-----\n` + strings.ReplaceAll(base64Lines, "\n", `\n`) + `"}`, true},
		"json behind":     {`{"x": "-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n` + base64Lines, true},
		"shell":           {"KEY='-----BEGIN PRIVATE KEY-----\n" + base64Lines + "'", true},
		"age":             {"# created: 2026\n# public key: age1x\nAGE-SECRET-KEY-1" + strings.Repeat("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 2)[:58] + "\n", true},
		"putty":           {"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", true},
		"public":          {"-----BEGIN PUBLIC KEY-----\n" + base64Lines, false},
		"certificate":     {cert, false},
		"program":         {"\x7fELF\x00-----BEGIN OPENSSH PRIVATE KEY-----\n\x00-----END OPENSSH PRIVATE KEY-----\n\x00", false},
		"prose":           {"A key begins with\n-----BEGIN RSA PRIVATE KEY-----\n and ends with\n", false},
		"placeholder":     {"-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n", false},
		"age program":     {"AGE-SECRET-KEY-1\x00AGE-SECRET-KEY-", false},
		"empty":           {"", false},
		"cut":             {"-----BEGIN ", false},
		"cut later":       {"-----BEGIN PRIVATE KEY-----", false},
	} {
		if got := DetectSecret([]byte(c.head)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzDetectSecret(f *testing.F) {
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\n" + base64Lines))
	f.Add([]byte("\\n-----BEGIN -----BEGIN PRIVATE KEY-----\\n"))
	f.Add([]byte("AGE-SECRET-KEY-PQ-1QQ"))
	files, err := filepath.Glob("testdata/secrets/*")
	must(f, err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Chunker
		c.Reset(bytes.NewReader(b))
		if found := DetectSecret(b); len(b) < chunkerBuffer && c.Secret() != found {
			t.Errorf("read piece by piece: %v", !found)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"a", "a", true}, {"a", "b/a", false}, {"/a", "a", true}, {"a/", "a", true},
		{"a/*", "a/b", true}, {"a/*", "a/b/c", false}, {"a/*", "a", false},
		{"**/*.log", "x.log", true}, {"**/*.log", "a/b/x.log", true},
		{"a/**", "a/b/c", true}, {"a/**", "a", true}, {"a/**/z", "a/z", true}, {"a/**/z", "a/b/c/z", true}, {"a/**/z", "a/b", false},
		{"**", "a/b", true}, {"a/[bc]?", "a/bx", true}, {"a/[bc]?", "a/dx", false},
		{`a\*`, "a*", true}, {`a\*`, "ab", false},
		{"a/b/**/c/**", "a/b/c", true},
	} {
		g, err := parseGlob(c.pattern)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := g.match(c.path); got != c.want {
			t.Errorf("%q and %q: %v", c.pattern, c.path, got)
		}
	}
	for _, bad := range []string{"", "/", "a//b", "../a", "a/./b", "a/["} {
		if _, err := parseGlob(bad); err == nil {
			t.Errorf("%q is taken for a pattern", bad)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("a/**/b", "a/x/b")
	f.Add(`\[*?`, "[x")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if g, err := parseGlob(pattern); err == nil && len(pattern) < 100 && len(path) < 100 {
			g.match(path)
		}
		if checkPath(path) == nil && path != "." {
			g, err := parseGlob(quoteGlob(path))
			if err != nil || !g.match(path) {
				t.Errorf("quoted, %q does not stand for itself: %v", path, err)
			}
		}
	})
}
