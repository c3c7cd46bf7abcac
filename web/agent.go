package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging/store"
)

// AgentFile is the agent that was built with this doppel: nodes are to run it,
// as the two talk to each other.
type AgentFile struct {
	Digest  store.ID
	Size    int64
	Content io.ReaderAt
}

const (
	// renewAtOnce is how many nodes get the agent at once: there may be a
	// thousand that all ask for it when the daemon was replaced.
	renewAtOnce = 16
	// renewFor is how long one of them may take before its place is another's.
	renewFor = 2 * time.Minute
)

// renewals are the nodes that are getting the agent.
type renewals struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// begin gives a node a place, if there is one.
func (r *renewals) begin(node string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since == nil {
		r.since = map[string]time.Time{}
	}
	for name, at := range r.since {
		if now.Sub(at) >= renewFor || now.Before(at) {
			delete(r.since, name)
		}
	}
	if _, ok := r.since[node]; ok {
		return true // until its time is over, however often it asks
	}
	if len(r.since) >= renewAtOnce {
		return false
	}
	r.since[node] = now
	return true
}

func (r *renewals) end(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.since, node)
}

// renew tells a node to run this doppel's agent, unless it does, cannot, or there
// is no place for it yet: then it goes on with the one that it has.
func (m *Machines) renew(ctx context.Context, n cluster.Node, idle *clone.Idle) *clone.AgentOrders {
	if m.Agent == nil || idle.Agent == (store.ID{}) {
		return nil
	}
	if idle.Agent == m.Agent.Digest {
		m.renewals.end(n.Name)
		return nil
	}
	if no := idle.AgentRefused; no != nil && no.Digest == m.Agent.Digest {
		m.renewals.end(n.Name)
		if m.refusals.first(n.Addr, "agent "+no.Digest.Hex(), m.Cluster.Now()) {
			note := cluster.Note{What: "warning", Node: n.Name, MAC: n.MAC, Text: fmt.Sprintf("%s goes on with the agent that it has, and not with this doppel's: %s", n.Name, no.Why)}
			if err := m.Cluster.Commit(ctx, note); err != nil {
				m.Log.Error("keeping an event", "error", err)
			}
		}
		return nil
	}
	if !m.renewals.begin(n.Name, m.Cluster.Now()) {
		return nil
	}
	m.Log.Info("gave this doppel's agent", "node", n.Name, "instead_of", idle.Agent.Hex())
	return &clone.AgentOrders{Digest: m.Agent.Digest, Size: m.Agent.Size}
}

// agent gives a node the agent.
func (m *Machines) agent(w http.ResponseWriter, r *http.Request) {
	if _, err := m.installed(r); err != nil {
		p := problemOf(err, false)
		m.note(r, p, err)
		answer(w, p.status, p, m.Log)
		return
	}
	if m.Agent == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(m.Agent.Content, 0, m.Agent.Size))
}
