package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
)

// Daemon is a doppel serve that can be killed and started again.
type Daemon struct {
	Console Console // what it said

	cmd   *exec.Cmd
	ended chan struct{}
}

// StartDaemon starts a daemon on the rig's server and waits until it serves. It
// is the caller's to end.
func (r *Rig) StartDaemon(ctx context.Context) (*Daemon, error) {
	d := &Daemon{Console: Console{log: io.Discard}, ended: make(chan struct{})}
	d.cmd = r.Doppel(context.WithoutCancel(ctx), "serve")
	d.cmd.Stdout, d.cmd.Stderr = &d.Console, &d.Console
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		defer close(d.ended)
		cancel(fmt.Errorf("doppel serve ended: %v", d.cmd.Wait()))
	}()
	if err := d.Console.Await(ctx, 0, regexp.MustCompile(`msg=serving`)); err != nil {
		d.Kill()
		return nil, errors.Join(err, errors.New(d.Console.Tail(2000)))
	}
	return d, nil
}

// Kill ends it with SIGKILL, if it has not ended by itself.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}
