package web

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// word is what holds for a node that is a head of a pair; nil: it is of none.
func (m *Machines) word(n cluster.Node) *clone.PairWord {
	if m.Pair == nil {
		return nil
	}
	return m.Pair(n)
}

// parted names the version that a node and the head that took over from it had
// in common, for updates to their image; nil: it has nothing of its own.
func (m *Machines) parted(ctx context.Context, n cluster.Node) (*clone.PartedOrders, error) {
	p := n.Parted
	if image, _, _ := strings.Cut(n.Update.Image, "@"); p == nil || image != p.Image {
		return nil, nil
	}
	base, err := m.Images.Head(ctx, p.Digest, n.Role)
	if err != nil {
		return nil, fmt.Errorf("%s, which %s and %s had in common: %w", p.Base, n.Name, p.From, err)
	}
	return &clone.PartedOrders{Base: p.Base, Manifest: base.Manifest, Digest: p.Digest}, nil
}

func keptOf(r *clone.UpdateReport) *cluster.Kept {
	if r == nil || r.Kept == nil {
		return nil
	}
	return &cluster.Kept{Own: r.Kept.Own, Both: r.Kept.Both}
}

// tellAgain is how long a head is left alone that was told the direction, and
// does not say that it knows it.
const tellAgain = 30 * time.Second

// tells remembers what heads were told, so that one that cannot keep it is not
// told without end, and what was noted of heads that know better.
type tells struct {
	mu     sync.Mutex
	told   map[string]time.Time
	warned map[string]uint64
	knows  map[string]uint64 // generations, as heads said that they were told
}

// Knows is the generation of the direction that a head was told last, as it has
// said itself to this doppel since that was started; 0: it has not.
func (m *Machines) Knows(node string) uint64 {
	m.tells.mu.Lock()
	defer m.tells.mu.Unlock()
	return m.tells.knows[node]
}

// tellPair is the direction for a head that was not told of it yet, by what it
// says it knows. One that knows a later direction than this doppel makes an
// event: this doppel's state is the older one.
func (m *Machines) tellPair(ctx context.Context, n cluster.Node, known *clone.PairWord) *clone.PairOrders {
	m.tells.mu.Lock()
	defer m.tells.mu.Unlock()
	if known != nil {
		if m.tells.knows == nil {
			m.tells.knows = map[string]uint64{}
		}
		m.tells.knows[n.Name] = known.Generation
	}
	w := m.word(n)
	if w == nil || known != nil && *known == *w {
		return nil
	}
	if err := known.Take(*w); err != nil {
		if m.tells.warned == nil {
			m.tells.warned = map[string]uint64{}
		}
		if m.tells.warned[n.Name] != known.Generation {
			m.tells.warned[n.Name] = known.Generation
			m.Log.Error("a head knows a later direction of its pair", "node", n.Name, "knows", known.Generation, "generation", w.Generation)
			note := cluster.Note{What: "stale", Node: n.Name, MAC: n.MAC, Text: fmt.Sprintf("%s takes no orders from this doppel: %s", n.Name, err)}
			if err := m.Cluster.Commit(ctx, note); err != nil {
				m.Log.Error("keeping an event", "error", err)
			}
		}
		return nil
	}
	now := m.Cluster.Now()
	if last, ok := m.tells.told[n.Name]; ok && now.Sub(last) < tellAgain && now.Sub(last) >= 0 {
		return nil
	}
	if m.tells.told == nil {
		m.tells.told = map[string]time.Time{}
	}
	m.tells.told[n.Name] = now
	return &clone.PairOrders{PairWord: *w}
}

// AskPair tells a head the direction of its pair, or with a generation of 0
// only asks, and waits for what it knows then. A node that does not ask for
// work within a while, does not answer then, or does not take the word, gives a
// *cluster.RefusedError.
func (m *Machines) AskPair(ctx context.Context, node string, w clone.PairWord) (clone.PairWord, error) {
	o := clone.PairOrders{ID: newInstall(), PairWord: w}
	got, err := m.questions.askBriefly(ctx, node, o.ID, clone.Task{Pair: &o})
	if err != nil {
		return clone.PairWord{}, err
	}
	a, ok := got.(clone.PairAnswer)
	switch {
	case !ok:
		return clone.PairWord{}, fmt.Errorf("%s answered another question", node)
	case a.Failed != "":
		return a.PairWord, &cluster.RefusedError{What: fmt.Sprintf("%s does not take the direction: %s", node, a.Failed)}
	}
	return a.PairWord, nil
}

// pair takes a head's word on what it knows of its pair.
func (m *Machines) pair(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.installed(r)
	if err != nil {
		return nil, err
	}
	var body clone.PairAnswer
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	if body.ID != "" && !m.questions.answered(n.Name, body.ID, body) {
		return nil, problemf(http.StatusForbidden, "", "nobody waits for this answer of %s any more", n.Name)
	}
	return nil, nil
}

// TurnRequest asks for the direction of a pair to be turned.
type TurnRequest struct {
	Image  string `json:"image,omitempty"` // empty: the only pair's
	To     string `json:"to"`              // who is to be the active head
	Force  bool   `json:"force,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// Turned is what came of it.
type Turned struct {
	Image      string   `json:"image"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Generation uint64   `json:"generation"`
	Common     string   `json:"common"` // NAME@VERSION that both have in common
	Told       bool     `json:"told"`   // the active head has it on its disk
	Warnings   []string `json:"warnings"`
	DryRun     bool     `json:"dry_run,omitempty"`
}

func (a *Admin) turn(w http.ResponseWriter, r *http.Request) (any, error) {
	var req TurnRequest
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	if _, err := a.syncs(r.Context()); err != nil {
		return nil, err
	}
	t, err := a.Sync.Turn(r.Context(), req)
	return &t, err
}

// Turn turns the direction of a pair.
func (c *Client) Turn(ctx context.Context, req TurnRequest) (Turned, error) {
	return call[Turned](ctx, c, http.MethodPost, pathTurn, nil, req)
}
