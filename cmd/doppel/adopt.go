package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	resync "doppel/sync"
	"doppel/web"
)

// adoption is one sync drift --adopt.
type adoption struct {
	g       *globals
	catalog *imaging.Catalog
	node    cluster.Node
	image   string   // its name
	paths   []string // as the operator names them
	exclude []string // what captures of the image leave out
	yes     bool
	out     io.Writer
}

// runAdopt makes a new version of a node's image, with what was changed on the
// node at some paths.
func runAdopt(ctx context.Context, g *globals, name string, paths []string, yes bool, out io.Writer) error {
	n, err := g.client().Node(ctx, name)
	if err != nil {
		return err
	}
	a := &adoption{g: g, node: n, paths: paths, yes: yes, out: out}
	a.image, _, _ = strings.Cut(n.Runs, "@")
	syncs, err := g.client().Syncs(ctx)
	var none *web.Error
	if errors.As(err, &none) && none.Status == http.StatusConflict {
		syncs, err = nil, nil // no sync is configured
	}
	if err != nil {
		return err
	}
	if err := mayAdopt(syncs, n, a.image, paths); err != nil {
		return err
	}
	active, err := activeFor(syncs, n, a.image)
	if err != nil {
		return err
	}
	for _, s := range syncs {
		if s.Image == a.image {
			a.exclude = s.Exclude
		}
	}
	if a.catalog, err = g.catalog(); err != nil {
		return err
	}
	if active != "" {
		return a.own(ctx, active)
	}
	return a.whole(ctx)
}

// whole takes the paths with all that is below them.
func (a *adoption) whole(ctx context.Context) error {
	base, err := a.catalog.Resolve(ctx, a.node.Runs)
	if err != nil {
		return err
	}
	if err := confirm(ctx, a.yes, fmt.Sprintf("make a new version of %s with %s of %s?", a.image, a.named(), a.node.Name)); err != nil {
		return err
	}
	aside, remove, err := a.capture(ctx)
	if err != nil {
		return err
	}
	defer remove()
	v, fresh, err := a.catalog.Adopt(ctx, base, aside, a.paths)
	switch {
	case err != nil:
	case a.g.json:
		err = printJSON(a.out, v)
	case !fresh:
		_, err = fmt.Fprintf(a.out, "%s has all that already, no new version\n", v.Ref())
	default:
		_, err = fmt.Fprintf(a.out, "%s  %s\n", v.Ref(), v.Digest)
	}
	return err
}

// own takes, of a head that parted from the active one, what was changed there
// at the paths and below them, and nothing that is only older there. The active
// head is captured right before, so that what gives way is in a version.
func (a *adoption) own(ctx context.Context, active string) error {
	own, err := a.ownPaths(ctx)
	if err != nil {
		return err
	}
	question := fmt.Sprintf("make a new version of %s with %s that %s changed on %s at %s, and have %s, which is active, take it?",
		a.image, counted(len(own), "path"), wasWere(len(own)), a.node.Name, a.named(), active)
	if err := confirm(ctx, a.yes, question); err != nil {
		return err
	}
	aside, remove, err := a.capture(ctx)
	if err != nil {
		return err
	}
	defer remove()
	base, err := a.base(ctx, active)
	if err != nil {
		return err
	}
	v, order, err := a.catalog.AdoptOnly(ctx, base, aside, own, func(order []string) error { return a.mayOrder(ctx, active, base, order) })
	if err != nil {
		return err
	}
	return a.give(ctx, active, v, order)
}

func (a *adoption) named() string { return printable(strings.Join(a.paths, ", ")) }

func wasWere(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// ownPaths asks the node what was changed on it at the paths.
func (a *adoption) ownPaths(ctx context.Context) ([]string, error) {
	d, err := a.g.client().Drift(ctx, web.DriftRequest{Node: a.node.Name})
	if err != nil {
		return nil, err
	}
	var report resync.Report
	if err := json.Unmarshal(d.Report, &report); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", d.Node, err)
	}
	return ownBelow(a.node, report.Own, a.paths)
}

// ownBelow are the paths of own that are among those named, or below them.
func ownBelow(n cluster.Node, own []resync.Own, named []string) ([]string, error) {
	if n.Parted.Compared.IsZero() && len(own) == 0 {
		return nil, &hintError{fmt.Errorf("%s was not compared with %s yet, so nobody knows what was changed there since", n.Name, n.Parted.Base),
			"wait until its next update has succeeded: doppel sync status"}
	}
	var out []string
	found := make([]bool, len(named))
	for _, o := range own {
		at := false
		for i, name := range named {
			if resync.Below(o.Path, []string{path.Clean("/" + name)}) {
				found[i], at = true, true
			}
		}
		switch {
		case !at || o.Path == ".":
		case strings.ContainsRune(o.Path, utf8.RuneError): // JSON has put it there
			return nil, &hintError{fmt.Errorf("%s on %s has a name that is not UTF-8, and cannot be ordered", printable("/"+o.Path), n.Name), "take it to the other head by hand, and name what is beside it"}
		default:
			out = append(out, o.Path)
		}
	}
	for i, name := range named {
		if !found[i] {
			return nil, &hintError{fmt.Errorf("nothing at %s was changed on %s since %s", printable(name), n.Name, n.Parted.Base), "doppel sync drift " + n.Name + " lists what was"}
		}
	}
	return out, nil
}

// base has a round of the active head run, and gives what it was captured as.
func (a *adoption) base(ctx context.Context, active string) (imaging.Version, error) {
	ended, err := roundsNow(ctx, a.g.client(), []string{a.image}, func(s web.SyncStatus) {
		if !a.g.json {
			fmt.Fprintf(a.out, "%s: %s\n", s.Image, roundText(*s.Last))
		}
	})
	if err != nil {
		return imaging.Version{}, err
	}
	s := ended[0]
	switch {
	case s.Last.Failed != "":
		return imaging.Version{}, &hintError{fmt.Errorf("%s was not captured, so what gives way there would be in no version: %s", active, printable(s.Last.Failed)), "see doppel sync status, and try again"}
	case s.Pair == nil || s.Pair.Active != active || !s.Current():
		return imaging.Version{}, &hintError{errors.New("the direction was turned meanwhile"), "see doppel sync status"}
	}
	return a.catalog.Resolve(ctx, s.Last.Version)
}

// mayOrder refuses what the active head could not be ordered to take.
func (a *adoption) mayOrder(ctx context.Context, active string, base imaging.Version, order []string) error {
	switch {
	case len(order) == 0:
		return &hintError{fmt.Errorf("what was changed on %s at %s is not there any more, or is left out of %s", a.node.Name, a.named(), a.image), "doppel sync drift " + a.node.Name}
	case len(order) > cluster.MaxPaths:
		return &hintError{fmt.Errorf("what was changed on %s at %s are %d paths and trees, and %s can be ordered to take %d at once", a.node.Name, a.named(), len(order), active, cluster.MaxPaths),
			"name fewer of the directories that they are in, one --adopt after the other"}
	}
	_, err := a.g.client().Deploy(ctx, web.Deploy{Nodes: []string{active}, InPlace: true, Image: base.Ref(), Paths: order, DryRun: true})
	return err
}

// give has the active head take what was adopted of the other one, and waits
// for it.
func (a *adoption) give(ctx context.Context, active string, v imaging.Version, order []string) error {
	list, err := a.g.client().Deploy(ctx, web.Deploy{Nodes: []string{active}, InPlace: true, Image: v.Ref(), Paths: order})
	if err != nil {
		return err
	}
	if a.g.json {
		err = watchInstalls(ctx, a.g, a.g.client(), list, io.Discard)
		return errors.Join(printJSON(a.out, v), err)
	}
	fmt.Fprintf(a.out, "%s  %s\n%s takes %s; when it is captured next, %s is equal in that\n", v.Ref(), v.Digest, active, a.named(), a.node.Name)
	return watchInstalls(ctx, a.g, a.g.client(), list, a.out)
}

// capture captures the node as an image of its own, which stays until remove is
// called.
func (a *adoption) capture(ctx context.Context) (v imaging.Version, remove func(), err error) {
	o := captureFlags{name: "drift-" + a.node.Name, root: "/", exclude: a.exclude, open: openThrough(a.g.socket())}
	h, err := reach(ctx, &o, nodePrefix+a.node.Name)
	if err != nil {
		return v, nil, err
	}
	report, err := captureBetween(ctx, a.g, o, a.catalog, h, a.out)
	if err = errors.Join(err, h.close()); err != nil {
		return v, nil, err
	}
	v, err = a.catalog.Resolve(ctx, fmt.Sprintf("%s@%d", report.Image, report.Version))
	return v, func() {
		if _, err := a.catalog.Remove(context.WithoutCancel(ctx), v.Ref()); err != nil {
			newLog(os.Stderr).Warn("the capture of the node was not removed", "image", v.Ref(), "error", err)
		}
	}, err
}

// mayAdopt refuses what would be lost again, or belongs to one node.
func mayAdopt(syncs []web.SyncStatus, n cluster.Node, image string, paths []string) error {
	if n.State != cluster.Installed || n.Key == "" || image == "" {
		return &hintError{fmt.Errorf("%s runs nothing that doppel installed", n.Name), "see doppel status"}
	}
	table := clone.Identity(string(n.Role))
	for _, p := range paths {
		name := strings.Trim(path.Clean("/"+p), "/")
		if r, ok := table.Match(name); ok {
			return usagef("leave it out", "%s is %s's own: %s", printable(p), n.Name, r.Words)
		}
	}
	for _, s := range syncs {
		switch {
		case s.Image != image || s.Source == "":
		case partedFrom(n, image) && inPair(s):
			// The active head is given it as well.
		default:
			return &hintError{fmt.Errorf("%s is captured from %s, and the next round would undo it", image, s.Source), "make the change there"}
		}
	}
	return nil
}

func partedFrom(n cluster.Node, image string) bool { return n.Parted != nil && n.Parted.Image == image }

func inPair(s web.SyncStatus) bool { return s.Pair != nil && s.Pair.Active != "" }

// activeFor is the active head that is to take what is adopted of a node; empty:
// none is, for the node parted from no head of a pair.
func activeFor(syncs []web.SyncStatus, n cluster.Node, image string) (string, error) {
	if !partedFrom(n, image) {
		return "", nil
	}
	for _, s := range syncs {
		switch {
		case s.Image != image || !inPair(s):
		case s.Pair.Active == n.Name:
			return "", &hintError{fmt.Errorf("%s is the active head of %s, and what is changed there is captured anyway", n.Name, image), "doppel sync now " + image}
		case !s.Current():
			return "", &hintError{fmt.Errorf("%s has not been captured yet since it is the active head", s.Pair.Active), "doppel sync now " + image + " first"}
		default:
			return s.Pair.Active, nil
		}
	}
	if n.Parted.From == "" {
		return "", nil // it was enlisted, and no head takes what it has
	}
	return "", &hintError{fmt.Errorf("%s is kept between two heads no more", image), "leave it, or undo it with --revert"}
}
