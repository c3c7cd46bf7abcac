package web

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"doppel/cluster"
)

// stream writes JSON values, one a line, each at once.
type stream struct {
	encoder *json.Encoder
	control *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return &stream{encoder: json.NewEncoder(w), control: http.NewResponseController(w)}
}

func (s *stream) write(v any) error {
	if err := s.encoder.Encode(v); err != nil {
		return err
	}
	return s.control.Flush()
}

// events lists the events after ?since=SEQ of ?node=NAME, one a line; with
// ?follow=true those to come, too.
func (a *Admin) events(w http.ResponseWriter, r *http.Request) (any, error) {
	var since uint64
	if s := r.URL.Query().Get("since"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil, problemf(http.StatusBadRequest, "", "since is an event's number, not %.80q", s)
		}
		since = v
	}
	f := cluster.Filter{Node: r.URL.Query().Get("node"), Kind: r.URL.Query().Get("kind")}
	if f.Node != "" && len(a.Cluster.Events(0, cluster.Filter{Node: f.Node})) == 0 {
		// Not even a node that was removed: say so rather than nothing.
		n, err := a.one(f.Node)
		if err != nil {
			return nil, err
		}
		f.Node = n.Name
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return nil, err
	}
	changed := a.Cluster.Watch(r.Context())
	out := newStream(w)
	if err := out.control.Flush(); err != nil { // the caller learns that it is connected
		return streamed{}, nil
	}
	for {
		for _, e := range a.Cluster.Events(since, f) {
			if err := out.write(e); err != nil {
				return streamed{}, nil // the caller has gone
			}
			since = e.Seq
		}
		if !follow {
			return streamed{}, nil
		}
		if _, ok := <-changed; !ok {
			return streamed{}, nil
		}
	}
}

// seen lists all machines seen with their nodes.
func (a *Admin) seen() []Seen {
	snap := a.Cluster.Sightings()
	out := make([]Seen, 0, len(snap))
	for _, v := range snap {
		n, _ := a.Cluster.NodeByMAC(v.MAC)
		out = append(out, Seen{Sighting: v, Node: n.Name})
	}
	return out
}

// sightings lists the machines seen; with ?follow=true, one a line, each when
// it is new or has become a node's, until the collection closes.
func (a *Admin) sightings(w http.ResponseWriter, r *http.Request) (any, error) {
	follow, err := flag(r, "follow")
	if err != nil {
		return nil, err
	}
	if !follow {
		return new(a.seen()), nil
	}
	changed := a.Cluster.Watch(r.Context())
	out := newStream(w)
	if err := out.control.Flush(); err != nil {
		return streamed{}, nil
	}
	shown := map[cluster.MAC]string{}
	for {
		for _, v := range a.seen() {
			if node, ok := shown[v.MAC]; ok && node == v.Node {
				continue
			}
			if err := out.write(v); err != nil {
				return streamed{}, nil
			}
			shown[v.MAC] = v.Node
		}
		left := a.Cluster.Collection().Until.Sub(a.Cluster.Now())
		if left <= 0 {
			return streamed{}, nil
		}
		closes := time.NewTimer(left)
		select {
		case _, ok := <-changed:
			if !ok {
				closes.Stop()
				return streamed{}, nil
			}
		case <-closes.C:
		}
		closes.Stop()
	}
}

// followEvery bounds how often a watched node is shown: its progress changes
// with every few MiB.
const followEvery = 200 * time.Millisecond

// followNodes writes the list, and again whenever it has changed.
func (a *Admin) followNodes(w http.ResponseWriter, r *http.Request, list func() ([]cluster.Node, error)) (any, error) {
	changed := a.Cluster.Watch(r.Context())
	nodes, err := list()
	if err != nil {
		return nil, err
	}
	out := newStream(w)
	pace := time.NewTicker(followEvery)
	defer pace.Stop()
	var shown []cluster.Node
	for {
		if !reflect.DeepEqual(nodes, shown) {
			if err := out.write(nodes); err != nil {
				return streamed{}, nil
			}
			shown = nodes
		}
		if _, ok := <-changed; !ok {
			return streamed{}, nil
		}
		select {
		case <-pace.C:
		case <-r.Context().Done():
			return streamed{}, nil
		}
		if nodes, err = list(); err != nil {
			return streamed{}, nil // one of them was removed
		}
	}
}
