package resync

// Follower is a node that is to be kept equal to an image, as it stands.
type Follower struct {
	Node    string
	Runs    string // NAME@VERSION
	Up      bool   // heard from lately
	Held    bool   // somebody has put it on a version of its choice
	Pending string // the version that an update under way makes it; empty: none
	Begun   bool   // that update is being carried out, or is one that somebody asked for: it is let end
	Failed  string // the version that its last update did not come to; empty: it did
	Retry   bool   // it is time to try one that has failed once more
}

// Rollout is what is to be done to keep nodes equal to a version.
type Rollout struct {
	Order   []string // nodes whose update is to be ordered now
	Behind  []string // nodes that do not run the version yet, those in Order included
	Stopped string   // a node that failed, because of which no more are ordered
}

// Roll decides which nodes are updated next: no more than so many at once (0:
// as many as there are), and after one has failed on this version none but
// those that failed, again. An update that has begun is let end, also when there is
// a later version by now: where versions come faster than updates, none would ever
// be done. Nodes that are down are left until they are up; nodes that are held are
// not touched.
func Roll(version string, nodes []Follower, atOnce int) Rollout {
	var r Rollout
	busy := 0
	var ready, again []string
	for _, n := range nodes {
		switch {
		case n.Held:
			continue
		case n.Up && (n.Pending == version || n.Pending != "" && n.Begun):
			busy++
		case n.Failed == version && n.Runs != version && n.Pending == "":
			r.Stopped = n.Node
			if n.Retry && n.Up {
				again = append(again, n.Node)
			}
		}
		if n.Runs == version && n.Pending == "" {
			continue
		}
		r.Behind = append(r.Behind, n.Node)
		if n.Up && n.Pending != version && (n.Pending == "" || !n.Begun) && n.Failed != version {
			ready = append(ready, n.Node)
		}
	}
	if r.Stopped != "" {
		ready = again
	}
	room := len(ready)
	if atOnce > 0 {
		room = min(room, max(0, atOnce-busy))
	}
	r.Order = ready[:room]
	return r
}
