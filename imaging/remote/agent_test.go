package remote

import (
	"testing"
)

func TestAgentCaptures(t *testing.T) {
	signer, key := newKey(t)
	for name, spec := range map[string]headSpec{
		"usual":              {},
		"one session":        {config: []string{"MaxSessions 1"}},
		"no SFTP":            {noSFTP: true},
		"noexec /tmp":        {mounts: []string{"mount -o remount,noexec /tmp", "mount -o remount,noexec /var/tmp"}},
		"chatty login shell": {mounts: []string{`printf "echo Welcome to head; echo doppel: hello >&2\n" >/srv/rc`, "export ENV=/srv/rc"}},
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
