package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"doppel/imaging"
	"doppel/imaging/wire"
)

// maxAgent bounds the local binary.
const maxAgent = 256 << 20

// AgentOptions say how to run the agent on a head.
type AgentOptions struct {
	// Path is the local doppel-agent binary.
	Path string
	// Sudo runs the agent with sudo when the login is not root's.
	Sudo bool
	// Prompt asks the user for sudo's password, if sudo wants one; nil: nobody
	// is there to be asked.
	Prompt func(question string, echo bool) (string, error)
}

// Agent starts doppel-agent on the head and gives the head's tree as a source.
// Closing the source ends the agent; the connection stays open.
func Agent(ctx context.Context, conn *Conn, o AgentOptions) (imaging.Source, error) {
	return newDelivery(conn, o).agent(ctx)
}

// agent brings the agent to the head and starts its work.
func (d *delivery) agent(ctx context.Context) (imaging.Source, error) {
	defer d.packing.Wait()
	d.packing.Go(d.pack)
	// Where the login is root's and nothing is installed, the shell that says
	// what the head is goes on and takes the agent.
	a, m, err := d.survey(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.suits(m); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	d.root = m.uid == 0
	if m.takes() {
		return d.deliver(ctx, sudo{}, a)
	}
	if err := a.Close(); err != nil {
		return nil, err
	}
	if d.packing.Wait(); d.fault != nil {
		return nil, d.fault
	}
	if m.installed == d.digest.Hex() {
		return d.installed(ctx)
	}
	sudo, err := d.become(ctx, "true")
	if err != nil {
		return nil, err
	}
	return d.deliver(ctx, sudo, nil)
}

// suits tells whether the machine, and the login, are ones to capture from.
func (d *delivery) suits(m *machine) error {
	host := d.conn.host
	if err := m.suits(host.alias); err != nil || m.uid == 0 || d.options.Sudo {
		return err
	}
	return &remedied{
		fmt.Errorf("%w: %s@%s has user id %d, and only root can read every file", ErrNotRoot, host.user, host.alias, m.uid),
		fmt.Sprintf("log in as root@%s, or give --sudo", host.alias),
	}
}

// installed starts the agent that a package has put there.
func (d *delivery) installed(ctx context.Context) (imaging.Source, error) {
	sudo, err := d.become(ctx, installedAgent+" version")
	if err != nil {
		return nil, err
	}
	a, err := d.start(ctx, sudo.prefix+installedAgent+" "+d.work)
	if err != nil {
		return nil, err
	}
	return d.meet(ctx, a, sudo.password)
}

// start runs a command line that becomes the agent.
func (d *delivery) start(ctx context.Context, command string) (*agentSource, error) {
	s, err := d.conn.session(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(s.request("exec", command), s.keep(ctx)); err != nil {
		s.release()
		if errors.Is(err, io.EOF) && d.conn.waitEnd(grace/10) {
			return nil, d.conn.lost("starting the agent")
		}
		return nil, fmt.Errorf("start the agent on %s: %w", d.conn.host.alias, err)
	}
	a := &agentSource{conn: d.conn, session: s, out: bufio.NewReaderSize(s, 64<<10)}
	a.reading.Go(func() { io.Copy(&a.stderr, s.Stderr()) }) // its end shows in the session's
	return a, nil
}

// meet greets the agent, and ends it when it is not the right one.
func (d *delivery) meet(ctx context.Context, a *agentSource, password string) (imaging.Source, error) {
	if d.work != capturing {
		if password != "" {
			if _, err := io.WriteString(a.session, password+"\n"); err != nil {
				return nil, errors.Join(err, a.Close())
			}
		}
		return a, nil
	}
	if err := a.greet(ctx, password); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if got := a.client.Agent().Digest; got != d.digest {
		return nil, errors.Join(fmt.Errorf("the agent on %s is not the one that was sent: its digest is %v, not %v", d.conn.host.alias, got, d.digest), a.Close())
	}
	return a, nil
}

// greeting is how long an agent has to greet.
const greeting = time.Minute

// greet tells sudo the password, if it wants one, and waits for the agent.
func (a *agentSource) greet(ctx context.Context, password string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, greeting, fmt.Errorf("the agent on %s did not greet within %v", a.conn.host.alias, greeting))
	defer cancel()
	if password != "" {
		// sudo reads one line, byte by byte; nothing follows it before the
		// agent has greeted, so nothing of the protocol can get lost in sudo.
		if _, err := io.WriteString(a.session, password+"\n"); err != nil {
			return a.explain(ctx, &wire.CutError{Err: err}, "starting")
		}
	}
	client, err := wire.NewClient(ctx, a.out, input{a.session}, build(), a.session.hangUp)
	if err != nil {
		return a.explain(ctx, err, "starting")
	}
	a.client = client
	return nil
}

// input is a session's standard input: closing it leaves the output open.
type input struct{ *session }

func (i input) Close() error { return i.CloseWrite() }

// build is which doppel this is.
func build() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// agentSource is the tree at the far end of a running agent.
type agentSource struct {
	conn    *Conn
	session *session
	out     *bufio.Reader // the session's standard output
	client  *wire.Client
	stderr  tail
	reading sync.WaitGroup
	closed  bool
}

// Describe implements imaging.Source.
func (a *agentSource) Describe(ctx context.Context, root string) (imaging.Facts, *imaging.Layout, error) {
	facts, layout, err := a.client.Describe(ctx, root)
	return facts, layout, a.explain(ctx, err, "asking what it is")
}

// Scan implements imaging.Source.
func (a *agentSource) Scan(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
	return a.explain(ctx, a.client.Scan(ctx, req, sink), "capturing")
}

// Quiet implements imaging.Watcher.
func (a *agentSource) Quiet(ctx context.Context, since imaging.Mark) (bool, error) {
	quiet, err := a.client.Quiet(ctx, since)
	return quiet, a.explain(ctx, err, "asking what has changed")
}

// explain finds out what an error of the stream means: a lost connection, an
// agent that died, or neither.
func (a *agentSource) explain(ctx context.Context, err error, during string) error {
	var cut *wire.CutError
	var remote *wire.RemoteError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &remote):
		return fmt.Errorf("%s: %w", a.conn.host.alias, err)
	case !errors.As(err, &cut):
		return err
	}
	// The reason comes after the end of the stream: give it time to arrive.
	a.session.finish(grace)
	if a.conn.waitEnd(grace / 10) {
		return &LostError{Host: a.conn.host.alias, During: during, Err: context.Cause(a.conn.alive), Stderr: a.stderr.String()}
	}
	why := cut.Err
	select {
	case <-a.session.ended:
		a.reading.Wait()
		if err := a.session.result(); err != nil {
			why = err
		}
	default:
	}
	said := a.stderr.String()
	if said == "" {
		said = "it said nothing"
	}
	return fmt.Errorf("the agent on %s ended while %s: %w: %s", a.conn.host.alias, during, why, said)
}

// giveUp ends what the session runs by ending its input, which leaves it the
// time to clean up, and the session itself when that does not help.
func (a *agentSource) giveUp() {
	a.session.CloseWrite()
	a.session.finish(grace)
	a.session.hangUp()
}

// Close ends the agent and waits for it.
func (a *agentSource) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	var err error
	if a.client != nil {
		err = a.client.Close()
	} else {
		err = a.session.CloseWrite()
	}
	if err == nil {
		a.session.finish(grace)
	}
	a.session.release()
	a.reading.Wait()
	if a.conn.Err() != nil || errors.Is(err, io.EOF) {
		return nil // it had ended before
	}
	return err
}
