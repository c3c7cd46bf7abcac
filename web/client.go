package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"doppel/cluster"
)

// Error is an error that the daemon answered, or the reason why none did.
type Error struct {
	Status int // of HTTP; 0: no daemon answered
	What   string
	Hint   string
}

func (e *Error) Error() string { return e.What }

// ExitCode is what a command that met the error exits with: 2 when it was
// asked for wrongly, else 1.
func (e *Error) ExitCode() int {
	if e.Status == http.StatusBadRequest {
		return 2
	}
	return 1
}

// Client talks to the daemon through its socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient is a client of the daemon whose socket is at path. Nothing is
// connected before the first request.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: &http.Client{
		Transport:     &http.Transport{DialContext: dial},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// send sends a request and gives its answer, when it is not an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding a request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "doppel", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreached(ctx, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	var p problem
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAdmin)).Decode(&p); err != nil || p.What == "" {
		p.What = "the daemon answered " + res.Status
	}
	return nil, &Error{Status: res.StatusCode, What: p.What, Hint: p.Hint}
}

// unreached says why no daemon answered.
func (c *Client) unreached(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &Error{What: "no doppel serve answers on " + c.socket, Hint: "start doppel serve, or give its --state"}
	case errors.Is(err, fs.ErrPermission):
		return &Error{What: "the socket " + c.socket + " is not yours", Hint: "run doppel as the user that runs doppel serve, usually root"}
	}
	return fmt.Errorf("asking doppel serve: %w", err)
}

// call sends a request and reads its answer into a T.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (v T, err error) {
	res, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	return v, nil
}

// follow sends a request and gives each value of its answer to fn. It ends
// with nil when the daemon ends the answer, or with fn's error.
func follow[T any](ctx context.Context, c *Client, path string, query url.Values, fn func(T) error) (err error) {
	res, err := c.send(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	d := json.NewDecoder(res.Body)
	for {
		var v T
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("the daemon's answer broke off: %w", err)
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

// Version tells what answers.
func (c *Client) Version(ctx context.Context) (ServerVersion, error) {
	return call[ServerVersion](ctx, c, http.MethodGet, pathVersion, nil, nil)
}

// Status tells the cluster at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, pathStatus, nil, nil)
}

// Nodes lists the nodes of the expressions, or all.
func (c *Client) Nodes(ctx context.Context, expressions ...string) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodGet, pathNodes, url.Values{"node": expressions}, nil)
}

// Node shows one node.
func (c *Client) Node(ctx context.Context, name string) (cluster.Node, error) {
	path, err := nodePath(name)
	if err != nil {
		return cluster.Node{}, err
	}
	return call[cluster.Node](ctx, c, http.MethodGet, path, nil, nil)
}

func nodePath(name string) (string, error) {
	if strings.Trim(name, ".") == "" || strings.Contains(name, "/") {
		return "", &Error{Status: http.StatusBadRequest, What: fmt.Sprintf("%.80q is not a node's name", name), Hint: "see doppel node ls"}
	}
	return pathNodes + "/" + name, nil
}

// WatchNodes gives the nodes of the expressions to fn, now and whenever one of
// them has changed, until ctx ends, fn gives an error, or the daemon stops.
func (c *Client) WatchNodes(ctx context.Context, expressions []string, fn func([]cluster.Node) error) error {
	return follow(ctx, c, pathNodes, url.Values{"node": expressions, "follow": {"true"}}, fn)
}

// AddNodes adds nodes and gives them as they are.
func (c *Client) AddNodes(ctx context.Context, req AddNodes) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodPost, pathNodes, nil, req)
}

// SetNode alters what describes a node.
func (c *Client) SetNode(ctx context.Context, req cluster.SetNode) (cluster.Node, error) {
	path, err := nodePath(req.Name)
	if err != nil {
		return cluster.Node{}, err
	}
	return call[cluster.Node](ctx, c, http.MethodPatch, path, nil, req)
}

// RemoveNodes removes nodes and gives them as they were.
func (c *Client) RemoveNodes(ctx context.Context, req Named) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodPost, pathRemove, nil, req)
}

// Export gives the inventory.
func (c *Client) Export(ctx context.Context) (cluster.Inventory, error) {
	return call[cluster.Inventory](ctx, c, http.MethodGet, pathExport, nil, nil)
}

// Import adds the nodes of an inventory and gives them as they are.
func (c *Client) Import(ctx context.Context, req Import) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodPost, pathImport, nil, req)
}

// Assign ties a machine to a node.
func (c *Client) Assign(ctx context.Context, mac cluster.MAC, node string) (cluster.Node, error) {
	return call[cluster.Node](ctx, c, http.MethodPost, pathAssign, nil, AssignMAC{MAC: mac, Node: node})
}

// Unassign takes the machines from nodes.
func (c *Client) Unassign(ctx context.Context, req Named) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodPost, pathUnassign, nil, req)
}

// Sightings lists the machines seen.
func (c *Client) Sightings(ctx context.Context) ([]Seen, error) {
	return call[[]Seen](ctx, c, http.MethodGet, pathSightings, nil, nil)
}

// WatchSightings gives the machines seen to fn, each when it is new or has
// become a node's, until the collection closes.
func (c *Client) WatchSightings(ctx context.Context, fn func(Seen) error) error {
	return follow(ctx, c, pathSightings, url.Values{"follow": {"true"}}, fn)
}

// Collection tells the collection window.
func (c *Client) Collection(ctx context.Context) (cluster.Collection, error) {
	return call[cluster.Collection](ctx, c, http.MethodGet, pathCollection, nil, nil)
}

// OpenCollection opens the collection window for a time.
func (c *Client) OpenCollection(ctx context.Context, d time.Duration, auto bool) (cluster.Collection, error) {
	return call[cluster.Collection](ctx, c, http.MethodPost, pathCollection, nil, Collect{For: Duration(d), Auto: auto})
}

// CloseCollection closes the collection window.
func (c *Client) CloseCollection(ctx context.Context) (cluster.Collection, error) {
	return call[cluster.Collection](ctx, c, http.MethodDelete, pathCollection, nil, nil)
}

// Deploy arms nodes, or with DryRun says what that would do.
func (c *Client) Deploy(ctx context.Context, req Deploy) ([]Deployment, error) {
	return call[[]Deployment](ctx, c, http.MethodPost, pathDeploy, nil, req)
}

// Disarm takes back the arming of nodes.
func (c *Client) Disarm(ctx context.Context, req Named) ([]cluster.Node, error) {
	return call[[]cluster.Node](ctx, c, http.MethodPost, pathDisarm, nil, req)
}

// EventFilter chooses events.
type EventFilter struct {
	Since  uint64 // only events after this number
	Node   string // only this node's
	Kind   string // only of this kind
	Follow bool   // those to come, too
}

// Events gives events to fn, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter, fn func(cluster.Event) error) error {
	q := url.Values{"since": {strconv.FormatUint(f.Since, 10)}, "follow": {strconv.FormatBool(f.Follow)}}
	if f.Node != "" {
		q.Set("node", f.Node)
	}
	if f.Kind != "" {
		q.Set("kind", f.Kind)
	}
	return follow(ctx, c, pathEvents, q, fn)
}

// Syncs tells how every sync stands.
func (c *Client) Syncs(ctx context.Context) ([]SyncStatus, error) {
	return call[[]SyncStatus](ctx, c, http.MethodGet, pathSync, nil, nil)
}

// WatchSyncs gives how the syncs stand to fn, and again whenever one has
// changed.
func (c *Client) WatchSyncs(ctx context.Context, fn func([]SyncStatus) error) error {
	return follow(ctx, c, pathSync, url.Values{"follow": {"true"}}, fn)
}

// Sync asks for rounds, or pauses or resumes.
func (c *Client) Sync(ctx context.Context, req SyncRequest) ([]SyncStatus, error) {
	return call[[]SyncStatus](ctx, c, http.MethodPost, pathSync, nil, req)
}

// Drift asks a node in what it differs from a version, and waits for its
// answer.
func (c *Client) Drift(ctx context.Context, req DriftRequest) (Drift, error) {
	return call[Drift](ctx, c, http.MethodPost, pathDrift, nil, req)
}

// CapturePath is where a connection to the daemon's socket can be made the
// stream of a capture of a node; see imaging/wire.
func CapturePath(node string) string {
	return pathCapture + "?" + url.Values{"node": {node}}.Encode()
}
