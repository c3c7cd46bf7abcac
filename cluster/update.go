package cluster

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Update is what a node is to become in place, or became last.
type Update struct {
	ID      string    `json:"id"`
	Image   string    `json:"image"`           // NAME@VERSION
	Digest  string    `json:"digest"`          // the version's identity
	Full    bool      `json:"full,omitempty"`  // compare by content
	Force   bool      `json:"force,omitempty"` // though it is of another distribution
	Paths   []string  `json:"paths,omitempty"` // these alone, and what is below them; empty: everything
	Ordered time.Time `json:"ordered"`
	Begun   time.Time `json:"begun,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Failed  string    `json:"failed,omitempty"` // why it ended before it was done
	Result  string    `json:"result,omitempty"` // what it did, for people
	Stage   string    `json:"stage,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Done    int64     `json:"done,omitempty"`  // bytes
	Total   int64     `json:"total,omitempty"` // bytes
}

// Pending tells whether the update is still to be carried out, or to its end.
func (u *Update) Pending() bool { return u != nil && u.Ended.IsZero() }

// OrderUpdate asks for a node that runs to be made equal to a version in
// place. It takes the place of an update that has not ended, but paths not of
// other paths: nobody would order those again.
type OrderUpdate struct {
	Node   string `json:"node"`
	ID     string `json:"id"` // new
	Image  string `json:"image"`
	Digest string `json:"digest"`
	Full   bool   `json:"full,omitempty"`
	Force  bool   `json:"force,omitempty"`
	Hold   bool   `json:"hold,omitempty"` // on that version, until HoldNode says otherwise

	// Paths, from the root, are to be as in the version that the node runs, or,
	// on the active head of a pair, as in any version of its image; what else
	// differs stays. What is below them is meant, too, unless they end with "/.".
	// Empty: everything.
	Paths []string `json:"paths,omitempty"`
}

// MaxPaths bounds how many paths an update may name.
const MaxPaths = 1000

// BeginUpdate says that a node was given its orders.
type BeginUpdate struct {
	Node string `json:"node"`
	ID   string `json:"id"`
}

// ReportUpdate is a node's word on the stage of its update. Use
// Cluster.UpdateProgress for what only counts on.
type ReportUpdate struct {
	Node   string `json:"node"`
	ID     string `json:"id"`
	Stage  string `json:"stage"`
	Detail string `json:"detail,omitempty"`
	Done   int64  `json:"done,omitempty"`
	Total  int64  `json:"total,omitempty"`
}

// EndUpdate says that an update is done, or why it is not.
type EndUpdate struct {
	Node   string `json:"node"`
	ID     string `json:"id"`
	Failed string `json:"failed,omitempty"`
	Result string `json:"result,omitempty"`
	Kept   *Kept  `json:"kept,omitempty"` // on a head that parted from its other; nil: not known
}

// CancelUpdate takes back an update that has not ended.
type CancelUpdate struct {
	Node string `json:"node"`
}

func (OrderUpdate) Kind() string  { return "order-update" }
func (BeginUpdate) Kind() string  { return "begin-update" }
func (ReportUpdate) Kind() string { return "report-update" }
func (EndUpdate) Kind() string    { return "end-update" }
func (CancelUpdate) Kind() string { return "cancel-update" }

func (c OrderUpdate) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil {
		return nil, err
	}
	switch {
	case n.State == Armed || n.State == Installing:
		return nil, refuse("wait for it, or doppel disarm "+n.Name+" first", "%s is %s", n.Name, strings.ToLower(string(n.State)))
	case n.State != Installed || n.Key == "":
		return nil, refuse("install it with doppel deploy, which erases its disk", "%s runs nothing that doppel installed, so nothing there can be updated in place", n.Name)
	}
	for what, v := range map[string]string{"id": c.ID, "image": c.Image, "digest": c.Digest} {
		if v == "" || v != text(v, maxField) {
			return nil, fmt.Errorf("ordering an update of %s: the %s %s cannot be", c.Node, what, quoteName(v))
		}
	}
	image, _, _ := strings.Cut(c.Image, "@")
	active := s.active(n.Name)
	switch {
	case active != "" && (len(c.Paths) == 0 || slices.ContainsFunc(c.Paths, isRoot)):
		return nil, refuse("doppel sync turn "+active+" --to "+s.syncs[active].Pair.Other(n.Name)+" makes the other head the active one first",
			"%s is the active head of %s, which is captured and never made equal to anything", n.Name, active)
	case n.Parted.Open() && len(c.Paths) == 0 && image != n.Parted.Image && !c.Force:
		return nil, refuse("decide on it with doppel sync drift "+n.Name+", or add --force", "%s may have changes of its own since %s, which %s would undo", n.Name, n.Parted.Base, c.Image)
	}
	if len(c.Paths) > 0 && c.Image != n.Runs && (active == "" || image != active) {
		return nil, refuse("leave the version out", "paths of %s can only be made as in %s, which it runs, and not as in %s", n.Name, n.Runs, c.Image)
	}
	if len(c.Paths) > 0 && n.Update.Pending() && len(n.Update.Paths) > 0 {
		return nil, refuse("wait for its end: doppel status", "other paths of %s are being made as in %s, which this would leave undone", n.Name, n.Update.Image)
	}
	if len(c.Paths) > MaxPaths {
		return nil, refuse("name the directories that they are in, or update all", "%d paths are more than can be named", len(c.Paths))
	}
	for _, p := range c.Paths {
		if p == "" || p != text(p, maxText) {
			return nil, refuse("name the directory that it is in", "%s is not a path that can be named", quoteName(p))
		}
	}
	if n.Update != nil && n.Update.ID == c.ID {
		return nil, fmt.Errorf("ordering an update of %s: %s has been before", c.Node, c.ID)
	}
	return c, nil
}

func (c OrderUpdate) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	n.Update = &Update{ID: c.ID, Image: c.Image, Digest: c.Digest, Full: c.Full, Force: c.Force, Paths: c.Paths, Ordered: at}
	message := fmt.Sprintf("%s is to become %s in place", n.Name, c.Image)
	if len(c.Paths) > 0 {
		message = fmt.Sprintf("%s is to have %s as in %s again", n.Name, strings.Join(c.Paths, ", "), c.Image)
	} else {
		n.Held = c.Hold
	}
	s.putNode(n.Name, n)
	s.tell(at, "update", n, text(message, maxText))
	return nil
}

// active is the image by whose pair a node is the active head; empty: by none.
func (s *state) active(node string) string {
	for image, v := range s.syncs {
		if v.Pair != nil && v.Pair.Active == node {
			return image
		}
	}
	return ""
}

// isRoot tells whether a path means everything.
func isRoot(p string) bool { return path.Clean("/"+p) == "/" }

// updating finds the node of an update that has not ended.
func (s *state) updating(node, id string) (*Node, error) {
	n, err := s.editing(node)
	if err != nil {
		return nil, err
	}
	if !n.Update.Pending() || n.Update.ID != id {
		return nil, refuse("", "this update of %s was taken back, or another has taken its place", n.Name)
	}
	return n, nil
}

func (c BeginUpdate) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.updating(c.Node, c.ID)
	if err != nil {
		return nil, err
	}
	if !n.Update.Begun.IsZero() {
		return nil, nil // the node starts again, and goes on
	}
	return c, nil
}

func (c BeginUpdate) apply(s *state, at time.Time) error {
	n, err := s.updating(c.Node, c.ID)
	if err != nil {
		return err
	}
	n.Update.Begun = at
	s.putNode(n.Name, n)
	return nil
}

func (c ReportUpdate) prepare(s *state, at time.Time) (Change, error) {
	if _, err := s.updating(c.Node, c.ID); err != nil {
		return nil, err
	}
	c.Stage, c.Detail = text(c.Stage, maxField), text(c.Detail, maxText)
	c.Done, c.Total = max(c.Done, 0), max(c.Total, 0)
	return c, nil
}

func (c ReportUpdate) apply(s *state, at time.Time) error {
	n, err := s.updating(c.Node, c.ID)
	if err != nil {
		return err
	}
	c.into(n)
	s.putNode(n.Name, n)
	return nil
}

func (c ReportUpdate) into(n *Node) {
	n.Update.Stage, n.Update.Detail, n.Update.Done, n.Update.Total = c.Stage, c.Detail, c.Done, c.Total
}

// of tells whether the node is still in the stage of the report.
func (c ReportUpdate) of(n *Node) bool {
	return n.Update.Pending() && n.Update.ID == c.ID && n.Update.Stage == c.Stage
}

func (c EndUpdate) prepare(s *state, at time.Time) (Change, error) {
	if n := s.nodes[c.Node]; n != nil && n.Update != nil && n.Update.ID == c.ID && !n.Update.Pending() {
		return nil, nil // the answer to the first word was lost
	}
	if _, err := s.updating(c.Node, c.ID); err != nil {
		return nil, err
	}
	c.Failed, c.Result = text(c.Failed, maxText), text(c.Result, maxText)
	return c, nil
}

func (c EndUpdate) apply(s *state, at time.Time) error {
	n, err := s.updating(c.Node, c.ID)
	if err != nil {
		return err
	}
	u := n.Update
	u.Ended, u.Failed, u.Result, u.Done, u.Total, u.Detail = at, c.Failed, c.Result, 0, 0, ""
	kind, message := "updated", fmt.Sprintf("%s runs %s", n.Name, u.Image)
	if c.Failed != "" {
		kind, message = "update-failed", fmt.Sprintf("%s did not become %s: %s", n.Name, u.Image, c.Failed)
	} else {
		n.Runs = u.Image
	}
	if c.Result != "" {
		message += ": " + c.Result
	}
	if c.Failed == "" {
		n.settle(s, c.Kept, at)
	}
	s.putNode(n.Name, n)
	s.tell(at, kind, n, message)
	return nil
}

func (c CancelUpdate) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil || !n.Update.Pending() {
		return nil, err
	}
	return c, nil
}

func (c CancelUpdate) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	if n.Update.Pending() {
		n.Update.Ended, n.Update.Failed = at, "it was taken back"
		s.putNode(n.Name, n)
		s.tell(at, "update-failed", n, fmt.Sprintf("the update of %s to %s was taken back", n.Name, n.Update.Image))
	}
	return nil
}

// UpdateProgress takes a node's word on its update. A new stage is durable
// when UpdateProgress returns; more of the same is kept in memory alone.
func (c *Cluster) UpdateProgress(ctx context.Context, r ReportUpdate) error {
	c.mu.Lock()
	n := c.seen.nodes[r.Node]
	known := n != nil && r.of(n)
	if known {
		r.Detail, r.Done, r.Total = text(r.Detail, maxText), max(r.Done, 0), max(r.Total, 0)
		c.soft.updates[r.Node] = r
		c.notify()
	}
	c.mu.Unlock()
	if known {
		return nil
	}
	return c.Commit(ctx, r)
}
