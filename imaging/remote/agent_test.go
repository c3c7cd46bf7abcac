package remote

import (
	"testing"
)

// loginShell makes a program root's login shell.
func loginShell(shell string) string {
	return `sed "s,^root:.*,root:x:0:0::/root:` + shell + `," /srv/passwd >/srv/passwd.new; cat /srv/passwd.new >/srv/passwd`
}

// gzipIs puts a script in the place of gzip.
func gzipIs(script string) string {
	return `printf "#!/bin/sh\n` + script + `\n" >/srv/gzip; chmod 755 /srv/gzip; mount --bind /srv/gzip /usr/bin/gzip`
}

func TestAgentCaptures(t *testing.T) {
	signer, key := newKey(t)
	for name, spec := range map[string]headSpec{
		"usual":              {},
		"one session":        {config: []string{"MaxSessions 1"}},
		"no SFTP":            {noSFTP: true},
		"noexec /tmp":        {mounts: []string{"mount -o remount,noexec /tmp", "mount -o remount,noexec /var/tmp"}},
		"chatty login shell": {mounts: []string{`printf "echo Welcome to head; echo doppel: hello >&2\n" >/srv/rc`, "export ENV=/srv/rc"}},
		"chatty bashrc": {mounts: []string{loginShell("/bin/bash"), "mount -t tmpfs none /root",
			// It swallows what comes before it is done, and leaves its last line open.
			`printf "read -t 0.2 swallowed; echo Welcome; echo careful >&2; printf unfinished" >/root/.bashrc`}},
		"banner":         {config: []string{"Banner /srv/sshd_config"}},
		"csh":            {mounts: []string{loginShell("/bin/tcsh")}},
		"fish":           {mounts: []string{loginShell("/usr/bin/fish"), "mount -t tmpfs none /root"}},
		"busybox":        {mounts: []string{"for f in dash head wc mkdir rm chmod find id cut uname sha256sum; do mount --bind /usr/bin/busybox /usr/bin/$f; done"}},
		"no head -c":     {mounts: []string{loginShell("/bin/sh"), `printf "#!/bin/sh\nexit 1\n" >/srv/head; chmod 755 /srv/head; mount --bind /srv/head /usr/bin/head`}},
		"no gzip":        {mounts: []string{gzipIs("exit 127")}},
		"odd gzip":       {mounts: []string{gzipIs("echo gzip: ok; cat")}},
		"busybox gzip":   {mounts: []string{"mount --bind /usr/bin/busybox /usr/bin/gzip"}},
		"one at a time":  {config: []string{"MaxStartups 1"}},
		"no pty, no rsh": {config: []string{"PermitTTY no", "AllowTcpForwarding no", "PermitUserRC no"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHead(t, spec, signer.PublicKey())
			h.fill(4, 100_000)
			c := dialHead(t, h.target("root"), options(t, h, key))
			sink := newTreeSink()
			if err := scan(t, c, AgentOptions{}, sink); err != nil {
				t.Fatal(err)
			}
			if len(sink.entries) != 8 {
				t.Errorf("%d entries", len(sink.entries))
			}
			h.mustBeClean()
		})
	}
}
