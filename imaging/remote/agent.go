package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"doppel/imaging"
	"doppel/imaging/store"
	"doppel/imaging/wire"
)

// dirPrefix begins the name of the temporary directory on a head.
const dirPrefix = "doppel-agent."

// agentFile is the agent's name in it.
const agentFile = "doppel-agent"

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
	m, err := conn.probe(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.suits(conn.host.alias); err != nil {
		return nil, err
	}
	if m.uid != 0 && !o.Sudo {
		return nil, &remedied{
			fmt.Errorf("%w: %s@%s has user id %d, and only root can read every file", ErrNotRoot, conn.host.user, conn.host.alias, m.uid),
			fmt.Sprintf("log in as root@%s, or give --sudo", conn.host.alias),
		}
	}
	binary, err := readBounded(o.Path, maxAgent)
	if err != nil {
		return nil, fmt.Errorf("read the agent to run on %s: %w", conn.host.alias, err)
	}
	d := &delivery{conn: conn, options: o, binary: binary, digest: store.Sum(binary), root: m.uid == 0}
	if m.installed == d.digest.Hex() {
		return d.start(ctx, installedAgent, "")
	}
	return d.deliver(ctx)
}

// delivery brings one agent to one head.
type delivery struct {
	conn    *Conn
	options AgentOptions
	binary  []byte
	digest  store.ID
	root    bool // logged in as root
}

// deliver puts the agent into a temporary directory, in one place after the
// other until it runs, and starts it.
func (d *delivery) deliver(ctx context.Context) (imaging.Source, error) {
	var random [12]byte
	rand.Read(random[:])
	name := dirPrefix + hex.EncodeToString(random[:])
	var refused []string
	for from := 0; ; {
		dir, next, err := d.conn.makeDir(ctx, from, name)
		if err != nil {
			return nil, errors.Join(err, d.clean(ctx, name))
		}
		if dir == "" {
			why := ""
			if len(refused) > 0 {
				why = " (" + strings.Join(refused, "; ") + ")"
			}
			return nil, &remedied{
				fmt.Errorf("%s has no place to run the agent from: every one of %s is read-only, full, or mounted noexec%s", d.conn.host.alias, strings.Join(places[:], ", "), why),
				"install doppel's agent there as " + installedAgent + ", or capture with --sftp, which carries less",
			}
		}
		source, err := d.deliverTo(ctx, dir)
		if err == nil {
			return source, nil
		}
		err = errors.Join(err, d.clean(ctx, name))
		var unfit *unfitError
		if !errors.As(err, &unfit) {
			return nil, err
		}
		refused = append(refused, path.Dir(dir)+": "+unfit.Error())
		from = next
	}
}

// clean removes the directory, wherever it is, unless the connection is gone
// and with it the means to. It follows failures too, so it has its own time.
func (d *delivery) clean(ctx context.Context, name string) error {
	if d.conn.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*grace)
	defer cancel()
	remove := "rm -rf"
	for _, p := range places {
		remove += ` "` + p + "/" + name + `"`
	}
	if _, err := d.conn.run(ctx, script(remove), nil); err != nil {
		return fmt.Errorf("remove the directory %s on %s: %w", name, d.conn.host.alias, err)
	}
	return nil
}

// unfitError says that the agent cannot be kept in, or run from, a directory
// while it might from another.
type unfitError struct{ err error }

func (e *unfitError) Error() string { return e.err.Error() }
func (e *unfitError) Unwrap() error { return e.err }

func (d *delivery) deliverTo(ctx context.Context, dir string) (imaging.Source, error) {
	file := path.Join(dir, agentFile)
	if err := d.upload(ctx, file); err != nil {
		return nil, err
	}
	// Any refusal to run it is seen here, where it has a status of its own.
	if _, err := d.conn.run(ctx, shellQuote(file)+" version", nil); err != nil {
		var status *CommandError
		if errors.As(err, &status) {
			return nil, &unfitError{err}
		}
		return nil, err
	}
	return d.start(ctx, file, dir)
}

// upload copies the agent with SFTP, or through cat where sshd has no SFTP
// subsystem.
func (d *delivery) upload(ctx context.Context, file string) error {
	err := d.uploadSFTP(ctx, file)
	var none *noSFTPError
	if errors.As(err, &none) {
		d.conn.log.Debug("no SFTP, copying the agent through cat", "host", d.conn.host.alias, "error", err)
		_, err = d.conn.run(ctx, script(`umask 077`, `cat >"$0" && chmod 700 "$0"`)+" "+shellQuote(file), bytes.NewReader(d.binary))
		var status *CommandError
		if errors.As(err, &status) {
			return &unfitError{err}
		}
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("copy the agent to %s: %w", d.conn.host.alias, err)
	}
	return err
}

func (d *delivery) uploadSFTP(ctx context.Context, file string) error {
	client, err := d.conn.openSFTP(ctx)
	if err != nil {
		return err
	}
	f, err := client.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err == nil {
		_, err = f.ReadFromWithConcurrency(bytes.NewReader(d.binary), 0)
		if e := f.Chmod(0o700); err == nil {
			err = e
		}
		if e := f.Close(); err == nil {
			err = e
		}
	}
	// The session must have ended before the next one begins.
	closed := client.close()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && d.conn.waitEnd(0):
		return d.conn.lost("the agent was copied")
	case err != nil:
		var status *sftp.StatusError
		if errors.As(err, &status) {
			return &unfitError{err}
		}
		return err
	}
	return closed
}

// start runs the agent and greets it. dir is what the agent removes once it
// runs; empty: it is installed and stays.
func (d *delivery) start(ctx context.Context, file, dir string) (imaging.Source, error) {
	command, password, err := d.command(ctx, file)
	if err != nil {
		return nil, err
	}
	command += " capture"
	if dir != "" {
		command += " --unlink"
	}
	s, err := d.conn.session(ctx)
	if err != nil {
		return nil, err
	}
	a := &agentSource{conn: d.conn, session: s}
	if err := errors.Join(s.request("exec", command), s.keep(ctx)); err != nil {
		s.release()
		return nil, fmt.Errorf("start the agent on %s: %w", d.conn.host.alias, err)
	}
	a.reading.Go(func() { io.Copy(&a.stderr, s.Stderr()) }) // its end shows in the session's
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
	client, err := wire.NewClient(ctx, a.session, input{a.session}, build(), a.session.hangUp)
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

// Close ends the agent and waits for it.
func (a *agentSource) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	var err error
	if a.client != nil {
		if err = a.client.Close(); err == nil {
			a.session.finish(grace)
		}
	}
	a.session.release()
	a.reading.Wait()
	if a.conn.Err() != nil || errors.Is(err, io.EOF) {
		return nil // it had ended before
	}
	return err
}
