package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"time"

	"doppel/clone"
	"doppel/imaging/wire"
)

// streamPause is how long a node that got no stream waits before it asks for work
// again, where the same capture still waits for it: the head does so for longer.
const streamPause = 10 * time.Second

// serveCapture is the far end of a capture that the head takes of this node, or
// of captures that follow one another: these go on beside, counted in others.
func (n *node) serveCapture(ctx context.Context, log *slog.Logger, o *clone.CaptureOrders, others *sync.WaitGroup) {
	start := time.Now()
	c, err := n.head.stream(ctx, "/v1/stream?"+url.Values{"id": {o.ID}}.Encode())
	var no *wire.RefusedError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return
	case errors.As(err, &no):
		log.Warn("the head does not want the capture any more", "err", err)
		if no.Status != http.StatusForbidden {
			n.rest(ctx, streamPause)
		}
		return
	default:
		log.Error("the head was not reached to be captured by", "err", err)
		n.rest(ctx, streamPause)
		return
	}
	log.Info("being captured", "stays", o.Stays)
	serve := func() {
		switch err := n.capture(ctx, c); {
		case ctx.Err() != nil:
		case err != nil:
			log.Error("the capture ended before it was done", "err", err)
		default:
			log.Info("captured", "seconds", time.Since(start).Seconds())
		}
	}
	if o.Stays {
		others.Go(serve)
	} else {
		serve()
	}
}

// capture has a process of its own serve what comes on the stream; it stands
// behind all other work of this node.
func (n *node) capture(ctx context.Context, c net.Conn) error {
	defer c.Close() // both ends know by then how it ended
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, n.self, "capture")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c, c, &said
	// A head that has gone shows as the end of the stream, by which the process
	// ends, and then what feeds it.
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// stream makes a stream of a connection to the head.
func (h *head) stream(ctx context.Context, path string) (net.Conn, error) {
	u, err := url.Parse(h.base)
	if err != nil {
		return nil, err
	}
	config := h.tls(u.Hostname())
	config.NextProtos = []string{"http/1.1"} // which can be upgraded
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: config}
	c, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if err := clone.WatchStream(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return wire.Upgrade(ctx, c, u.Host, path)
}
