package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// login is one attempt to get in: it collects what was tried, for the error.
type login struct {
	host   *host
	prompt func(question string, echo bool) (string, error) // nil: nobody to ask
	log    *slog.Logger

	agent   net.Conn // to the user's ssh-agent
	signers []ssh.Signer
	allowed []string
	tried   []string
	weak    []string // algorithms in use
	sha1    bool     // the host signs with SHA-1
	fault   error    // why something that would have been let in could not be used
}

// methods lists the ways in, in ssh's order of preference.
func (l *login) methods() []ssh.AuthMethod {
	ways := []ssh.AuthMethod{ssh.PublicKeysCallback(l.keys)}
	if l.prompt == nil || !l.host.passwords || l.host.batch {
		return ways
	}
	tries := max(l.host.passwordTries, 1)
	return append(ways,
		ssh.RetryableAuthMethod(ssh.KeyboardInteractive(l.challenge), tries),
		ssh.RetryableAuthMethod(ssh.PasswordCallback(l.password), tries))
}

// watch notes what the server takes; it leaves the choice to the library.
func (l *login) watch(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	l.allowed = slices.Clone(c.AllowedMethods)
	l.weak = weaknesses(c.Algorithms)
	l.sha1 = c.Algorithms.HostKey == ssh.KeyAlgoRSA || c.Algorithms.HostKey == ssh.CertAlgoRSAv01
	return nil, l.stop()
}

// stop ends the attempt once the user broke off a question.
func (l *login) stop() error {
	if errors.Is(l.fault, context.Canceled) {
		return l.fault
	}
	return nil
}

// load gathers the keys. Its errors are about what the user named and have
// nothing to do with the host, so it comes before the host is reached.
func (l *login) load() error {
	var held []ssh.Signer
	if l.host.agentSocket != "" {
		var err error
		if held, err = l.agentKeys(); err != nil {
			l.log.Warn("cannot use the ssh-agent", "socket", l.host.agentSocket, "error", err)
			l.tried = append(l.tried, fmt.Sprintf("the ssh-agent at %s (%v)", l.host.agentSocket, err))
		}
	}
	ring, err := l.keyRing(held)
	if err != nil {
		return err
	}
	for _, id := range ring {
		for _, s := range id.signers() {
			l.signers = append(l.signers, &noted{Signer: s, login: l, name: id.String()})
		}
	}
	return nil
}

func (l *login) keys() ([]ssh.Signer, error) {
	if l.sha1 {
		return again(l.signers), nil
	}
	return l.signers, nil
}

// failed notes why a way in could not be used: the first time, or that the
// user broke off.
func (l *login) failed(err error) {
	if l.fault == nil || errors.Is(err, context.Canceled) {
		l.fault = err
	}
}

func (l *login) agentKeys() ([]ssh.Signer, error) {
	conn, err := net.Dial("unix", l.host.agentSocket)
	if err != nil {
		return nil, err
	}
	l.agent = conn
	return agent.NewClient(conn).Signers()
}

// done closes what the attempt held open.
func (l *login) done() {
	if l.agent != nil {
		l.agent.Close()
	}
}

// noted is a signer that tells when it is offered and why it could not sign.
type noted struct {
	ssh.Signer
	login *login
	name  string
}

// PublicKey is what the library asks for just before it offers the key.
func (n *noted) PublicKey() ssh.PublicKey {
	if !slices.Contains(n.login.tried, n.name) {
		n.login.tried = append(n.login.tried, n.name)
	}
	return n.Signer.PublicKey()
}

func (n *noted) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	if algorithm == ssh.KeyAlgoRSA {
		n.login.weak = append(n.login.weak, algorithm+" for the login's key")
	}
	var sig *ssh.Signature
	var err error
	if s, ok := n.Signer.(ssh.AlgorithmSigner); ok {
		sig, err = s.SignWithAlgorithm(rand, data, algorithm)
	} else {
		sig, err = n.Signer.Sign(rand, data)
	}
	if err != nil {
		n.login.failed(err)
		n.login.tried = append(n.login.tried, fmt.Sprintf("which the host would take, but %v", err))
	}
	return sig, err
}

func (l *login) password() (string, error) {
	return l.secret(fmt.Sprintf("Password of %s@%s: ", l.host.user, l.host.alias), "a password")
}

func (l *login) secret(question, what string) (string, error) {
	answer, err := l.prompt(question, false)
	if err != nil {
		l.failed(err)
		return "", err
	}
	l.note(what)
	return answer, nil
}

func (l *login) note(what string) {
	if !slices.Contains(l.tried, what) {
		l.tried = append(l.tried, what)
	}
}

// challenge answers keyboard-interactive: the server's questions are shown as
// they are, less what a terminal would act on.
func (l *login) challenge(name, instruction string, questions []string, echos []bool) ([]string, error) {
	answers := make([]string, len(questions))
	for i, q := range questions {
		question := printable(q)
		if i == 0 {
			for _, head := range []string{instruction, name} {
				if head = printable(head); strings.TrimSpace(head) != "" {
					question = strings.TrimRight(head, "\n") + "\n" + question
				}
			}
			question = fmt.Sprintf("(%s@%s) ", l.host.user, l.host.alias) + question
		}
		answer, err := l.prompt(question, echos[i])
		if err != nil {
			l.failed(err)
			return nil, err
		}
		answers[i] = answer
	}
	if len(questions) > 0 {
		l.note("answers to the host's questions")
	}
	return answers, nil
}

// printable drops control characters, with which a host could rewrite the
// user's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// denied makes the error of an attempt that did not get in.
func (l *login) denied(err error) error {
	e := &AuthError{User: l.host.user, Host: l.host.alias, Allowed: l.allowed, Tried: l.tried, Err: err}
	if l.fault != nil {
		e.Err = l.fault
	}
	return e
}
