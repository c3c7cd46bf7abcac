package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"doppel/clone"
	"doppel/imaging"
	resync "doppel/sync"
)

// maxDrift is how many differences of a kind are told; a tree that differs in
// more is another tree.
const maxDrift = 100_000

// answerDrift tells the head in what this node differs from an image.
func (n *node) answerDrift(ctx context.Context, log *slog.Logger, o *clone.DriftOrders) {
	word := clone.DriftWord{ID: o.ID}
	report, err := n.drift(ctx, o)
	if err == nil {
		word.Report, err = json.Marshal(report)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		log.Error("this node could not be compared", "with", o.Image, "err", err)
		word.Failed = clip(err.Error())
	}
	if err := n.tell(ctx, "/v1/drift", word); err != nil && ctx.Err() == nil {
		log.Warn("the head does not hear how this node differs", "err", err)
	}
}

// drift compares this node with an image.
func (n *node) drift(ctx context.Context, o *clone.DriftOrders) (resync.Report, error) {
	plan, _, err := n.installed()
	if err != nil {
		return resync.Report{}, err
	}
	m, err := openManifest(ctx, &o.Access)
	if err != nil {
		return resync.Report{}, err
	}
	if m, err = clone.Permitted(m, plan.Role); err != nil {
		return resync.Report{}, err
	}
	foreign, err := plan.ForeignMounts(n.root)
	if err != nil {
		return resync.Report{}, err
	}
	table := clone.Identity(plan.Role)
	allowed := func(p string, _ imaging.Difference) (string, bool) {
		if clone.MatchAny(o.Keep, p) {
			return "kept as the configuration says", true
		}
		r, ok := table.Match(p)
		return r.Words, ok
	}
	own, err := n.ownPaths()
	if err != nil {
		return resync.Report{}, err
	}
	report, err := resync.Drift(ctx, m, n.root, allowed, imaging.CompareOptions{Skip: func(p string) bool { return foreign[p] }, Trust: !o.Full})
	if err == nil && len(report.Differences) > maxDrift {
		err = fmt.Errorf("it differs in %d ways, which is another tree", len(report.Differences))
	}
	if len(report.Allowed) > maxDrift {
		report.Allowed = report.Allowed[:maxDrift]
	}
	report.Own = own
	return report, err
}
