package remote

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// installedAgent is where a package puts the agent.
const installedAgent = "/usr/lib/doppel/doppel-agent"

// marker opens the lines that are meant for us, so that what a login shell
// prints of its own does no harm.
const marker = "doppel-answer:"

// machine is what a head says of itself.
type machine struct {
	system    string // uname -s
	arch      string // uname -m
	uid       int
	installed string // SHA-256 of installedAgent in hexadecimal; empty: none
}

// script wraps lines for whatever shell the login has: inside single quotes no
// shell that is used as one (sh, csh, fish) sees anything to act on. The lines
// may hold neither single quotes nor exclamation marks (csh expands those even
// there).
func script(lines ...string) string {
	return "exec sh -c '" + strings.Join(lines, "; ") + "'"
}

// answers finds the marked lines.
func answers(out []byte) []string {
	var found []string
	for line := range strings.Lines(string(out)) {
		if _, answer, ok := strings.Cut(strings.TrimSpace(line), marker); ok {
			found = append(found, answer)
		}
	}
	return found
}

// probe asks the head what it is.
func (c *Conn) probe(ctx context.Context) (*machine, error) {
	out, err := c.run(ctx, script(
		`echo "`+marker+`$(uname -s) $(uname -m) $(id -u) $(sha256sum `+installedAgent+` 2>/dev/null | cut -c1-64)"`), nil)
	found := answers(out)
	if len(found) == 0 {
		var status *CommandError
		if err != nil && !errors.As(err, &status) {
			return nil, err
		}
		return nil, &remedied{
			fmt.Errorf("ask %s what it is: the login as %s runs no commands (a forced command, or no shell): it answered %q", c.host.alias, c.host.user, firstOf(out, err)),
			"log in as a user with a shell, or capture with --sftp, which carries less",
		}
	}
	return parseMachine(found[len(found)-1])
}

func firstOf(out []byte, err error) string {
	text := strings.TrimSpace(printable(string(out)))
	var status *CommandError
	if text == "" && errors.As(err, &status) {
		text = status.Stderr
	}
	if len(text) > 200 {
		text = text[:200]
	}
	return text
}

// parseMachine reads the answer to probe.
func parseMachine(answer string) (*machine, error) {
	words := strings.Fields(answer)
	if len(words) < 3 || len(words) > 4 {
		return nil, fmt.Errorf("the host's answer %q makes no sense", printable(answer))
	}
	uid, err := strconv.ParseUint(words[2], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the host's answer %q names no user", printable(answer))
	}
	m := &machine{system: words[0], arch: words[1], uid: int(uid)}
	if len(words) == 4 && len(words[3]) == 64 {
		m.installed = words[3]
	}
	return m, nil
}

// suits tells whether there is an agent for the machine.
func (m *machine) suits(host string) error {
	if m.system != "Linux" {
		return fmt.Errorf("%s runs %s, and doppel captures Linux", host, printable(m.system))
	}
	if m.arch != "x86_64" {
		return &remedied{
			fmt.Errorf("%s is %s, and there is a doppel-agent for x86_64 only", host, printable(m.arch)),
			"capture it with --sftp, which carries less",
		}
	}
	return nil
}

// places are where the agent may go, best first: what is emptied at boot, then
// what is not.
var places = [...]string{"/tmp", "/var/tmp", "/dev/shm", "$HOME"}

// leftover is how old, in minutes, a directory of a capture that was cut off
// must be for the next one to remove it.
const leftover = 120

// makeDir makes a private directory called name in the first of the places
// where programs may be run, and gives its path; empty when there is none. On
// the way it removes what captures that lost their connection left behind.
func (c *Conn) makeDir(ctx context.Context, from int, name string) (dir string, next int, err error) {
	var quoted []string
	for _, p := range places[from:] {
		quoted = append(quoted, `"`+p+`"`)
	}
	out, err := c.run(ctx, script(
		`umask 077`,
		`n=`+strconv.Itoa(from),
		`for p in `+strings.Join(quoted, " ")+`; do n=$((n+1))`,
		`find "$p" -maxdepth 1 -type d -name "`+dirPrefix+`*" -user "$(id -u)" -mmin +`+strconv.Itoa(leftover)+` -exec rm -rf {} + 2>/dev/null`,
		`d="$p/`+name+`"`,
		`mkdir -m 700 "$d" 2>/dev/null || continue`,
		// noexec shows with any program: ask with one that costs nothing.
		`{ printf "#%s/bin/sh\nexit 0\n" "$(printf "\041")" >"$d/try" && chmod 700 "$d/try" && "$d/try"; } 2>/dev/null && rm "$d/try" && { echo "`+marker+`$n $d"; exit 0; }`,
		`rm -rf "$d"`,
		`done`,
		`echo "`+marker+`0"`), nil)
	if err != nil {
		return "", 0, fmt.Errorf("make a temporary directory: %w", err)
	}
	found := answers(out)
	if len(found) == 0 {
		return "", 0, fmt.Errorf("make a temporary directory on %s: no answer", c.host.alias)
	}
	number, dir, _ := strings.Cut(found[len(found)-1], " ")
	next, err = strconv.Atoi(number)
	if err != nil || next < 0 || next > len(places) || dir != "" && (!path.IsAbs(dir) || path.Base(dir) != name) {
		return "", 0, fmt.Errorf("make a temporary directory on %s: the answer %q makes no sense", c.host.alias, printable(found[len(found)-1]))
	}
	return dir, next, nil
}
