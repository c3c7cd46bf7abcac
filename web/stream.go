package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// protocol is what a connection is upgraded to that carries a capture; see
// imaging/wire.
const protocol = "doppel-capture"

// OpenCapture asks a node that runs for the far end of a capture of its tree,
// and gives the stream to it, which the caller closes. A node does nothing else
// meanwhile, unless the far end is to stay for one capture after the other.
func (m *Machines) OpenCapture(ctx context.Context, node string, stays bool) (net.Conn, error) {
	if n, ok := m.Cluster.Node(node); !ok || n.Key == "" {
		return nil, &cluster.RefusedError{What: node + " is not a node with an agent", Hint: "install it with doppel deploy, or make it a node with doppel node enlist"}
	}
	o := clone.CaptureOrders{ID: newInstall(), Stays: stays}
	answer, err := m.questions.askBriefly(ctx, node, o.ID, clone.Task{Capture: &o})
	if err != nil {
		return nil, err
	}
	c, ok := answer.(net.Conn)
	if !ok {
		return nil, fmt.Errorf("%s answered another question", node)
	}
	return c, nil
}

// stream makes of a node's connection the stream that somebody waits for.
func (m *Machines) stream(w http.ResponseWriter, r *http.Request) {
	n, err := m.installed(r)
	if err == nil && r.Header.Get("Upgrade") != protocol {
		err = problemf(http.StatusBadRequest, "", "this is for streams of %s", protocol)
	}
	if err != nil {
		p := problemOf(err, false)
		m.note(r, p, err)
		answer(w, p.status, p, m.Log)
		return
	}
	c, err := hijack(w)
	if err != nil {
		m.Log.Error("making a stream of a connection", "node", n.Name, "error", err)
		return
	}
	if !m.questions.answered(n.Name, r.URL.Query().Get("id"), c) {
		c.Close() // nobody waits for it any more
	}
}

// hijack takes over a connection, and tells its other end so.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if buffered.Reader.Buffered() > 0 {
		err = errors.New("it has sent more than a request")
	}
	_, werr := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	if err := errors.Join(err, werr, c.SetDeadline(time.Time{}), clone.WatchStream(c)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Capturer opens captures of nodes.
type Capturer interface {
	OpenCapture(ctx context.Context, node string, stays bool) (net.Conn, error)
}

// capture joins a command on this host with a node: what one sends, the other
// gets.
func (a *Admin) capture(w http.ResponseWriter, r *http.Request) {
	fail := func(err error) {
		p := problemOf(err, true)
		answer(w, p.status, p, a.Log)
	}
	n, err := a.one(r.URL.Query().Get("node"))
	if err == nil && (n.State != cluster.Installed || n.Key == "") {
		err = &cluster.RefusedError{What: n.Name + " runs nothing that doppel installed, so there is no agent to read it", Hint: "capture it by SSH: doppel capture root@" + n.Name}
	}
	if err != nil {
		fail(err)
		return
	}
	far, err := a.Captures.OpenCapture(r.Context(), n.Name, false)
	if err != nil {
		fail(err)
		return
	}
	defer far.Close() // join has ended by then
	near, err := hijack(w)
	if err != nil {
		a.Log.Error("making a stream of a connection", "node", n.Name, "error", err)
		return
	}
	defer near.Close()
	join(near, far)
}

// join copies both ways until both have ended.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, err := io.Copy(pair[0], pair[1])
			if half, ok := pair[0].(interface{ CloseWrite() error }); err == nil && ok {
				if half.CloseWrite() == nil {
					return
				}
			}
			a.Close() // ends the other direction, too
			b.Close()
		})
	}
	both.Wait()
}
