package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
)

// Policy is what holds for the updates of a node.
type Policy struct {
	Keep      []string // paths that the node keeps as they are: patterns as in clone.Rule
	Pre, Post string   // shell commands run on the node before and after
}

// patience is shorter than what agents, and what is between them and the head,
// take for an answer that does not come any more.
const patience = 25 * time.Second

// task gives a node that runs what there is for it to do. It waits for that a
// while, and answers nothing when there is nothing.
func (m *Machines) task(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.installed(r)
	if err != nil {
		return nil, err
	}
	// An agent of another doppel may say more. It is to be given this one's.
	var body clone.Idle
	if err := readBodyAs(w, r, maxWord, &body, false); err != nil {
		return nil, err
	}
	// All else may need an agent that was built with this doppel.
	if o := m.renew(r.Context(), n, &body); o != nil {
		return clone.Task{Agent: o}, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), cmp.Or(m.Patience, patience))
	defer cancel()
	// Hundreds of nodes wait while others report their progress: what changes is
	// looked at together.
	pace := time.NewTicker(followEvery)
	defer pace.Stop()
	for changed := m.Cluster.Watch(ctx); ; {
		// What changed before the watch began is not told of any more.
		if n, err = m.installed(r); err != nil {
			return nil, err
		}
		if o := m.tellPair(r.Context(), n, body.Pair); o != nil {
			return clone.Task{Pair: o}, nil
		}
		// A head of a pair that does not say what it was told is of a doppel
		// before pairs: it would not keep what is its own.
		if n.Update.Pending() && (body.Pair != nil || m.word(n) == nil) {
			return m.orderUpdate(r.Context(), n)
		}
		task, more := m.questions.next(n.Name)
		if task != nil {
			return task, nil
		}
		select {
		case <-more:
		case _, ok := <-changed:
			if !ok {
				return nil, nil
			}
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
		case <-m.Ending:
			return nil, nil
		}
	}
}

// orderUpdate gives a node the orders for its update. What cannot be ordered
// ends it.
func (m *Machines) orderUpdate(ctx context.Context, n cluster.Node) (any, error) {
	// Begun, it keeps what it is told of the store from being deleted.
	if err := forbid(m.Cluster.Commit(ctx, cluster.BeginUpdate{Node: n.Name, ID: n.Update.ID})); err != nil {
		return nil, err
	}
	version, err := m.Images.Head(ctx, n.Update.Digest, n.Role)
	if endsInstall(err) {
		m.Log.Warn("no update", "node", n.Name, "reason", err)
		return nil, m.Cluster.Commit(ctx, cluster.EndUpdate{Node: n.Name, ID: n.Update.ID, Failed: err.Error()})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the image %s for %s: %w", n.Update.Image, n.Name, err)
	}
	parted, err := m.parted(ctx, n)
	if endsInstall(err) {
		return nil, m.Cluster.Commit(ctx, cluster.EndUpdate{Node: n.Name, ID: n.Update.ID, Failed: err.Error()})
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s, in which %s parted: %w", n.Parted.Base, n.Name, err)
	}
	m.Log.Info("gave orders to update", "node", n.Name, "image", n.Update.Image)
	var p Policy
	if m.Update != nil {
		p = m.Update(n)
	}
	return clone.Task{Update: &clone.UpdateOrders{
		ID: n.Update.ID, Image: n.Update.Image, Full: n.Update.Full, Force: n.Update.Force, Paths: n.Update.Paths,
		Keep: p.Keep, Pre: p.Pre, Post: p.Post,
		Access: m.access(n.Role, version, n.Update.Digest), Pair: m.word(n), Parted: parted,
	}}, nil
}

// updateStages are those of an update but for its last words.
var updateStages = map[clone.Stage]bool{
	clone.StageCheck: true, clone.StagePre: true, clone.StageApply: true, clone.StageIdentity: true,
	clone.StageBootloader: true, clone.StageSettle: true, clone.StagePost: true,
}

// update takes a node's word on its update.
func (m *Machines) update(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.installed(r)
	if err != nil {
		return nil, err
	}
	var body clone.UpdateWord
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	switch {
	case body.Stage == clone.StageFinish:
		err = m.Cluster.Commit(r.Context(), cluster.EndUpdate{Node: n.Name, ID: body.Install, Result: resultText(body.Result), Kept: keptOf(body.Result)})
	case body.Stage == clone.StageFailed:
		reason := body.Detail
		if reason == "" {
			reason = "no reason was given"
		}
		err = m.Cluster.Commit(r.Context(), cluster.EndUpdate{Node: n.Name, ID: body.Install, Failed: reason})
	case updateStages[body.Stage]:
		err = m.Cluster.UpdateProgress(r.Context(), cluster.ReportUpdate{
			Node: n.Name, ID: body.Install, Stage: string(body.Stage), Detail: body.Detail, Done: body.Done, Total: body.Total,
		})
	default:
		return nil, problemf(http.StatusBadRequest, "", "%.80q is no stage of an update", body.Stage)
	}
	return nil, forbid(err)
}

// resultText says what an update did.
func resultText(r *clone.UpdateReport) string {
	if r == nil {
		return ""
	}
	a := cmp.Or(r.Apply, &imaging.ApplyReport{})
	text := fmt.Sprintf("%d written, %d set right, %d removed, in %.1f s", a.Written+int64(len(r.Derived)), a.Fixed, a.Deleted+int64(len(r.Removed)), r.Seconds)
	if r.Kept != nil && r.Kept.Own > 0 {
		text += fmt.Sprintf("; %d kept that were changed here, %d of them on both sides", r.Kept.Own, r.Kept.Both)
	}
	if a.Lost > 0 {
		text += fmt.Sprintf("; %d things could not be set", a.Lost)
	}
	return text
}

// planUpdate says what a deploy in place would do to one node.
func (a *Admin) planUpdate(ctx context.Context, n cluster.Node, req Deploy) (Deployment, cluster.Change, error) {
	ref := cmp.Or(req.Image, n.Image, n.Runs)
	if len(req.Paths) > 0 {
		ref = cmp.Or(req.Image, n.Runs)
	}
	if ref == "" {
		return Deployment{}, nil, &cluster.RefusedError{What: n.Name + " has no image of its own, and none was given", Hint: "give --image, see doppel image ls"}
	}
	version, digest, warnings, err := a.CheckDeploy(ctx, n, ref)
	if err != nil {
		return Deployment{}, nil, err
	}
	d := Deployment{
		Node: n.Name, Addr: n.Addr.String(), Role: n.Role, Install: newInstall(), Image: version, Digest: digest,
		InPlace: true, Runs: n.Runs, Warnings: warnings,
		Erases: "nothing; what " + version + " lacks is removed, but for the node's identity",
	}
	if len(req.Paths) > 0 {
		d.Paths, d.Erases = req.Paths, "what was changed at "+strings.Join(req.Paths, ", ")
	}
	if n.MAC != nil {
		d.MAC = *n.MAC
	}
	return d, cluster.OrderUpdate{Node: n.Name, ID: d.Install, Image: version, Digest: digest, Full: req.Full, Force: req.Force, Paths: req.Paths, Hold: holds(ref, version)}, nil
}

// holds tells whether a reference to a version names that one for good, and not
// the latest one of its image, which a node then follows.
func holds(ref, version string) bool {
	name, _, _ := strings.Cut(version, "@")
	return ref != name && ref != name+"@latest"
}

// errInPlace says which wishes do not go with an update in place.
func (req Deploy) errInPlace() error {
	switch {
	case !req.InPlace && (req.Full || req.Force || len(req.Paths) > 0):
		return errors.New("full, force and paths are for updates in place")
	case req.InPlace && (req.Disk != "" || req.After != ""):
		return errors.New("an update in place touches no disk's table, and ends no boot: it takes neither a disk nor what to do after it")
	}
	return nil
}
