package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"syscall"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
	resync "doppel/sync"
)

// maxOwn is how many paths a head keeps that parted from its other: one that
// has more is another system.
const maxOwn = 100_000

// partedState is parted.json: what this head has of its own since it and the
// one that took over parted.
type partedState struct {
	Base   string     `json:"base"` // NAME@VERSION that both had in common
	Digest string     `json:"digest"`
	Begun  []begun    `json:"begun,omitempty"` // versions that the tree may have become in part
	Known  bool       `json:"known,omitempty"` // an update has succeeded: Own is all there is
	Own    []ownState `json:"own,omitempty"`
}

// begun is a version that an update towards has begun, or is about to.
type begun struct {
	Image    string   `json:"image"`
	Manifest store.ID `json:"manifest"`
	Digest   string   `json:"digest"`
}

// ownState is a resync.Own whose path may be any bytes.
type ownState struct {
	resync.Own
	Raw []byte `json:"raw,omitempty"` // the path, when it is not UTF-8
}

func encodeParted(s partedState) ([]byte, error) {
	s.Own = slices.Clone(s.Own)
	for i, o := range s.Own {
		if !utf8.ValidString(o.Path) {
			s.Own[i].Path, s.Own[i].Raw = "", []byte(o.Path)
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", partedFile, err)
	}
	return append(b, '\n'), nil
}

func decodeParted(b []byte) (partedState, error) {
	var s partedState
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", partedFile, err)
	}
	for i := range s.Own {
		o := &s.Own[i]
		if len(o.Raw) > 0 {
			o.Path, o.Raw = string(o.Raw), nil
		}
		if o.Path == "" || !filepath.IsLocal(o.Path) || filepath.Clean(o.Path) != o.Path {
			return s, fmt.Errorf("read %s: %q is no path below the root", partedFile, o.Path)
		}
		if o.How != resync.WasAdded && o.How != resync.WasChanged && o.How != resync.WasRemoved {
			return s, fmt.Errorf("read %s: %q: %q is nothing that happens to a path", partedFile, o.Path, o.How)
		}
	}
	if s.Digest == "" || len(s.Own) > maxOwn {
		return s, fmt.Errorf("read %s: it is of no version, or lists too much", partedFile)
	}
	return s, nil
}

// readParted reads what this head has of its own; nil: nothing is known.
func (n *node) readParted() (*partedState, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, partedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := decodeParted(b)
	return &s, err
}

func (n *node) writeParted(s *partedState) error {
	if len(s.Own) > maxOwn {
		return fmt.Errorf("%d paths were changed on this head since %s, which is more than can be kept (%d): install it anew, or undo what was not meant", len(s.Own), s.Base, maxOwn)
	}
	b, err := encodeParted(*s)
	if err != nil {
		return err
	}
	return n.keep(partedFile, b)
}

// ownPaths lists what this head keeps until somebody decides.
func (n *node) ownPaths() ([]resync.Own, error) {
	s, err := n.readParted()
	if err != nil || s == nil {
		return nil, err
	}
	return s.list(), nil
}

func (s *partedState) list() []resync.Own {
	out := make([]resync.Own, len(s.Own))
	for i, o := range s.Own {
		out[i] = o.Own
	}
	return out
}

func (s *partedState) set(own []resync.Own) {
	s.Own = make([]ownState, len(own))
	for i, o := range own {
		s.Own[i].Own = o
	}
}

// parting is one update of a head that parted from its other.
type parting struct {
	state *partedState
	merge *resync.Merge
	// Until an update has succeeded, what changes while one runs is this
	// head's own as well; see late.
	since   time.Time
	root    string
	base    *imaging.Manifest
	target  *imaging.Manifest
	allowed func(string) bool
	late    []resync.Own
}

// part finds out, before an update, what on this head is its own: nil when
// nothing can be. Nothing of the tree is touched.
func (n *node) part(ctx context.Context, plan *clone.Plan, target *imaging.Manifest, o *clone.UpdateOrders, say func(clone.Report)) (*parting, error) {
	switch {
	case len(o.Paths) > 0:
		return nil, nil // those are decided
	case o.Parted == nil:
		return nil, n.forget(partedFile)
	}
	target, err := clone.Permitted(target, plan.Role)
	if err != nil {
		return nil, err
	}
	base, err := n.version(ctx, plan, o.Access, o.Parted.Manifest, o.Parted.Digest)
	if err != nil {
		return nil, fmt.Errorf("reading %s, which both heads had in common: %w", o.Parted.Base, err)
	}
	foreign, err := plan.ForeignMounts(n.root)
	if err != nil {
		return nil, err
	}
	table := clone.Identity(plan.Role)
	p := &parting{root: n.root, base: base, target: target, allowed: func(path string) bool {
		_, ok := table.Match(path)
		return ok || clone.MatchAny(o.Keep, path)
	}}
	if p.state, err = n.readParted(); err != nil {
		return nil, err
	}
	if p.state == nil || p.state.Digest != o.Parted.Digest {
		p.state = &partedState{Base: o.Parted.Base, Digest: o.Parted.Digest}
	}
	c := &comparison{n: n, plan: plan, foreign: foreign, say: func(detail string, done, total int64) {
		say(clone.Report{Install: o.ID, Stage: clone.StageCheck, Detail: detail, Done: done, Total: total})
	}}
	own := p.state.list()
	if !p.state.Known {
		if own, err = c.changed(ctx, p, o); err != nil {
			return nil, err
		}
	}
	if own, err = c.undecided(ctx, target, own); err != nil {
		return nil, err
	}
	p.merge = resync.NewMerge(base, target, own)
	p.state.set(p.merge.Own)
	return p, n.writeParted(p.state)
}

// version reads one more manifest of those that orders give access to.
func (n *node) version(ctx context.Context, plan *clone.Plan, a clone.Access, manifest store.ID, digest string) (*imaging.Manifest, error) {
	a.Manifest, a.Digest, a.Packs = manifest, digest, []store.ID{} // no content is wanted
	m, err := openManifest(ctx, &a)
	if err != nil {
		return nil, err
	}
	return clone.Permitted(m, plan.Role)
}

// comparison compares this head's tree with versions.
type comparison struct {
	n       *node
	plan    *clone.Plan
	foreign map[string]bool
	say     func(detail string, done, total int64)
}

// compareTries is how often a tree is compared in which files come and go.
const compareTries = 5

// tree compares by content, at the paths that only, if any, lists.
func (c *comparison) tree(ctx context.Context, m *imaging.Manifest, only map[string]bool, detail string) ([]imaging.Difference, error) {
	ways := map[string]bool{}
	for p := range only {
		for dir := filepath.Dir(p); dir != "." && !ways[dir]; dir = filepath.Dir(dir) {
			ways[dir] = true
		}
	}
	skip := func(p string) bool {
		return c.foreign[p] || only != nil && p != "." && !only[p] && !ways[p]
	}
	for try := 1; ; try++ {
		d, err := imaging.CompareTree(ctx, m, c.n.root, imaging.CompareOptions{Skip: skip, Progress: func(done, total int64) { c.say(detail, done, total) }})
		if try < compareTries && errors.Is(err, fs.ErrNotExist) {
			continue // a file went away meanwhile
		}
		return d, err
	}
}

// changed finds what was changed on this head since base. What an update that
// was cut off has brought was not.
func (c *comparison) changed(ctx context.Context, p *parting, o *clone.UpdateOrders) ([]resync.Own, error) {
	s := p.state
	before := slices.Clone(s.Begun)
	if to := (begun{Image: o.Image, Manifest: o.Manifest, Digest: o.Digest}); !slices.Contains(before, to) {
		s.Begun = append(s.Begun, to)
	}
	// It is durable before anything is touched by this update; its time is that
	// of the file system, from which on changes are new.
	if err := c.n.writeParted(s); err != nil {
		return nil, err
	}
	fi, err := os.Stat(filepath.Join(c.n.dir, partedFile))
	if err != nil {
		return nil, err
	}
	p.since = changedAt(fi)
	differences, err := c.tree(ctx, p.base, nil, "comparing with "+s.Base+", which both heads had in common")
	if err != nil {
		return nil, err
	}
	if differences, err = c.insides(differences); err != nil {
		return nil, err
	}
	candidates := resync.DifferAt(p.base, differences, false).Paths()
	var elsewhere []resync.Differing
	for _, b := range s.Begun {
		m := p.target
		if b.Digest != o.Digest {
			m, err = c.n.version(ctx, c.plan, o.Access, b.Manifest, b.Digest)
			if _, gone := errors.AsType[*store.MissingError](err); gone {
				continue // it was pruned; what it brought counts as changed here
			}
			if err != nil {
				return nil, err
			}
		}
		d, err := c.tree(ctx, m, candidates, "comparing with "+b.Image)
		if err != nil {
			return nil, err
		}
		elsewhere = append(elsewhere, resync.DifferAt(m, d, slices.Contains(before, b)))
	}
	// What was found before the update that was cut off is this head's own
	// still: that one has left it as it was.
	own := resync.Joined(s.list(), resync.ChangedSince(differences, elsewhere, p.allowed))
	if len(own) > maxOwn {
		return nil, &clone.RefusedError{
			What: fmt.Sprintf("%d paths were changed on %s since %s, which is more than can be kept", len(own), c.plan.Node, s.Base),
			Hint: "install it anew with doppel deploy, or undo there what was not meant",
		}
	}
	return own, nil
}

// undecided are those of own that are not as in the version by now.
func (c *comparison) undecided(ctx context.Context, target *imaging.Manifest, own []resync.Own) ([]resync.Own, error) {
	if len(own) == 0 {
		return nil, nil
	}
	only := map[string]bool{}
	for _, o := range own {
		only[o.Path] = true
	}
	d, err := c.tree(ctx, target, only, "looking for what was decided")
	if err != nil {
		return nil, err
	}
	differs := resync.DifferAt(target, d, false)
	return slices.DeleteFunc(own, func(o resync.Own) bool { return !differs.At(o.Path) }), nil
}

// insides adds what is in directories that stand where the version has
// something else: a comparison ends there.
func (c *comparison) insides(differences []imaging.Difference) ([]imaging.Difference, error) {
	var more []imaging.Difference
	for _, d := range differences {
		if d.Kind != imaging.DiffType || d.Have != imaging.Directory.String() {
			continue
		}
		err := filepath.WalkDir(filepath.Join(c.n.root, d.Path), func(at string, e fs.DirEntry, err error) error {
			p, rerr := filepath.Rel(c.n.root, at)
			switch {
			case errors.Is(err, fs.ErrNotExist) || p == d.Path && err == nil:
				return nil
			case err != nil || rerr != nil:
				return errors.Join(err, rerr)
			case c.foreign[p] && e.IsDir():
				return fs.SkipDir
			}
			more = append(more, imaging.Difference{Path: p, Kind: imaging.DiffExtra})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(more) == 0 {
		return differences, nil
	}
	all := slices.Concat(differences, more)
	slices.SortStableFunc(all, func(a, b imaging.Difference) int { return imaging.ComparePath(a.Path, b.Path) })
	return all, nil
}

func (p *parting) skips(path string) bool { return p.merge.Skips(path) }

// keeps tells whether this head keeps a path. It is asked of each as the update
// looks at the tree, before it changes anything.
func (p *parting) keeps(path string) bool {
	if p.merge.Keeps(path) {
		return true
	}
	if p.since.IsZero() || p.allowed(path) {
		return false
	}
	how, late := p.changedLate(path)
	if late {
		p.late = append(p.late, resync.Own{Path: path, How: how})
	}
	return late
}

// changedLate tells whether a path was changed since the comparison began, by
// the time of its inode, which nothing can set.
func (p *parting) changedLate(path string) (resync.How, bool) {
	fi, err := os.Lstat(filepath.Join(p.root, path))
	was := p.base.List.Get(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return resync.WasRemoved, was != nil && was.Kind != imaging.Directory && p.target.List.Get(path) != nil
	case err != nil || changedAt(fi).Before(p.since):
		return "", false
	case fi.IsDir():
		return resync.WasAdded, was == nil && p.target.List.Get(path) == nil
	case was == nil:
		return resync.WasAdded, true
	}
	return resync.WasChanged, true
}

func changedAt(fi fs.FileInfo) time.Time {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(st.Ctim.Unix())
}

// updated keeps what is left after an update that succeeded, and counts it.
func (n *node) updated(p *parting, o *clone.UpdateOrders) (*clone.Kept, error) {
	if len(o.Paths) > 0 {
		return n.decided(o.Paths)
	}
	if p == nil {
		return nil, nil
	}
	own := p.merge.Own
	if len(p.late) > 0 {
		own = resync.NewMerge(p.base, p.target, append(slices.Clone(own), p.late...)).Own
	}
	p.state.set(own)
	p.state.Known, p.state.Begun = true, nil
	return &clone.Kept{Own: len(own), Both: resync.Both(own)}, n.writeParted(p.state)
}

// decided takes off the list what was undone.
func (n *node) decided(paths []string) (*clone.Kept, error) {
	s, err := n.readParted()
	if err != nil || s == nil || !s.Known {
		return nil, err
	}
	own := slices.DeleteFunc(s.list(), func(o resync.Own) bool { return resync.Below(o.Path, paths) })
	s.set(own)
	return &clone.Kept{Own: len(own), Both: resync.Both(own)}, n.writeParted(s)
}
