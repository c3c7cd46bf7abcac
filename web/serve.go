package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Door is one listener and what answers on it.
type Door struct {
	Name     string
	Listener net.Listener
	Handler  http.Handler
	TLS      *tls.Config // nil: none
	// Streams tells that answers may go on until the caller has gone: they
	// are cut when serving ends. Other answers are finished.
	Streams bool
}

const (
	headerTime = 10 * time.Second // for a request's header
	idleTime   = 2 * time.Minute
	graceTime  = 5 * time.Second // for answers under way when serving ends
	maxHeader  = 64 << 10
)

// Serve serves all doors until ctx ends or one of them fails. Answers under
// way then have a few seconds to finish; Serve returns when all have ended,
// with nil when it was ctx that ended. It closes the listeners.
func Serve(ctx context.Context, log *slog.Logger, doors ...Door) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range doors {
		g.Go(func() error { return d.serve(ctx, log) })
	}
	return g.Wait()
}

func (d Door) serve(ctx context.Context, log *slog.Logger) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	s := &http.Server{
		Handler:           d.Handler,
		TLSConfig:         d.TLS,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.With("door", d.Name).Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() {
		if d.TLS != nil {
			ended <- s.ServeTLS(d.Listener, "", "")
			return
		}
		ended <- s.Serve(d.Listener)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serving %s: %w", d.Name, err)
	case <-ctx.Done():
	}
	if d.Streams {
		cut()
	}
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), graceTime)
	defer stop()
	err := s.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		cut()
		err = s.Close()
	}
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("ending %s: %w", d.Name, err)
	}
	return nil
}

// ErrRunning says that a daemon answers on the socket already.
var ErrRunning = errors.New("doppel serve is already running")

// maxSocket is what fits struct sockaddr_un with its final NUL, see unix(7).
const maxSocket = 107

// ListenUnix makes the daemon's socket, for its owner alone. A socket that a
// daemon left behind is replaced; one that is answered gives ErrRunning. The
// caller holds the state's lock, so no two come here at once. Closing the
// listener removes the socket.
func ListenUnix(path string) (net.Listener, error) {
	if len(path)+len(".new") > maxSocket {
		return nil, fmt.Errorf("making the socket %s: its path is longer than %d bytes, which is all that a socket can have: choose a shorter --state", path, maxSocket-len(".new"))
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return nil, errors.Join(fmt.Errorf("making the socket %s: %w", path, ErrRunning), c.Close())
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
	default:
		return nil, fmt.Errorf("making the socket %s: what is there does not look like doppel's: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("making the socket %s: something that is not a socket is there: move it away", path)
	}
	// Made beside its place and moved there when its mode is right, so that
	// nobody can connect in between.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", path, err)
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making the socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the socket %s: %w", path, err), l.Close(), os.Remove(fresh))
	}
	return &socket{UnixListener: l, path: path}, nil
}

// socket removes its name when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if err != nil {
		return err // closed before; the name may be another's by now
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
