package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Sync is how the rounds stand that keep nodes equal to an image.
type Sync struct {
	Image    string    `json:"image"` // its name
	Paused   time.Time `json:"paused,omitzero"`
	Last     *Round    `json:"last,omitempty"` // the last round that ended
	Good     *Round    `json:"good,omitempty"` // the last that did not fail
	Full     time.Time `json:"full,omitzero"`  // when the source was last read anew
	Failures int       `json:"failures,omitempty"`
	Pair     *Pair     `json:"pair,omitempty"` // of the heads that it is kept between; nil: it has a source
}

// Round is one capture of the source that an image follows.
type Round struct {
	Begun     time.Time `json:"begun"`
	Ended     time.Time `json:"ended"`
	Version   string    `json:"version,omitempty"` // NAME@VERSION that the source is equal to
	Unchanged bool      `json:"unchanged,omitempty"`
	Full      bool      `json:"full,omitempty"`     // the source was read anew
	Read      int64     `json:"read,omitempty"`     // bytes, on the source
	Sent      int64     `json:"sent,omitempty"`     // bytes, by the source
	Added     int64     `json:"added,omitempty"`    // bytes, to the store
	Unstable  int       `json:"unstable,omitempty"` // files that never held still
	Restless  string    `json:"restless,omitempty"` // which, in words
	Watched   bool      `json:"watched,omitempty"`  // only what had changed was looked at
	Rescan    string    `json:"rescan,omitempty"`   // why everything was, though the source is watched
	Missed    string    `json:"missed,omitempty"`   // paths, some of those whose changes the watch had not seen
	Failed    string    `json:"failed,omitempty"`   // why

	Generation uint64 `json:"generation,omitempty"` // of the pair, as the round began; 0: there is none
}

// StillText says which files never held still; empty: all did.
func (r Round) StillText() string {
	switch {
	case r.Restless != "":
		return r.Restless + " never held still, and may be a mixture of what it was"
	case r.Unstable > 0:
		return fmt.Sprintf("%d files never held still", r.Unstable)
	}
	return ""
}

// EndRound says how a round ended.
type EndRound struct {
	Image string `json:"image"`
	Round
}

// PauseSync stops the rounds of an image, or lets them go on.
type PauseSync struct {
	Image  string `json:"image"`
	Paused bool   `json:"paused"`
}

// HoldNode leaves a node on the version that it has, whatever others become,
// or lets it follow again.
type HoldNode struct {
	Node string `json:"node"`
	Held bool   `json:"held"`
}

func (EndRound) Kind() string  { return "end-round" }
func (PauseSync) Kind() string { return "pause-sync" }
func (HoldNode) Kind() string  { return "hold-node" }

// clone copies the sync with all it points to.
func (s Sync) clone() Sync {
	if s.Last != nil {
		s.Last = new(*s.Last)
	}
	if s.Good != nil {
		s.Good = new(*s.Good)
	}
	if s.Pair != nil {
		s.Pair = new(*s.Pair)
	}
	return s
}

// putSync puts a sync in the place of the one with its image. The map is never
// altered in place.
func (s *state) putSync(v Sync) {
	old := s.syncs
	s.journal.undo = append(s.journal.undo, func() { s.syncs = old })
	s.syncs = maps.Clone(old)
	if s.syncs == nil {
		s.syncs = map[string]Sync{}
	}
	s.syncs[v.Image] = v
}

func checkImage(name string) error {
	if name == "" || name != text(name, maxField) || strings.ContainsAny(name, "@ \t") {
		return refuse("see doppel image ls", "%s is not the name of an image", quoteName(name))
	}
	return nil
}

func (c EndRound) prepare(_ *state, _ time.Time) (Change, error) {
	if err := checkImage(c.Image); err != nil {
		return nil, err
	}
	c.Version, c.Failed = text(c.Version, maxField), text(c.Failed, maxText)
	if c.Version == "" && c.Failed == "" {
		return nil, fmt.Errorf("ending a round of %s: it came to no version, and did not fail", c.Image)
	}
	c.Rescan, c.Missed = text(c.Rescan, maxText), text(c.Missed, maxText)
	c.Begun, c.Ended = c.Begun.UTC().Round(0), c.Ended.UTC().Round(0)
	c.Restless = text(c.Restless, maxText)
	return c, nil
}

func (c EndRound) apply(s *state, at time.Time) error {
	v := s.syncs[c.Image]
	v.Image = c.Image
	before := v
	v.Last = new(c.Round)
	switch {
	case c.Failed != "":
		v.Failures++
		if before.Failures == 0 || before.Last == nil || before.Last.Failed != c.Failed {
			s.tell(at, "sync-failed", nil, fmt.Sprintf("%s was not captured: %s", c.Image, c.Failed))
		}
	default:
		v.Failures, v.Good = 0, new(c.Round)
		if c.Full || before.Good == nil { // the first one reads everything
			v.Full = c.Ended
		}
		if before.Failures > 0 {
			s.tell(at, "sync", nil, fmt.Sprintf("%s is captured again, after %d rounds that failed", c.Image, before.Failures))
		}
		if c.Rescan != "" && (before.Last == nil || before.Last.Rescan != c.Rescan) {
			s.tell(at, "sync", nil, fmt.Sprintf("everything of the source of %s was looked at: %s", c.Image, c.Rescan))
		}
		if c.Missed != "" {
			s.tell(at, "sync-missed", nil, fmt.Sprintf("changes of the source of %s that its watch had not seen were found by looking at everything: %s", c.Image, c.Missed))
		}
		if !c.Unchanged {
			what := fmt.Sprintf("%s is what its source is now", c.Version)
			if still := c.StillText(); still != "" {
				what += "; " + still
			}
			s.tell(at, "sync", nil, what)
		}
	}
	s.putSync(v)
	if p := v.Pair; p != nil && c.Failed == "" && c.Generation == p.Generation {
		if n, err := s.editing(p.Active); err == nil && n.State == Installed && (n.Runs != c.Version || n.Parted != nil) {
			n.Runs, n.Parted = c.Version, nil // it was made of it
			s.putNode(n.Name, n)
		}
	}
	return nil
}

func (c PauseSync) prepare(s *state, _ time.Time) (Change, error) {
	if err := checkImage(c.Image); err != nil {
		return nil, err
	}
	if s.syncs[c.Image].Paused.IsZero() == !c.Paused {
		return nil, nil
	}
	return c, nil
}

func (c PauseSync) apply(s *state, at time.Time) error {
	v := s.syncs[c.Image]
	v.Image, v.Paused = c.Image, time.Time{}
	word := "goes on"
	if c.Paused {
		v.Paused, word = at, "is paused"
	}
	s.putSync(v)
	s.tell(at, "sync", nil, fmt.Sprintf("the sync of %s %s", c.Image, word))
	return nil
}

func (c HoldNode) prepare(s *state, _ time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil || n.Held == c.Held {
		return nil, err
	}
	return c, nil
}

func (c HoldNode) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	n.Held = c.Held
	s.putNode(n.Name, n)
	if c.Held {
		s.tell(at, "held", n, fmt.Sprintf("%s stays on its version until it is let follow again", n.Name))
	} else {
		s.tell(at, "follows", n, fmt.Sprintf("%s follows its image again", n.Name))
	}
	return nil
}

// Sync tells how the rounds of an image stand; of one that had none, only its
// name.
func (c *Cluster) Sync(image string) Sync {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v := c.seen.syncs[image].clone()
	v.Image = image
	return v
}

// Syncs lists how the rounds of all images stand, by name.
func (c *Cluster) Syncs() []Sync {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.syncs()
}

func (c *Cluster) syncs() []Sync {
	out := make([]Sync, 0, len(c.seen.syncs))
	for _, name := range slices.Sorted(maps.Keys(c.seen.syncs)) {
		out = append(out, c.seen.syncs[name].clone())
	}
	return out
}
