package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// watched is a network connection that knows when something last came.
type watched struct {
	net.Conn
	last     atomic.Int64 // nanoseconds since start
	received atomic.Int64 // bytes
	start    time.Time
}

func newWatched(c net.Conn) *watched { return &watched{Conn: c, start: time.Now()} }

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.last.Store(int64(time.Since(w.start)))
		w.received.Add(int64(n))
	}
	return n, err
}

func (w *watched) silence() time.Duration { return time.Since(w.start) - time.Duration(w.last.Load()) }

// Conn is a connection to a head.
type Conn struct {
	host   *host
	addr   string
	key    string
	client *ssh.Client
	net    *watched
	via    *Conn
	log    *slog.Logger

	alive  context.Context // its cause is why the connection ended
	end    context.CancelCauseFunc
	owned  sync.WaitGroup
	closed atomic.Bool
}

func newConn(client *ssh.Client, a *attempt, o Options, via *Conn) *Conn {
	c := &Conn{
		host: a.host, addr: a.addr, key: a.judge.seen, client: client, net: a.conn, via: via, log: o.log(),
	}
	c.alive, c.end = context.WithCancelCause(context.Background())
	every := o.KeepAlive
	if every <= 0 {
		every = 10 * time.Second
	}
	c.owned.Go(func() {
		err := client.Wait()
		if err == nil || errors.Is(err, io.EOF) {
			err = errors.New("the other side closed it")
		}
		c.end(err)
	})
	c.owned.Go(func() { c.watch(every) })
	return c
}

// watch asks the peer for a sign of life, and ends the connection when none
// comes for three times as long.
func (c *Conn) watch(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	var open atomic.Bool
	for {
		select {
		case <-c.alive.Done():
			return
		case <-tick.C:
		}
		if quiet := c.net.silence(); quiet > 3*every {
			c.end(fmt.Errorf("%w for %v", ErrPeerDead, quiet.Round(time.Second)))
			c.net.Close()
			return
		}
		if open.CompareAndSwap(false, true) {
			asking.Go(func() {
				defer open.Store(false)
				// Any answer will do, also that the request is unknown; an
				// error shows in client.Wait.
				c.client.SendRequest("keepalive@openssh.com", true, nil)
			})
		}
	}
}

// Host is the host as the user called it.
func (c *Conn) Host() string { return c.host.alias }

// User is who the login is.
func (c *Conn) User() string { return c.host.user }

// Fingerprint is the SHA-256 fingerprint of the host's key.
func (c *Conn) Fingerprint() string { return c.key }

// Received counts the bytes that came over the network.
func (c *Conn) Received() int64 { return c.net.received.Load() }

// Done is closed when the connection has ended; Err then tells why.
func (c *Conn) Done() <-chan struct{} { return c.alive.Done() }

// Err tells why the connection ended; nil while it lives.
func (c *Conn) Err() error {
	if c.alive.Err() == nil {
		return nil
	}
	return context.Cause(c.alive)
}

// Close ends the connection and those to the jump hosts before it.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.end(net.ErrClosed)
	err := c.client.Close()
	c.owned.Wait()
	if c.via != nil {
		err = errors.Join(err, c.via.Close())
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil // it had ended before
	}
	return err
}

// lost makes the error of a connection that ended while something was done.
func (c *Conn) lost(during string) error {
	return &LostError{Host: c.host.alias, During: during, Err: context.Cause(c.alive)}
}

// waitEnd gives the connection's end a moment to be noticed: a read that fails
// and the reason for it arrive on different goroutines.
func (c *Conn) waitEnd(moment time.Duration) bool {
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-c.alive.Done():
		return true
	case <-timer.C:
		return false
	}
}

// tail keeps the last 4 KiB of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > maxTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(printable(string(t.b)))
}
