package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

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

// AskDrift asks a node in what it differs from a version, and waits for its
// answer.
func (m *Machines) AskDrift(ctx context.Context, n cluster.Node, ref, digest string, full bool) (json.RawMessage, error) {
	version, err := m.Images.Head(ctx, digest, n.Role)
	if err != nil {
		return nil, err
	}
	o := clone.DriftOrders{ID: newInstall(), Image: ref, Full: full, Access: m.access(n.Role, version, digest)}
	if m.Update != nil {
		n.Update = &cluster.Update{Image: ref}
		o.Keep = m.Update(n).Keep
	}
	answer, err := m.questions.ask(ctx, n.Name, o.ID, clone.Task{Drift: &o})
	if err != nil {
		return nil, err
	}
	w, ok := answer.(clone.DriftWord)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s answered another question", n.Name)
	case w.Failed != "":
		return nil, &cluster.RefusedError{What: fmt.Sprintf("%s could not be compared: %s", n.Name, w.Failed)}
	}
	return w.Report, nil
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
	if !m.questions.answered(n.Name, body.ID, body) {
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
