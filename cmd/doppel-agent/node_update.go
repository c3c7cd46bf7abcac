package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"doppel/clone"
)

// updatePatience is how long a node that is refused its work waits before it
// asks again.
const updatePatience = time.Minute

// idlePause is how long a node leaves the head alone that had nothing to do.
const idlePause = time.Second

// obey does what the head asks for, until ctx is done.
func (n *node) obey(ctx context.Context, log *slog.Logger) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Warn("this boot has no id", "err", err)
	}
	self, err := ownDigest()
	if err != nil {
		log.Warn("this agent cannot read itself", "err", err)
	}
	var captures sync.WaitGroup // that go on beside
	defer captures.Wait()
	var refused *clone.AgentRefusal
	var since time.Time
	for ctx.Err() == nil {
		if time.Since(since) >= refusedFor {
			refused = nil
		}
		var t clone.Task
		idle := clone.Idle{BootID: strings.TrimSpace(string(boot)), Agent: self, AgentRefused: refused}
		if idle.Pair, err = n.pair(); err != nil {
			log.Error("what this node was told of its pair cannot be read", "err", err)
			n.rest(ctx, updatePatience)
			continue
		}
		_, err := n.head.ask(ctx, "/v1/task", idle, &t)
		var no *refusal
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &no):
			log.Error("the head has no work for this node", "err", err)
			n.rest(ctx, updatePatience)
		case t.Agent != nil:
			err := n.renew(ctx, log, t.Agent)
			switch {
			case err == nil || ctx.Err() != nil:
			case errors.Is(err, errFetch):
				log.Warn("the head's agent did not arrive", "err", err)
				n.rest(ctx, updatePatience)
			default:
				log.Error("the head's agent is not used", "err", err)
				refused, since = &clone.AgentRefusal{Digest: t.Agent.Digest, Why: err.Error()}, time.Now()
			}
		case t.Update != nil:
			n.carryOut(ctx, log, t.Update)
		case t.Drift != nil:
			n.answerDrift(ctx, log, t.Drift)
		case t.Capture != nil:
			n.serveCapture(ctx, log, t.Capture, &captures)
		case t.Pair != nil:
			n.hearPair(ctx, log, t.Pair)
		default:
			sleep(ctx, idlePause) // the head has let this node wait already
		}
	}
}

// sleep waits, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// carryOut updates this node and tells the head how that ended. An update that
// is interrupted is not at its end: the head gives it again.
func (n *node) carryOut(ctx context.Context, log *slog.Logger, o *clone.UpdateOrders) {
	log.Info("updating", "to", o.Image)
	result, err := n.update(ctx, log, o)
	var no *refusal
	switch {
	case ctx.Err() != nil:
		return
	case errors.As(err, &no):
		log.Warn("the update was stopped by the head", "to", o.Image, "err", err)
		n.hold(ctx, err)
		return
	case err != nil:
		log.Error("the update failed", "to", o.Image, "err", err)
	default:
		log.Info("updated", "to", o.Image, "seconds", result.Seconds)
	}
	word := clone.UpdateWord{Report: clone.Report{Install: o.ID, Stage: clone.StageFinish}, Result: brief(result)}
	if err != nil {
		word.Stage, word.Detail = clone.StageFailed, clip(err.Error())
	}
	if err := n.tell(ctx, "/v1/update", word); err != nil && ctx.Err() == nil {
		log.Warn("the head does not want to know how the update ended", "err", err)
	}
}

// tell gives the head a word on what it has asked for.
func (n *node) tell(ctx context.Context, path string, word any) error {
	_, err := n.head.ask(ctx, path, word, nil)
	n.hold(ctx, err)
	return err
}

// hold waits after a refusal that does not say that nobody wants the word any
// more: asked for work, the head would give the same again at once, without end.
func (n *node) hold(ctx context.Context, err error) {
	var no *refusal
	if errors.As(err, &no) && no.status != http.StatusForbidden {
		n.rest(ctx, updatePatience)
	}
}

// brief is a report without the lists that grow with the image, of which the
// head keeps counts.
func brief(r *clone.UpdateReport) *clone.UpdateReport {
	if r == nil || r.Apply == nil {
		return r
	}
	short, apply := *r, *r.Apply
	apply.Withheld, apply.Losses = nil, nil
	short.Apply = &apply
	return &short
}

// update makes this node what the orders say.
func (n *node) update(ctx context.Context, log *slog.Logger, o *clone.UpdateOrders) (*clone.UpdateReport, error) {
	if err := n.permit(o); err != nil {
		return nil, err
	}
	plan, disk, err := n.installed()
	if err != nil {
		return nil, err
	}
	manifest, vault, err := openImage(ctx, &o.Access, n.tables())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.work, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := startReporter(ctx, n.head, "/v1/update", cancel)
	options := clone.UpdateOptions{Root: n.root, Work: n.work, Disk: disk, Orders: *o, Report: r.report, Log: log}
	p, err := n.part(ctx, plan, manifest, o, r.report)
	var result *clone.UpdateReport
	if err == nil {
		if p != nil {
			options.Own, options.Skip = p.keeps, p.skips
		}
		if result, err = clone.Update(ctx, n.machine, plan, manifest, vault, options); err == nil {
			result.Kept, err = n.updated(p, o)
		}
	}
	debug.FreeOSMemory() // there is nothing to do for a while
	cause := context.Cause(ctx)
	cancel(nil)
	<-r.ended
	var no *refusal
	if errors.As(cause, &no) {
		return result, no
	}
	return result, err
}

// installed reads what this node was installed as, and finds its disk.
func (n *node) installed() (plan *clone.Plan, disk string, err error) {
	name := filepath.Join(n.dir, "plan.json")
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("reading what this node was installed as: %w; install it anew with doppel deploy", err)
	}
	if plan, err = clone.DecodePlan(text); err != nil {
		return nil, "", fmt.Errorf("%s: %w; install this node anew with doppel deploy", name, err)
	}
	if disk, err = n.disk(); err != nil {
		return nil, "", err
	}
	if plan.Found != nil && plan.Firmware == clone.BIOS {
		disk = startedByGRUB(disk, sysfs("/sys").disks())
	}
	return plan, disk, nil
}

// startedByGRUB is the disk whose first sector has GRUB: the one given, or else
// the only other one; empty: none has, or several have.
func startedByGRUB(disk string, disks []clone.Disk) string {
	has := func(name string) bool {
		f, err := os.Open(name)
		if err != nil {
			return false
		}
		defer f.Close() // it was only read
		b := make([]byte, 512)
		_, err = io.ReadFull(f, b)
		return err == nil && bytes.Contains(b[:440], []byte("GRUB"))
	}
	if has(disk) {
		return disk
	}
	var found []string
	for _, d := range disks {
		if has(d.Path) {
			found = append(found, d.Path)
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return ""
}
