package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
)

// DialError says that a host could not be reached, or is no SSH server.
type DialError struct {
	Host string // as the user called it
	Addr string // where that is: address and port
	Err  error
}

func (e *DialError) Error() string {
	at := e.Host
	if e.Addr != "" && e.Addr != e.Host {
		at = fmt.Sprintf("%s (%s)", e.Host, e.Addr)
	}
	return fmt.Sprintf("connect to %s: %v", at, e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// Timeout tells whether the host did not answer in time.
func (e *DialError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.Is(e.Err, context.DeadlineExceeded) || errors.As(e.Err, &t) && t.Timeout()
}

// Hint is what to do about it.
func (e *DialError) Hint() string {
	var dns *net.DNSError
	switch {
	case errors.As(e.Err, &dns):
		return "check the spelling, or add the name to DNS, /etc/hosts or ~/.ssh/config"
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return "the host is up but nothing listens on that port; is sshd running, and is it this port?"
	case errors.Is(e.Err, syscall.ENETUNREACH), errors.Is(e.Err, syscall.EHOSTUNREACH):
		return "no way leads there; check the address, the route and whether the host is on"
	case e.Timeout():
		return "is the host on, and does a firewall let SSH through?"
	case errors.Is(e.Err, syscall.ECONNRESET), errors.Is(e.Err, io.EOF):
		return "the other side hung up before the login: is it an SSH server, and does it admit this address (MaxStartups, hosts.deny, fail2ban)?"
	}
	return ""
}

// KnownKey is where known_hosts says what a host's key is.
type KnownKey struct {
	File        string
	Line        int
	Type        string
	Fingerprint string // SHA256:…
}

func (k KnownKey) String() string { return fmt.Sprintf("%s:%d", k.File, k.Line) }

// HostKeyReason is why a host key is not trusted.
type HostKeyReason string

const (
	HostKeyUnknown HostKeyReason = "unknown" // and nobody accepted it
	HostKeyChanged HostKeyReason = "changed"
	HostKeyRevoked HostKeyReason = "revoked"
)

// HostKeyError says that a host's key is not to be trusted.
type HostKeyError struct {
	Host        string // as known_hosts calls it
	Type        string // of the key that was offered
	Fingerprint string
	Reason      HostKeyReason
	Known       []KnownKey // what known_hosts has instead, or the line that revokes
	File        string     // the known_hosts that a new key would go to
	Err         error      // why it could not be accepted, if that went wrong
}

func (e *HostKeyError) Unwrap() error { return e.Err }

func (e *HostKeyError) Error() string {
	offered := fmt.Sprintf("it shows the %s key %s", e.Type, e.Fingerprint)
	switch e.Reason {
	case HostKeyChanged:
		var known []string
		for _, k := range e.Known {
			known = append(known, fmt.Sprintf("%s has %s %s", k, k.Type, k.Fingerprint))
		}
		return fmt.Sprintf("the host key of %s has changed: %s, but %s", e.Host, offered, strings.Join(known, ", "))
	case HostKeyRevoked:
		at := ""
		if len(e.Known) > 0 {
			at = " at " + e.Known[0].String()
		}
		return fmt.Sprintf("the host key of %s is revoked%s: %s", e.Host, at, offered)
	}
	why := "nobody is there to be asked about it"
	if e.Err != nil {
		why = e.Err.Error()
	}
	return fmt.Sprintf("the host key of %s is not known: %s, and %s", e.Host, offered, why)
}

// Hint is what to do about it.
func (e *HostKeyError) Hint() string {
	switch e.Reason {
	case HostKeyChanged:
		var remedies []string
		for _, k := range e.Known {
			remedy := fmt.Sprintf("ssh-keygen -f %s -R %s", shellQuote(k.File), shellQuote(e.Host))
			if !slices.Contains(remedies, remedy) {
				remedies = append(remedies, remedy)
			}
		}
		return "someone may be listening in. If the host was reinstalled or given a new key, compare the fingerprint with the one on its console, then run: " + strings.Join(remedies, " && ")
	case HostKeyRevoked:
		return "do not connect until the host has another key"
	}
	return fmt.Sprintf("compare the fingerprint with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub there), then accept it when asked, give --accept-new, or add it to %s", keyFileWord(e.Type), e.File)
}

// keyFileWord is the word for a key type in sshd's file names.
func keyFileWord(keyType string) string {
	switch {
	case strings.Contains(keyType, "ed25519"):
		return "ed25519"
	case strings.Contains(keyType, "ecdsa"):
		return "ecdsa"
	}
	return "rsa"
}

// AuthError says that the host let nobody in.
type AuthError struct {
	User, Host string
	Allowed    []string // methods the server takes: publickey, password, keyboard-interactive
	Tried      []string // what was tried, in words, in order
	Err        error
}

func (e *AuthError) Unwrap() error { return e.Err }

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log in to %s as %s: permission denied", e.Host, e.User)
	if len(e.Allowed) > 0 {
		fmt.Fprintf(&b, " (the host takes %s)", strings.Join(e.Allowed, ", "))
	}
	if len(e.Tried) > 0 {
		fmt.Fprintf(&b, "; tried %s", strings.Join(e.Tried, "; "))
	} else {
		b.WriteString("; there was nothing to try: no key file, no ssh-agent, and nobody to ask for a password")
	}
	return b.String()
}

// Hint is what to do about it.
func (e *AuthError) Hint() string {
	return fmt.Sprintf("name the right key with -i, load it into ssh-agent, or put its public half into ~%s/.ssh/authorized_keys on the host (ssh-copy-id)", e.User)
}

// LostError says that the connection ended in the middle of something.
type LostError struct {
	Host   string
	During string // what was being done
	Err    error  // what was noticed
	Stderr string // the end of what the agent said last
}

func (e *LostError) Unwrap() error { return e.Err }

func (e *LostError) Error() string {
	s := fmt.Sprintf("the connection to %s was lost while %s: %v", e.Host, e.During, e.Err)
	if e.Stderr != "" {
		s += "; the agent's last words: " + e.Stderr
	}
	return s
}

// Hint is what to do about it.
func (e *LostError) Hint() string {
	return "what had arrived is kept: run the same command again and it goes on from there"
}

// remedied is an error with its remedy.
type remedied struct {
	error
	remedy string
}

func (e *remedied) Unwrap() error { return e.error }

// Hint is what to do about it.
func (e *remedied) Hint() string { return e.remedy }

// ErrPeerDead is the cause when the peer gave no sign of life for too long.
var ErrPeerDead = errors.New("the host gave no sign of life")

// ErrNotRoot says that the login is not root's and sudo was not asked for.
var ErrNotRoot = errors.New("not logged in as root")

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
