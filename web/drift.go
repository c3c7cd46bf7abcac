package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// Drifter asks nodes in what they differ from an image.
type Drifter interface {
	// AskDrift waits for the node's answer, a resync.Report. A node that does
	// not ask for work within a while gives a *cluster.RefusedError.
	AskDrift(ctx context.Context, node cluster.Node, ref, digest string, full bool) (json.RawMessage, error)
}

// maxDrift bounds the body of a node's answer.
const maxDrift = 256 << 20

// pickupTime is how long a node may take to ask for work that waits for it:
// longer than one that waits for work is let wait.
const pickupTime = 40 * time.Second

// question is one that a node is to answer.
type question struct {
	node   string
	orders clone.DriftOrders
	taken  chan struct{} // closed when the node has it
	answer chan clone.DriftWord
}

// questions are those that wait for nodes. What nobody waits for any more is
// not in it.
type questions struct {
	mu    sync.Mutex
	open  map[string]*question // by ID
	added chan struct{}        // closed, and made anew, with every question
}

// ask puts a question.
func (q *questions) ask(v *question) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open == nil {
		q.open = map[string]*question{}
	}
	q.open[v.orders.ID] = v
	if q.added != nil {
		close(q.added)
		q.added = nil
	}
}

func (q *questions) drop(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.open, id)
}

// next finds a question for a node, and what is closed when there are more. A
// node does one thing at a time: one that asks again has not answered because
// it was started anew, and is given the same.
func (q *questions) next(node string) (*question, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, v := range q.open {
		if v.node != node {
			continue
		}
		select {
		case <-v.taken:
		default:
			close(v.taken)
		}
		return v, nil
	}
	if q.added == nil {
		q.added = make(chan struct{})
	}
	return nil, q.added
}

// answered gives a node's answer to who asked.
func (q *questions) answered(node string, w clone.DriftWord) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	v := q.open[w.ID]
	if v == nil || v.node != node {
		return false
	}
	delete(q.open, w.ID)
	v.answer <- w // has room for it
	return true
}

// AskDrift asks a node in what it differs from a version, and waits for its
// answer.
func (m *Machines) AskDrift(ctx context.Context, n cluster.Node, ref, digest string, full bool) (json.RawMessage, error) {
	version, err := m.Images.Head(ctx, digest, n.Role)
	if err != nil {
		return nil, err
	}
	v := &question{node: n.Name, taken: make(chan struct{}), answer: make(chan clone.DriftWord, 1), orders: clone.DriftOrders{
		ID: newInstall(), Image: ref, Full: full, Access: m.access(n.Role, version, digest),
	}}
	if m.Update != nil {
		n.Update = &cluster.Update{Image: ref}
		v.orders.Keep = m.Update(n).Keep
	}
	m.questions.ask(v)
	defer m.questions.drop(v.orders.ID)
	late := time.NewTimer(pickupTime)
	defer late.Stop()
	select {
	case <-v.taken:
	case <-late.C:
		return nil, &cluster.RefusedError{What: n.Name + " does not ask for work", Hint: "see that it is up and that its doppel-agent.service runs; doppel status tells when it was last heard from"}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case w := <-v.answer:
		if w.Failed != "" {
			return nil, &cluster.RefusedError{What: fmt.Sprintf("%s could not be compared: %s", n.Name, w.Failed)}
		}
		return w.Report, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// drift takes a node's answer.
func (m *Machines) drift(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.installed(r)
	if err != nil {
		return nil, err
	}
	var body clone.DriftWord
	if err := readBody(w, r, maxDrift, &body); err != nil {
		return nil, err
	}
	if !m.questions.answered(n.Name, body) {
		return nil, problemf(http.StatusForbidden, "", "nobody waits for this answer of %s any more", n.Name)
	}
	return nil, nil
}

// DriftRequest asks in what a node differs from a version.
type DriftRequest struct {
	Node  string `json:"node"`
	Image string `json:"image,omitempty"` // empty: what it runs
	Full  bool   `json:"full,omitempty"`
}

// Drift is how a node differs from a version.
type Drift struct {
	Node   string          `json:"node"`
	Image  string          `json:"image"`
	Report json.RawMessage `json:"report"` // a resync.Report
}

func (a *Admin) drift(w http.ResponseWriter, r *http.Request) (any, error) {
	var req DriftRequest
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	n, err := a.one(req.Node)
	if err != nil {
		return nil, err
	}
	ref := req.Image
	if ref == "" {
		ref = n.Runs
	}
	if n.State != cluster.Installed || n.Key == "" || ref == "" {
		return nil, &cluster.RefusedError{What: n.Name + " runs nothing that doppel installed, so there is nothing to compare", Hint: "see doppel status"}
	}
	version, digest, _, err := a.CheckDeploy(r.Context(), n, ref)
	if err != nil {
		return nil, err
	}
	report, err := a.Drifts.AskDrift(r.Context(), n, version, digest, req.Full)
	return &Drift{Node: n.Name, Image: version, Report: report}, err
}
