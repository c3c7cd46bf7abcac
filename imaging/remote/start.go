package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Start brings doppel-agent to the head as Agent does, and has it do another
// work than a capture: a subcommand that takes --unlink, and talks on what is
// returned. Closing that ends it; the connection stays open.
func Start(ctx context.Context, conn *Conn, o AgentOptions, work string) (io.ReadWriteCloser, error) {
	d := newDelivery(conn, o)
	d.work = work
	src, err := d.agent(ctx)
	if err != nil {
		return nil, err
	}
	a, ok := src.(*agentSource)
	if !ok {
		return nil, errors.New("the agent was not started")
	}
	return &worker{a: a}, nil
}

// worker is an agent that does something else than a capture.
type worker struct{ a *agentSource }

// Read reads what the agent writes. Its end, when the agent was not told to
// leave, is an error that says why.
func (w *worker) Read(p []byte) (int, error) {
	n, err := w.a.out.Read(p)
	if err != nil && n == 0 {
		return 0, w.explain(err)
	}
	return n, nil
}

func (w *worker) explain(err error) error {
	w.a.session.finish(grace)
	if w.a.conn.waitEnd(grace / 10) {
		return &LostError{Host: w.a.conn.host.alias, During: "talking to the agent", Err: context.Cause(w.a.conn.alive), Stderr: w.a.stderr.String()}
	}
	select {
	case <-w.a.session.ended:
		w.a.reading.Wait()
		if e := w.a.session.result(); e != nil {
			err = e
		}
	default:
	}
	if said := w.a.stderr.String(); said != "" {
		return fmt.Errorf("the agent on %s ended: %w: %s", w.a.conn.host.alias, err, said)
	}
	return fmt.Errorf("the agent on %s ended: %w", w.a.conn.host.alias, err)
}

func (w *worker) Write(p []byte) (int, error) {
	n, err := w.a.session.Write(p)
	if err != nil {
		err = w.explain(err)
	}
	return n, err
}

func (w *worker) Close() error { return w.a.Close() }
