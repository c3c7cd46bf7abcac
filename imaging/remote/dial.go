package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxHops bounds a chain of jump hosts, so that two that name each other end.
const maxHops = 8

// errNoAnswer is a DialError's cause when the host did not answer in time.
type errNoAnswer struct {
	during string
	after  time.Duration
}

func (e *errNoAnswer) Error() string {
	return fmt.Sprintf("no answer within %v while %s", e.after, e.during)
}
func (e *errNoAnswer) Timeout() bool { return true }

// Dial connects to target and logs in. Its errors are *DialError (not reached),
// *HostKeyError (not who it should be) and *AuthError (not let in), besides
// those of reading configuration and key files. The connection lives until
// Close, whatever becomes of ctx.
func Dial(ctx context.Context, target Target, o Options) (*Conn, error) {
	return dial(ctx, target, o, 0)
}

func dial(ctx context.Context, target Target, o Options, hops int) (*Conn, error) {
	h, err := resolve(target, o)
	if err != nil {
		return nil, err
	}
	var via *Conn
	for n, hop := range h.jump {
		if hops++; hops > maxHops {
			return nil, fmt.Errorf("ssh_config for %s: ProxyJump goes over more than %d hosts; does one name itself?", h.alias, maxHops)
		}
		var next *Conn
		if n == 0 {
			// The first hop may itself be behind others.
			next, err = dial(ctx, hop, o, hops)
		} else {
			next, err = connectThrough(ctx, hop, o, via)
		}
		if err != nil {
			return nil, fmt.Errorf("jump host %s: %w", hop, errors.Join(err, closeConn(via)))
		}
		via = next
	}
	conn, err := connect(ctx, h, o, via)
	if err != nil {
		return nil, errors.Join(err, closeConn(via))
	}
	return conn, nil
}

func closeConn(c *Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// connectThrough reaches a later hop, whose own ProxyJump does not count.
func connectThrough(ctx context.Context, hop Target, o Options, via *Conn) (*Conn, error) {
	h, err := resolve(hop, o)
	if err != nil {
		return nil, err
	}
	return connect(ctx, h, o, via)
}

// connect reaches one host, directly or through via, which the connection then
// owns.
func connect(ctx context.Context, h *host, o Options, via *Conn) (*Conn, error) {
	known, err := loadTrust(h.knownHosts)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(h.name, strconv.Itoa(h.port))
	a := &attempt{host: h, addr: addr, trust: known, options: o}
	a.login = &login{host: h, prompt: a.prompt(), log: o.log()}
	defer a.login.done()
	if err := a.login.load(); err != nil {
		return nil, err
	}
	raw, err := reach(ctx, h, addr, via)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &DialError{Host: h.alias, Addr: addr, Err: err}
	}
	a.conn = newWatched(raw)
	client, err := a.handshake(ctx)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return newConn(client, a, o, via), nil
}

func reach(ctx context.Context, h *host, addr string, via *Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.timeout, &errNoAnswer{"connecting", h.timeout})
	defer cancel()
	var c net.Conn
	var err error
	if via != nil {
		c, err = via.client.DialContext(ctx, "tcp", addr)
		var refused *ssh.OpenChannelError
		if errors.As(err, &refused) {
			err = fmt.Errorf("the jump host %s cannot reach it: %s", via.host.alias, printable(refused.Message))
		}
	} else {
		// No TCP keepalive: the connection asks for signs of life itself.
		c, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", addr)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return c, err
}

// attempt is one handshake under way.
type attempt struct {
	host    *host
	addr    string
	conn    *watched
	trust   *trust
	options Options

	login  *login
	judge  *judge
	timer  *time.Timer
	silent atomic.Bool // timer went off
	stage  atomic.Pointer[string]
}

// handshake exchanges keys and logs in. The host has h.timeout for each step;
// the clock stands still while the user is asked.
func (a *attempt) handshake(ctx context.Context) (*ssh.Client, error) {
	a.enter("exchanging keys")
	a.timer = time.AfterFunc(a.host.timeout, func() {
		a.silent.Store(true)
		a.conn.Close()
	})
	defer a.timer.Stop()
	unhook := context.AfterFunc(ctx, func() { a.conn.Close() })
	defer unhook()

	a.judge = &judge{host: a.host, trust: a.trust, prompt: a.login.prompt}
	config := &ssh.ClientConfig{
		Config: algorithms(),
		User:   a.host.user,
		Auth:   a.login.methods(),
		AuthCallback: func(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
			a.timer.Reset(a.host.timeout)
			return a.login.watch(c)
		},
		HostKeyAlgorithms: a.trust.algorithms(a.judge.address(), a.conn.RemoteAddr()),
		HostKeyCallback: func(name string, remote net.Addr, key ssh.PublicKey) error {
			if a.loggingIn() {
				return a.judge.again(key)
			}
			err := a.judge.callback(name, remote, key)
			if err == nil {
				a.enter("logging in")
			}
			return err
		},
		BannerCallback: func(message string) error {
			a.options.log().Info("the host greets", "host", a.host.alias, "banner", printable(message))
			return nil
		},
		ClientVersion: "SSH-2.0-doppel",
	}
	c, chans, reqs, err := ssh.NewClientConn(a.conn, a.addr, config)
	if err != nil {
		return nil, a.explain(ctx, err)
	}
	if !unhook() {
		c.Close()
		return nil, context.Cause(ctx)
	}
	if !a.timer.Stop() {
		c.Close()
		return nil, a.explain(ctx, errors.New("too late"))
	}
	if weak := a.login.weak; len(weak) > 0 {
		a.options.log().Warn("the host's SSH is out of date: it knows only weak algorithms for this; bring its sshd up to date, or do this in a network that is trusted",
			"host", a.host.alias, "algorithms", strings.Join(weak, ", "))
	}
	return ssh.NewClient(c, chans, reqs), nil
}

func (a *attempt) enter(stage string) { a.stage.Store(&stage) }

func (a *attempt) loggingIn() bool { return *a.stage.Load() == "logging in" }

// prompt is the user's prompt, with the clock stopped; nil when there is none.
func (a *attempt) prompt() func(string, bool) (string, error) {
	ask := a.options.Prompt
	if ask == nil || a.host.batch {
		return nil
	}
	return func(question string, echo bool) (string, error) {
		a.timer.Stop()
		answer, err := ask(question, echo)
		a.timer.Reset(a.host.timeout)
		return answer, err
	}
}

// explain finds out what a failed handshake means.
func (a *attempt) explain(ctx context.Context, err error) error {
	var hostKey *HostKeyError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &hostKey):
		return hostKey
	case a.login.fault != nil && errors.Is(a.login.fault, context.Canceled):
		return a.login.fault
	case a.silent.Load():
		return &DialError{Host: a.host.alias, Addr: a.addr, Err: &errNoAnswer{*a.stage.Load(), a.host.timeout}}
	case a.loggingIn() && (a.login.fault != nil || refusedLogin(err)):
		return a.login.denied(err)
	}
	return &DialError{Host: a.host.alias, Addr: a.addr, Err: fmt.Errorf("%s: %w", *a.stage.Load(), err)}
}

// refusedLogin tells the server's no from a broken connection. Neither has a
// type: the library's text, and the text of sshd's message when it hangs up
// over too many tries.
func refusedLogin(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unable to authenticate") || strings.Contains(text, "Too many authentication failures")
}
