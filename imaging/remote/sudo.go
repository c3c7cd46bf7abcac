package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// sudo is how a login becomes root: what stands in front of a command line,
// and the password that sudo reads first, if it wants one.
type sudo struct{ prefix, password string }

// become finds out how to become root; test is a command line that does
// nothing.
func (d *delivery) become(ctx context.Context, test string) (sudo, error) {
	if d.root {
		return sudo{}, nil
	}
	free := "sudo -n -- "
	_, err := d.conn.run(ctx, script("LC_ALL=C "+free+test), nil)
	var status *CommandError
	switch {
	case err == nil:
		return sudo{prefix: free}, nil
	case !errors.As(err, &status):
		return sudo{}, err
	case !strings.Contains(status.Stderr, "password"):
		return sudo{}, d.noSudo(status)
	case d.options.Prompt == nil:
		return sudo{}, &remedied{
			fmt.Errorf("%w: sudo on %s wants %s's password, and nobody is there to be asked", ErrNotRoot, d.conn.host.alias, d.conn.host.user),
			"run doppel on a terminal, log in as root, or allow it in sudoers without a password (NOPASSWD)",
		}
	}
	// -k: sudo must want the password whether or not it remembers one, else
	// the line would go to the agent.
	asking := `sudo -k -S -p "" -- `
	password, err := d.askPassword(ctx, script(asking+test))
	return sudo{prefix: asking, password: password}, err
}

// askPassword asks until sudo takes the password.
func (d *delivery) askPassword(ctx context.Context, check string) (string, error) {
	question := fmt.Sprintf("[sudo] password of %s@%s: ", d.conn.host.user, d.conn.host.alias)
	for range 3 {
		password, err := d.options.Prompt(question, false)
		if err != nil {
			return "", fmt.Errorf("ask for sudo's password: %w", err)
		}
		if strings.ContainsAny(password, "\n\x00") {
			return "", errors.New("a password for sudo is one line")
		}
		_, err = d.conn.run(ctx, check, strings.NewReader(password+"\n"))
		var status *CommandError
		switch {
		case err == nil:
			return password, nil
		case !errors.As(err, &status):
			return "", err
		}
		if strings.Contains(status.Stderr, "sudoers") || strings.Contains(status.Stderr, "not allowed") {
			return "", d.noSudo(status)
		}
		question = fmt.Sprintf("Sorry, sudo did not take that. [sudo] password of %s@%s: ", d.conn.host.user, d.conn.host.alias)
	}
	return "", fmt.Errorf("sudo on %s did not take the password of %s", d.conn.host.alias, d.conn.host.user)
}

func (d *delivery) noSudo(why *CommandError) error {
	said := why.Stderr
	if said == "" {
		said = why.Error()
	}
	return &remedied{
		fmt.Errorf("%w: sudo on %s does not run the agent for %s: %s", ErrNotRoot, d.conn.host.alias, d.conn.host.user, said),
		fmt.Sprintf("log in as root@%s, or let %s run it in sudoers", d.conn.host.alias, d.conn.host.user),
	}
}
