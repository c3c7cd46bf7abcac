package remote

import (
	"context"
	"errors"
	"fmt"
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
