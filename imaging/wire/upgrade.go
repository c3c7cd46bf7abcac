package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Protocol is what an HTTP connection is upgraded to that then carries this
// package's stream (RFC 9110, section 7.8).
const Protocol = "doppel-capture"

// Upgrade asks the HTTP/1.1 server at the other end of c for path, to make a
// stream of the connection, and gives that. It closes c when the server
// refuses, or ctx ends before it has answered.
func Upgrade(ctx context.Context, c net.Conn, host, path string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	u, err := upgrade(c, host, path)
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close() // it is of no use any more
		return nil, err
	}
	return u, nil
}

func upgrade(c net.Conn, host, path string) (net.Conn, error) {
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", path, host, Protocol)
	if err != nil {
		return nil, fmt.Errorf("asking for a stream: %w", err)
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for a stream: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		var text struct{ Error, Hint string }
		b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if err != nil || json.Unmarshal(b, &text) != nil || text.Error == "" {
			text.Error = res.Status
		}
		return nil, &RefusedError{Status: res.StatusCode, What: text.Error, Hint: text.Hint}
	}
	return &upgraded{c, r}, nil
}

// RefusedError says that a server gave no stream.
type RefusedError struct {
	Status     int // of HTTP
	What, Hint string
}

func (e *RefusedError) Error() string { return e.What }

// upgraded is a connection with what was read of it already.
type upgraded struct {
	net.Conn
	r *bufio.Reader
}

func (u *upgraded) Read(b []byte) (int, error) { return u.r.Read(b) }

// CloseWrite ends what is written, and leaves open what is read.
func (u *upgraded) CloseWrite() error { return closeWrite(u.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// NetSource is a Client at the end of a network connection, which is closed
// with it.
type NetSource struct {
	*Client
	conn net.Conn
}

// NewNetSource waits for the agent's greeting on c, and greets back. It closes c
// when that fails.
func NewNetSource(ctx context.Context, c net.Conn, build string) (*NetSource, error) {
	client, err := NewClient(ctx, bufio.NewReaderSize(c, 64<<10), writeEnd{c}, build, func() { c.Close() })
	if err != nil {
		c.Close()
		return nil, err
	}
	return &NetSource{client, c}, nil
}

// Close ends the agent, which says nothing more, and the connection.
func (s *NetSource) Close() error {
	err := s.Client.Close()
	if cerr := s.conn.Close(); err == nil {
		err = cerr
	}
	return err
}

// writeEnd is a connection of which Close ends only what is written.
type writeEnd struct{ net.Conn }

func (w writeEnd) Close() error { return closeWrite(w.Conn) }
