package web

import (
	"context"
	"net/http"
	"slices"
	"time"

	"doppel/cluster"
)

// Syncer keeps nodes equal to images, as the daemon is configured to.
type Syncer interface {
	// Status tells how every sync stands, in the order of the configuration.
	Status(ctx context.Context) ([]SyncStatus, error)
	// Changed says that the cluster's state about syncs has been changed.
	Changed()
	// Want asks for a round of an image's source, as soon as none is under way.
	Want(image string)
	// Turn makes the other head of a pair the active one. A
	// *cluster.RefusedError says why not; then nothing was changed.
	Turn(ctx context.Context, req TurnRequest) (Turned, error)
}

// SyncStatus is how the sync of one image stands.
type SyncStatus struct {
	cluster.Sync
	Source   string     `json:"source,omitempty"` // empty: nothing is captured, nodes follow what is there
	Every    Duration   `json:"every,omitzero"`
	Exclude  []string   `json:"exclude,omitempty"` // what captures leave out, as patterns
	Watch    bool       `json:"watch,omitempty"`   // a round looks only at what has changed since the one before
	Next     time.Time  `json:"next,omitzero"`     // when the next round begins; zero: not by itself
	Running  time.Time  `json:"running,omitzero"`  // since when a round is under way; zero: none is
	Latest   string     `json:"latest,omitempty"`  // NAME@VERSION
	Captured time.Time  `json:"captured,omitzero"` // when the latest version was
	Versions int        `json:"versions"`          // that are kept
	Nodes    []SyncNode `json:"nodes"`
	Stopped  string     `json:"stopped,omitempty"` // a node that failed, because of which no more are updated
}

// SyncNode is how a node that follows an image stands.
type SyncNode struct {
	cluster.Node
	Source bool          `json:"source,omitempty"` // is captured itself, and does not follow
	Up     bool          `json:"up"`               // heard from lately
	Behind bool          `json:"behind"`           // does not run the latest version
	Lag    time.Duration `json:"lag,omitempty"`    // how old the state of the source is that it has, in nanoseconds; 0: not known
}

// SyncRequest asks for a round, or pauses or resumes.
type SyncRequest struct {
	Do     string   `json:"do"`               // now, pause, resume
	Images []string `json:"images,omitempty"` // empty: all, unless nodes are named
	Nodes  []string `json:"nodes,omitempty"`  // pause, resume: hold these where they are, or let them follow
}

func (a *Admin) syncs(ctx context.Context) ([]SyncStatus, error) {
	if a.Sync == nil {
		return nil, &cluster.RefusedError{What: "no sync is configured", Hint: "add a [[sync]] to the configuration, see doppel sync --help, and start doppel serve again"}
	}
	list, err := a.Sync.Status(ctx)
	for i := range list {
		for j := range list[i].Nodes {
			if n := list[i].Nodes[j].Install; n != nil {
				n.Boot = ""
			}
		}
	}
	return list, err
}

// syncStatus lists the syncs; with ?follow=true again whenever one has changed.
func (a *Admin) syncStatus(w http.ResponseWriter, r *http.Request) (any, error) {
	follow, err := flag(r, "follow")
	if err != nil {
		return nil, err
	}
	list, err := a.syncs(r.Context())
	if err != nil {
		return nil, err
	}
	if !follow {
		return &list, nil
	}
	changed := a.Cluster.Watch(r.Context())
	out := newStream(w)
	for {
		if list, err = a.syncs(r.Context()); err != nil || out.write(list) != nil {
			return streamed{}, nil // the caller has gone
		}
		if _, ok := <-changed; !ok {
			return streamed{}, nil
		}
	}
}

func (a *Admin) sync(w http.ResponseWriter, r *http.Request) (any, error) {
	var req SyncRequest
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	list, err := a.syncs(r.Context())
	if err != nil {
		return nil, err
	}
	if req.Do != "now" && req.Do != "pause" && req.Do != "resume" {
		return nil, problemf(http.StatusBadRequest, "", "%.80q is nothing that can be done with a sync", req.Do)
	}
	for _, image := range req.Images {
		if !slices.ContainsFunc(list, func(s SyncStatus) bool { return s.Image == image }) {
			return nil, &cluster.RefusedError{What: "there is no sync of an image " + image, Hint: "doppel sync status lists them", Unknown: true}
		}
	}
	var changes []cluster.Change
	if len(req.Nodes) > 0 {
		nodes, err := a.selected(req.Nodes)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			changes = append(changes, cluster.HoldNode{Node: n.Name, Held: req.Do == "pause"})
		}
	}
	for _, s := range list {
		if len(req.Images) > 0 && !slices.Contains(req.Images, s.Image) || len(req.Images) == 0 && len(req.Nodes) > 0 {
			continue
		}
		if req.Do == "now" {
			a.Sync.Want(s.Image)
			continue
		}
		changes = append(changes, cluster.PauseSync{Image: s.Image, Paused: req.Do == "pause"})
	}
	if err := a.Cluster.Commit(r.Context(), changes...); err != nil {
		return nil, err
	}
	a.Sync.Changed()
	list, err = a.syncs(r.Context())
	return &list, err
}
