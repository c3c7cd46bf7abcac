package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"doppel/clone"
	"doppel/cluster"
	"doppel/web"
)

// errTurned ends a round whose source is not the active head any more.
var errTurned = errors.New("the direction was turned")

// captures tells whether the sync has a source.
func (c *syncConfig) captures() bool { return c.Source != "" || c.pair() }

// pair tells whether the image is kept between two heads.
func (c *syncConfig) pair() bool { return c.Between[0] != "" }

// turnable is a context for a round, which ends when the direction is turned.
func (o *oneSync) turnable(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turned = cancel
	return ctx
}

// sourceOf is what a sync's image is captured from now; empty: nothing.
func (s *syncer) sourceOf(o *oneSync) string {
	if !o.pair() {
		return o.Source
	}
	if p := s.d.cluster.Sync(o.Image).Pair; p != nil && p.Active != "" {
		return nodePrefix + p.Active
	}
	return nodePrefix + o.Between[0]
}

// isSource tells whether a node is the source itself now.
func (s *syncer) isSource(o *oneSync, n cluster.Node) bool {
	if o.pair() {
		return s.sourceOf(o) == nodePrefix+n.Name
	}
	return o.isSource(n)
}

// current tells whether a version is what nodes may be made: of a pair, only
// what the head that is the active one now was captured as, or found equal to.
func (s *syncer) current(o *oneSync, ref string) bool {
	if !o.pair() {
		return true
	}
	state := s.state(o)
	return state.Pair != nil && state.Current() && state.Good.Version == ref
}

// pairUp has the cluster's state know the pairs of the configuration, and no
// others.
func (s *syncer) pairUp(ctx context.Context) {
	for _, v := range s.d.cluster.Syncs() {
		if v.Pair == nil || slices.ContainsFunc(s.syncs, func(o *oneSync) bool { return o.Image == v.Image && o.pair() }) {
			continue
		}
		if err := s.d.cluster.Commit(ctx, cluster.PairSync{Image: v.Image}); err != nil {
			s.log.Error("ending a pair", "image", v.Image, "error", err)
		}
	}
	for _, o := range s.syncs {
		if !o.pair() {
			continue
		}
		if err := s.d.cluster.Commit(ctx, cluster.PairSync{Image: o.Image, Heads: o.Between}); err != nil {
			s.log.Error("making a pair", "image", o.Image, "error", err)
		}
	}
}

// pairOf is what holds for a node that is a head of a pair; nil: it is of none.
func (s *syncer) pairOf(n cluster.Node) *clone.PairWord {
	for _, o := range s.syncs {
		if p := s.d.cluster.Sync(o.Image).Pair; o.pair() && p.Has(n.Name) {
			return &clone.PairWord{Image: o.Image, Generation: p.Generation, Source: p.Active == n.Name}
		}
	}
	return nil
}

// pairNamed finds the pair that a request means.
func (s *syncer) pairNamed(image string) (*oneSync, error) {
	var pairs []*oneSync
	for _, o := range s.syncs {
		if o.pair() && (image == "" || o.Image == image) {
			pairs = append(pairs, o)
		}
	}
	switch {
	case len(pairs) == 1:
		return pairs[0], nil
	case len(pairs) > 1:
		return nil, &cluster.RefusedError{What: "several images are kept between two heads", Hint: "name the image"}
	case image == "":
		return nil, &cluster.RefusedError{What: "no image is kept between two heads", Hint: "give a [[sync]] between = [\"HEAD1\", \"HEAD2\"], see doppel sync --help", Unknown: true}
	}
	return nil, &cluster.RefusedError{What: image + " is not kept between two heads", Hint: "doppel sync status lists what is", Unknown: true}
}

// Turn makes the other head of a pair the active one. That head is asked first
// what it knows, which also shows that it is up; then the turn is committed, and
// then that head is told. A daemon that ends in between has turned or has not:
// heads are told what they do not know yet whenever they ask for work.
func (s *syncer) Turn(ctx context.Context, req web.TurnRequest) (web.Turned, error) {
	o, err := s.pairNamed(req.Image)
	if err != nil {
		return web.Turned{}, err
	}
	state := s.state(o)
	if state.Pair == nil {
		return web.Turned{}, errors.New("the pair is not in the cluster's state: see the daemon's log")
	}
	for _, name := range state.Pair.Heads {
		if err := overtaken(name, s.d.machines.Knows(name), state.Pair, req.Force); err != nil {
			return web.Turned{}, err
		}
	}
	n, _ := s.d.cluster.Node(req.To)
	c := cluster.TurnSync{Image: o.Image, To: req.To, Common: n.Runs, Force: req.Force}
	if v, err := s.d.catalog.Resolve(ctx, n.Runs); err == nil {
		c.Digest = v.Digest
	} else if name, _, _ := strings.Cut(n.Runs, "@"); name == o.Image {
		return web.Turned{}, &cluster.RefusedError{What: fmt.Sprintf("%s runs %s, which is not in the store any more: %v", n.Name, n.Runs, err), Hint: "let it become the latest version first, or bring that version back with doppel image pull"}
	}
	t := web.Turned{Image: o.Image, From: state.Pair.Active, To: req.To, Common: n.Runs, Warnings: s.turnWarnings(state, n, req), DryRun: req.DryRun}
	if _, err := s.d.cluster.Try(ctx, c); err != nil {
		return t, err
	}
	t.Generation = state.Pair.Generation + 1
	if req.DryRun {
		return t, nil
	}
	if c.Known, err = s.askBefore(ctx, state.Pair, req); err != nil {
		return t, err
	}
	if err := s.d.cluster.Commit(ctx, c); err != nil {
		return t, err
	}
	s.forgetRounds(o)
	t.Generation = s.d.cluster.Sync(o.Image).Generation()
	word := clone.PairWord{Image: o.Image, Generation: t.Generation, Source: true}
	if _, err := s.d.machines.AskPair(ctx, req.To, word); err != nil {
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s has not heard of it yet, and will be told when it asks for work: %v", req.To, err))
	} else {
		t.Told = true
	}
	o.loop.Changed()
	o.loop.Want()
	return t, nil
}

// askBefore asks the head that is to be the active one what it was told last.
// It gives the generation that the new one has to be above.
func (s *syncer) askBefore(ctx context.Context, p *cluster.Pair, req web.TurnRequest) (uint64, error) {
	known, err := s.d.machines.AskPair(ctx, req.To, clone.PairWord{})
	if refused, ok := errors.AsType[*cluster.RefusedError](err); ok {
		if req.Force {
			return 0, nil
		}
		return 0, &cluster.RefusedError{What: refused.What, Hint: "see that it is up and its doppel-agent.service runs; or add --force: it is then told when it asks for work, and until then may take orders from a doppel that has not heard of the turn"}
	}
	if err != nil {
		return 0, err
	}
	highest := max(known.Generation, s.d.machines.Knows(p.Heads[0]), s.d.machines.Knows(p.Heads[1]))
	return highest, overtaken(req.To, known.Generation, p, req.Force)
}

// overtaken refuses a turn by a doppel whose state is older than what a head was
// told, unless it is forced.
func overtaken(head string, knows uint64, p *cluster.Pair, force bool) error {
	if knows <= p.Generation || force {
		return nil
	}
	return &cluster.RefusedError{
		What: fmt.Sprintf("%s was told generation %d of the direction by another doppel, and this one knows %d", head, knows, p.Generation),
		Hint: "this doppel's state is older: turn the direction there; or, if this one is the one to go by, stop that one and add --force",
	}
}

// turnWarnings say what a turn will mean, in words.
func (s *syncer) turnWarnings(state cluster.Sync, n cluster.Node, req web.TurnRequest) []string {
	warnings := []string{}
	old := state.Pair.Active
	if n.Name == old {
		return warnings
	}
	if d := n.Parted; d.Open() && !d.Compared.IsZero() {
		warnings = append(warnings, fmt.Sprintf("%d paths of %s that nobody has decided on (%d of them changed on both sides) are taken for right: %s gets them; what %s has there stays in the versions of %s", d.Own, n.Name, d.Both, old, old, state.Image))
	}
	if good := state.Good; good != nil && good.Generation == state.Pair.Generation && good.Version != n.Runs {
		warnings = append(warnings, fmt.Sprintf("%s runs %s, and %s was at %s: what it lacks is kept on %s as changed there since %s", n.Name, n.Runs, old, good.Version, old, n.Runs))
	}
	if other, ok := s.d.cluster.Node(old); !ok || other.Key == "" {
		warnings = append(warnings, fmt.Sprintf("%s is not a node with an agent: it cannot follow before doppel node enlist makes it one", old))
	}
	return warnings
}

// forgetRounds ends the round under way, and forgets what was not kept of those
// before: they were of another source.
func (s *syncer) forgetRounds(o *oneSync) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = nil
	if o.turned != nil {
		o.turned(errTurned)
	}
}
