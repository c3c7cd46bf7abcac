package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// grace is how long the far end has to end a session that is being given up.
const grace = 3 * time.Second

// session is an SSH session that ends with a context. Sessions are opened one
// after the other, each when the one before has ended.
type session struct {
	ssh.Channel
	conn   *Conn
	unhook func() bool
	ended  chan struct{} // the far end has closed the session
	gone   chan struct{} // abandon has returned

	status   int    // exit status; -1 while there is none; read after ended
	signal   string // that ended the command
	requests <-chan *ssh.Request
}

// session opens one.
func (c *Conn) session(ctx context.Context) (*session, error) {
	s := &session{conn: c, ended: make(chan struct{}), gone: make(chan struct{}), status: -1}
	if err := c.open(ctx, s); err != nil {
		return nil, err
	}
	c.owned.Go(s.listen)
	s.unhook = context.AfterFunc(ctx, s.abandon)
	return s, nil
}

// open opens the channel. A host that allows one session may still be busy
// with the end of the one before: sshd confirms a close before it has reaped
// the process, and says nothing when it has.
func (c *Conn) open(ctx context.Context, s *session) error {
	pause := 10 * time.Millisecond
	for {
		if c.alive.Err() != nil {
			return c.lost("opening a session")
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// A host that hangs must not hold up the end of ctx: give it a moment,
		// then end the connection.
		opened := make(chan struct{})
		unhook := context.AfterFunc(ctx, func() { c.endUnless(opened) })
		var err error
		s.Channel, s.requests, err = c.client.OpenChannel("session", nil)
		close(opened)
		unhook()
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &refused) && pause < time.Second:
			c.pause(ctx, pause)
			pause *= 2
		case errors.As(err, &refused):
			return fmt.Errorf("open a session on %s: the host refuses (%s): its sshd_config must allow MaxSessions 1 or more", c.host.alias, printable(refused.Message))
		case c.waitEnd(time.Second):
			return c.lost("opening a session")
		default:
			return fmt.Errorf("open a session on %s: %w", c.host.alias, err)
		}
	}
}

func (c *Conn) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-c.alive.Done():
	}
}

// listen takes what the far end says of the command, until the session ends.
func (s *session) listen() {
	defer close(s.ended)
	for r := range s.requests {
		switch r.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if ssh.Unmarshal(r.Payload, &m) == nil {
				s.status = int(m.Status)
			}
		case "exit-signal":
			var m struct {
				Signal        string
				Core          bool
				Message, Lang string
			}
			if ssh.Unmarshal(r.Payload, &m) == nil {
				s.signal = m.Signal
			}
		default:
			if r.WantReply {
				r.Reply(false, nil) // an error means that the connection ends
			}
		}
	}
}

// errRefuses is that of a host that gave a session and runs nothing in it.
var errRefuses = errors.New("the host refuses to run")

// request asks for a command ("exec") or a subsystem.
func (s *session) request(kind, what string) error {
	ok, err := s.SendRequest(kind, true, ssh.Marshal(struct{ What string }{what}))
	if err == nil && !ok {
		err = fmt.Errorf("%w %q", errRefuses, cutText(what, 200))
	}
	return err
}

// endUnless ends the connection unless done closes within grace.
func (c *Conn) endUnless(done <-chan struct{}) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-c.alive.Done():
	case <-timer.C:
		c.end(fmt.Errorf("%w when a session was to end", ErrPeerDead))
		c.net.Close()
	}
}

// hangUp ends a session that something may still read from, which then sees
// its end. A host that does not even confirm that loses the connection.
func (s *session) hangUp() {
	s.Close()
	s.conn.endUnless(s.ended)
}

func (s *session) abandon() {
	defer close(s.gone)
	s.hangUp()
}

// keep makes the session outlive its context.
func (s *session) keep(ctx context.Context) error {
	if s.unhook() {
		s.unhook = func() bool { return true }
		return nil
	}
	<-s.gone
	return context.Cause(ctx)
}

// release ends the session when nothing uses it any more.
func (s *session) release() {
	if !s.unhook() {
		<-s.gone
	}
	s.hangUp()
}

// finish waits for the end of a command that ends by itself, and gives it time
// to do so.
func (s *session) finish(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-s.ended:
	case <-s.conn.alive.Done():
	case <-timer.C:
	}
}

// result is how the command ended, once ended is closed.
func (s *session) result() error {
	switch {
	case s.signal != "":
		return fmt.Errorf("killed by SIG%s", printable(s.signal))
	case s.status > 128 && unix.SignalName(unix.Signal(s.status-128)) != "":
		// A shell says so of what it ran.
		return fmt.Errorf("exit status %d (%s)", s.status, unix.SignalName(unix.Signal(s.status-128)))
	case s.status > 0:
		return fmt.Errorf("exit status %d", s.status)
	case s.status < 0:
		return errors.New("it ended without an exit status")
	}
	return nil
}

// CommandError says that a command on the head did not end well.
type CommandError struct {
	Host, Command string
	Status        int    // exit status; -1: it was killed, or the status did not come
	Stderr        string // the end of what it said
	Err           error  // the same in words
}

func (e *CommandError) Unwrap() error { return e.Err }

func (e *CommandError) Error() string {
	s := fmt.Sprintf("%q on %s: %v", e.Command, e.Host, e.Err)
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	return s
}

// Run runs a command line in the login's shell and gives what it printed.
func (c *Conn) Run(ctx context.Context, command string) ([]byte, error) {
	return c.run(ctx, command, nil)
}

// maxOutput bounds what a command may print.
const maxOutput = 4 << 20

// run is Run with something to read. What a command prints beyond maxOutput is
// read and forgotten.
func (c *Conn) run(ctx context.Context, command string, stdin io.Reader) ([]byte, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.release()
	out, stderr := &head{max: maxOutput}, &tail{}
	err = s.request("exec", command)
	if err == nil {
		err = s.exchange(stdin, out, stderr)
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case c.alive.Err() != nil || s.status < 0 && s.signal == "" && c.waitEnd(grace/10):
		return nil, c.lost(fmt.Sprintf("%q ran", command))
	case err == nil:
		err = s.result()
	}
	if err != nil {
		return out.b, &CommandError{Host: c.host.alias, Command: command, Status: s.status, Stderr: stderr.String(), Err: err}
	}
	return out.b, nil
}

// exchange moves the three streams until the session has ended.
func (s *session) exchange(stdin io.Reader, stdout, stderr io.Writer) error {
	results := make(chan error, 3)
	copyTo := func(to io.Writer, from io.Reader) {
		_, err := io.Copy(to, from)
		results <- err
	}
	go copyTo(stdout, s.Channel)
	go copyTo(stderr, s.Stderr())
	go func() {
		if stdin != nil {
			// A command that does not read to the end is no fault: its status
			// tells.
			io.Copy(s.Channel, stdin)
		}
		s.CloseWrite()
		results <- nil
	}()
	var fault error
	for range cap(results) {
		if err := <-results; err != nil && fault == nil {
			fault = err
		}
	}
	<-s.ended
	return fault
}

// head keeps the first max bytes of what is written to it.
type head struct {
	b   []byte
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), h.max-len(h.b))]...)
	return len(p), nil
}
