package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"doppel/cluster"
	"doppel/imaging"
	resync "doppel/sync"
	"doppel/web"
)

const (
	// rollEvery is how often it is looked whether nodes are to be updated
	// though nothing has changed: only time passes.
	rollEvery = 30 * time.Second
	// rollPause is how much is let happen before that is looked at: the
	// progress of a thousand nodes changes all the time.
	rollPause = 200 * time.Millisecond
)

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pruneEvery is how often versions are removed that no rule keeps: it takes a look
// at all that stay, and a loop may make one every few seconds.
const pruneEvery = 10 * time.Minute

// syncer keeps nodes equal to images: it captures the sources, orders the
// updates, and removes versions that no rule keeps.
type syncer struct {
	d     *daemon
	log   *slog.Logger
	syncs []*oneSync
}

// oneSync is one [[sync]].
type oneSync struct {
	syncConfig
	loop *resync.Loop

	far    *farEnd   // of captures, between rounds; nil: none is kept. The loop's own
	pruned time.Time // likewise

	mu      sync.Mutex
	running time.Time      // since when a round is under way
	last    *cluster.Round // newer than the cluster's state: nothing had changed
	tries   map[string]int // how often a node that failed was tried again
	stopped string
	turned  context.CancelCauseFunc // ends the round under way; nil: none is
}

func newSyncer(d *daemon) *syncer {
	s := &syncer{d: d, log: d.log.With("part", "sync")}
	for _, c := range d.config.Syncs {
		o := &oneSync{syncConfig: c, tries: map[string]int{}}
		o.Capture.open = func(ctx context.Context, node string) (net.Conn, error) {
			return d.machines.OpenCapture(ctx, node, o.stays())
		}
		o.Capture.state = d.g.state
		o.loop = resync.NewLoop(c.Schedule, func(ctx context.Context, wanted bool) { s.round(ctx, o, wanted) }, func() resync.Last { return s.lastOf(o) })
		s.syncs = append(s.syncs, o)
	}
	return s
}

// run runs everything until ctx ends.
func (s *syncer) run(ctx context.Context, group *errgroup.Group) {
	for _, o := range s.syncs {
		if o.captures() {
			group.Go(func() error {
				defer func() { s.leave(o) }()
				o.loop.Run(ctx)
				return nil
			})
		}
		if len(o.Nodes) > 0 {
			group.Go(func() error { s.follow(ctx, o); return nil })
		}
	}
}

func (s *syncer) lastOf(o *oneSync) resync.Last {
	state := s.state(o)
	l := resync.Last{Failures: state.Failures, Paused: !state.Paused.IsZero()}
	if state.Last != nil {
		l.Begun, l.Ended = state.Last.Begun, state.Last.Ended
	}
	return l
}

// state is how the sync stands, the last rounds that changed nothing included.
func (s *syncer) state(o *oneSync) cluster.Sync {
	state := s.d.cluster.Sync(o.Image)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last != nil && state.Failures == 0 && (state.Last == nil || state.Last.Ended.Before(o.last.Ended)) {
		state.Last, state.Good = new(*o.last), new(*o.last)
	}
	return state
}

// keepEvery is how old the state's word on rounds that change nothing may get:
// each word is an fsync, and a loop may run every few seconds.
const keepEvery = time.Minute

// round captures the source once, and keeps what came of it. Somebody who
// wanted it waits for the state to tell.
func (s *syncer) round(ctx context.Context, o *oneSync, wanted bool) {
	begun := s.d.cluster.Now()
	o.mu.Lock()
	o.running = begun
	o.mu.Unlock()
	before := s.d.cluster.Sync(o.Image)
	full := !before.Full.IsZero() && begun.Sub(before.Full) >= o.FullEvery
	generation := before.Generation()
	report, err := s.capture(o.turnable(ctx), o, full)
	o.mu.Lock()
	o.turned(nil)
	o.running, o.turned = time.Time{}, nil
	o.mu.Unlock()
	if ctx.Err() != nil || s.d.cluster.Sync(o.Image).Generation() != generation {
		return // the daemon ends, or the direction was turned: this was no failure of anybody's
	}
	r := cluster.Round{Begun: begun, Ended: s.d.cluster.Now(), Full: full, Generation: generation}
	switch {
	case report != nil:
		r.Version, r.Unchanged = fmt.Sprintf("%s@%d", report.Image, report.Version), report.Unchanged
		r.Read, r.Sent, r.Added, r.Unstable = report.BytesRead, report.BytesSent, report.BytesAdded, len(report.Unstable)
		r.Watched, r.Rescan, r.Missed = report.Watched, report.Rescan, someOf(report.Missed)
		r.Restless = someOf(report.Unstable)
		if err != nil {
			s.log.Warn("after the capture", "image", o.Image, "error", err)
		}
	default:
		r.Failed = err.Error()
		s.log.Error("the round failed", "image", o.Image, "source", s.sourceOf(o), "error", err)
	}
	known := before.Current() && (r.Rescan == "" || before.Last != nil && before.Last.Rescan == r.Rescan)
	if !wanted && !full && known && r.Failed == "" && r.Unchanged && before.Failures == 0 && before.Last != nil && r.Ended.Sub(before.Last.Ended) < keepEvery {
		o.mu.Lock()
		o.last = &r
		o.mu.Unlock()
		return
	}
	if err := s.d.cluster.Commit(ctx, cluster.EndRound{Image: o.Image, Round: r}); err != nil {
		s.log.Error("keeping how a round ended", "image", o.Image, "error", err)
	}
	if r.Failed == "" && !r.Unchanged {
		s.log.Info("a new version", "image", r.Version, "read", r.Read, "sent", r.Sent, "added", r.Added)
		if r.Unstable > 0 {
			s.log.Warn("files never held still", "image", r.Version, "files", r.Restless)
		}
		if !o.stays() || r.Ended.Sub(o.pruned) >= pruneEvery {
			o.pruned = r.Ended
			s.prune(ctx, o)
		}
	}
}

// someOf lists paths in words: a few of them, and how many more there are.
func someOf(paths []string) string {
	const few = 5
	var names []string
	for _, p := range paths[:min(few, len(paths))] {
		names = append(names, strconv.Quote(p))
	}
	text := strings.Join(names, ", ")
	if more := len(paths) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// capture is one capture of the source, which is read anew if that is due.
func (s *syncer) capture(ctx context.Context, o *oneSync, full bool) (*imaging.CaptureReport, error) {
	flags := o.Capture
	flags.full = full
	source := s.sourceOf(o)
	if o.far != nil && o.far.host.name != source {
		s.leave(o) // the direction was turned
	}
	if o.far == nil {
		h, err := reach(ctx, &flags, source)
		if err != nil {
			return nil, err
		}
		o.far = &farEnd{host: h}
		if o.Watch {
			o.far.watch = &imaging.Watch{RescanEvery: o.Rescan}
		}
	}
	h := o.far.host
	if o.stays() {
		h = o.far.through()
	}
	flags.watch = o.far.watch
	report, err := captureBetween(ctx, s.d.g, flags, s.d.catalog, h, io.Discard)
	if err != nil || !o.stays() {
		s.leave(o)
	}
	return report, err
}

// stayFor is the longest time between rounds for which a source is not left: to
// reach it anew takes as long as a round that changes nothing, but what stays
// there takes memory.
const stayFor = time.Minute

func (o *oneSync) stays() bool { return o.Watch || o.Source != local && o.Schedule.Every <= stayFor }

// farEnd is a source that was reached, with the far end of captures there once
// one has begun.
type farEnd struct {
	host  *host
	src   imaging.Source
	watch *imaging.Watch // nil: it is not watched
}

// through is the host, whose captures leave the far end as it is.
func (f *farEnd) through() *host {
	h := *f.host
	h.stays = true
	h.source = func(ctx context.Context) (imaging.Source, error) {
		if f.src == nil {
			src, err := f.host.source(ctx)
			if err != nil {
				return nil, err
			}
			f.src = src
		}
		return f.src, nil
	}
	return &h
}

// leave leaves a sync's source, if it was reached.
func (s *syncer) leave(o *oneSync) {
	if o.far == nil {
		return
	}
	var err error
	if o.far.src != nil {
		err = o.far.src.Close()
	}
	if err = errors.Join(err, o.far.host.close()); err != nil {
		s.log.Warn("leaving the source", "source", o.far.host.name, "error", err)
	}
	o.far = nil
}

// prune removes versions that no rule keeps.
func (s *syncer) prune(ctx context.Context, o *oneSync) {
	if o.Retain.IsZero() {
		return
	}
	versions, err := s.versions(ctx, o)
	if err != nil {
		s.log.Error("looking for versions to remove", "image", o.Image, "error", err)
		return
	}
	var remove []imaging.Version
	_, gone := o.Retain.Apply(versions)
	nodes, syncs := s.d.cluster.Nodes(), s.d.cluster.Syncs()
	for _, v := range gone {
		if userOf(nodes, syncs, v.Ref()) == "" {
			remove = append(remove, v)
		}
	}
	if len(remove) == 0 {
		return
	}
	report, err := s.d.catalog.Prune(ctx, imaging.PruneOptions{Remove: remove, Repack: true})
	if err != nil && ctx.Err() == nil {
		s.log.Error("removing versions", "image", o.Image, "error", err)
		return
	}
	s.log.Info("removed versions that no rule keeps", "image", o.Image, "versions", len(report.Removed), "freed", report.Freed)
}

// follow orders updates until ctx ends.
func (s *syncer) follow(ctx context.Context, o *oneSync) {
	tick := time.NewTicker(rollEvery)
	defer tick.Stop()
	for changed := s.d.cluster.Watch(ctx); ; {
		if err := s.roll(ctx, o); err != nil && ctx.Err() == nil {
			s.log.Error("ordering updates", "image", o.Image, "error", err)
		}
		select {
		case _, ok := <-changed:
			if !ok {
				return
			}
			pause(ctx, rollPause)
		case <-tick.C:
		}
	}
}

// versions are those of the sync's image, the oldest first.
func (s *syncer) versions(ctx context.Context, o *oneSync) ([]imaging.Version, error) {
	list, err := s.d.catalog.List(ctx)
	return slices.DeleteFunc(list, func(v imaging.Version) bool { return v.Image != o.Image }), err
}

// roll orders the updates that are due.
func (s *syncer) roll(ctx context.Context, o *oneSync) error {
	if !s.d.cluster.Sync(o.Image).Paused.IsZero() {
		return nil
	}
	versions, err := s.versions(ctx, o)
	if err != nil || len(versions) == 0 {
		return err
	}
	v := versions[len(versions)-1]
	if !s.current(o, v.Ref()) {
		return nil // the active head has not been captured yet since the direction was turned
	}
	nodes, err := s.followers(o)
	if err != nil {
		return err
	}
	r := resync.Roll(v.Ref(), s.judge(o, nodes), o.AtOnce)
	o.mu.Lock()
	fresh := r.Stopped != "" && r.Stopped != o.stopped
	o.stopped = r.Stopped
	o.mu.Unlock()
	if fresh && len(r.Behind) > 1 {
		s.log.Warn("no more nodes are updated: one has failed", "image", v.Ref(), "node", r.Stopped)
	}
	var changes []cluster.Change
	for _, name := range r.Order {
		i := slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == name })
		o.tried(nodes[i], v.Ref())
		changes = append(changes, cluster.OrderUpdate{Node: name, ID: "sync-" + strings.ToLower(rand.Text()), Image: v.Ref(), Digest: v.Digest})
	}
	return s.d.cluster.Commit(ctx, changes...)
}

// tried counts how often a node has failed on a version, as it is tried again.
func (o *oneSync) tried(n cluster.Node, version string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tries[n.Name]++; n.Update == nil || n.Update.Failed == "" || n.Update.Image != version {
		delete(o.tries, n.Name)
	}
}

// followers are the nodes that follow the sync's image and can be updated.
func (s *syncer) followers(o *oneSync) ([]cluster.Node, error) {
	var out []cluster.Node
	all := s.d.cluster.Nodes()
	seen := map[string]bool{}
	for _, expression := range o.Nodes {
		nodes, err := cluster.Select(all, expression)
		if err != nil && !isUnknown(err) {
			return nil, err
		}
		for _, n := range nodes {
			if !seen[n.Name] {
				seen[n.Name] = true
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// judge says how nodes stand towards the image.
func (s *syncer) judge(o *oneSync, nodes []cluster.Node) []resync.Follower {
	now := s.d.cluster.Now()
	var out []resync.Follower
	for _, n := range nodes {
		// Only what runs some version of this image follows it: a node that
		// was given another one is somebody's decision.
		name, _, _ := strings.Cut(n.Runs, "@")
		if n.State != cluster.Installed || n.Key == "" || name != o.Image || s.isSource(o, n) {
			continue
		}
		f := resync.Follower{Node: n.Name, Runs: n.Runs, Up: up(n, now), Held: n.Held}
		switch {
		case n.Update.Pending():
			f.Pending, f.Begun = n.Update.Image, !n.Update.Begun.IsZero() || len(n.Update.Paths) > 0
		case n.Update != nil && n.Update.Failed != "":
			f.Failed = n.Update.Image
			f.Retry = !now.Before(n.Update.Ended.Add(s.patience(o, n)))
		}
		out = append(out, f)
	}
	return out
}

// up tells whether a node was heard from lately.
func up(n cluster.Node, now time.Time) bool { return n.UpAt(now) }

// patience is how long a node that failed is left alone: twice as long each
// time, an hour at most.
func (s *syncer) patience(o *oneSync, n cluster.Node) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return min(time.Hour, time.Minute<<min(o.tries[n.Name], 6))
}

// policy is what holds for a node's updates.
func (s *syncer) policy(n cluster.Node) web.Policy {
	if n.Update == nil {
		return web.Policy{}
	}
	image, _, _ := strings.Cut(n.Update.Image, "@")
	for _, o := range s.syncs {
		if o.Image == image {
			return web.Policy{Keep: o.Keep, Pre: o.Pre, Post: o.Post}
		}
	}
	return web.Policy{}
}

// Status tells how every sync stands.
func (s *syncer) Status(ctx context.Context) ([]web.SyncStatus, error) {
	now := s.d.cluster.Now()
	out := make([]web.SyncStatus, 0, len(s.syncs))
	for _, o := range s.syncs {
		state := s.state(o)
		st := web.SyncStatus{Sync: state, Source: s.sourceOf(o), Exclude: o.Capture.exclude, Nodes: []web.SyncNode{}}
		captured := map[string]time.Time{}
		versions, err := s.versions(ctx, o)
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			st.Versions++
			st.Latest, st.Captured = v.Ref(), v.Time
			captured[v.Ref()] = v.Time
		}
		o.mu.Lock()
		st.Running, st.Stopped = o.running, o.stopped
		o.mu.Unlock()
		if o.captures() {
			st.Every, st.Watch = web.Duration(o.Schedule.Every), o.Watch
			if l := s.lastOf(o); !l.Paused && st.Running.IsZero() {
				st.Next = o.Schedule.Next(l.Begun, l.Ended, l.Failures, 0, now)
			}
		}
		nodes, err := s.followers(o)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			sn := web.SyncNode{Node: n, Up: up(n, now), Behind: n.Runs != st.Latest, Source: s.isSource(o, n)}
			switch {
			case !sn.Behind && state.Good != nil && state.Good.Version == n.Runs:
				sn.Lag = now.Sub(state.Good.Begun)
			case !captured[n.Runs].IsZero():
				sn.Lag = now.Sub(captured[n.Runs])
			}
			st.Nodes = append(st.Nodes, sn)
		}
		out = append(out, st)
	}
	return out, nil
}

// Changed says that somebody has paused or resumed something.
func (s *syncer) Changed() {
	for _, o := range s.syncs {
		o.loop.Changed()
	}
}

// Want asks for a round of an image's source.
func (s *syncer) Want(image string) {
	for _, o := range s.syncs {
		if o.Image == image {
			o.loop.Want()
		}
	}
}
