package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// installedAgent is where a package puts the agent.
const installedAgent = "/usr/lib/doppel/doppel-agent"

// taking is how a machine answers to which the agent is brought at once: root's
// login, and none installed.
const taking = "Linux x86_64 0"

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

// surveyed is how long a login's shell has to say what the head is.
const surveyed = time.Minute

// survey asks the head what it is. The shell that answers is courier's where
// the machine takes it.
func (d *delivery) survey(ctx context.Context) (*agentSource, *machine, error) {
	a, err := d.start(ctx, d.courier(0, "",
		`m="$(uname -sm) $u"`, `i=`,
		`if test -f `+installedAgent+`; then i=$(sha256sum `+installedAgent+` 2>/dev/null | cut -c1-64); fi`,
		`echo "`+marker+`$m $i"`,
		`test "$m$i" = "`+taking+`" || exit 0`))
	if errors.Is(err, errRefuses) {
		return nil, nil, d.runsNothing(err.Error())
	}
	if err != nil {
		return nil, nil, err
	}
	host := d.conn.host.alias
	limited, cancel := context.WithTimeoutCause(ctx, surveyed, fmt.Errorf("%s did not say within %v what it is", host, surveyed))
	defer cancel()
	unhook := context.AfterFunc(limited, a.giveUp)
	answer, chatter, err := a.nextAnswer()
	unhook()
	var m *machine
	switch {
	case limited.Err() != nil:
		err = context.Cause(limited)
	case err != nil:
		err = d.mute(a, chatter)
	default:
		m, err = parseMachine(answer)
	}
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, m, nil
}

// mute is the error of a login that runs nothing.
func (d *delivery) mute(a *agentSource, chatter []byte) error {
	a.giveUp()
	if d.conn.waitEnd(grace / 10) {
		return d.conn.lost("asking what it is")
	}
	said := strings.TrimSpace(printable(string(chatter)))
	if said == "" {
		a.reading.Wait()
		said = a.stderr.String()
	}
	return d.runsNothing(said)
}

func (d *delivery) runsNothing(said string) error {
	return &remedied{
		fmt.Errorf("ask %s what it is: the login as %s runs no commands (a forced command, or no shell): it answered %q", d.conn.host.alias, d.conn.host.user, cutText(said, 200)),
		"log in as a user with a shell, or capture with --sftp, which carries less",
	}
}

// parseMachine reads the answer to survey.
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

// takes tells whether the shell that answered goes on.
func (m *machine) takes() bool {
	return fmt.Sprintf("%s %s %d%s", m.system, m.arch, m.uid, m.installed) == taking
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
