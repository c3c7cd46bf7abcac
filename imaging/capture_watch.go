package imaging

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"doppel/imaging/store"
)

// Watch is what captures of one source under one name keep between them so that
// each looks only at what has changed since the one before. The source stays open
// all the while. The zero Watch knows of no capture yet. It
// serves one capture at a time.
type Watch struct {
	// RescanEvery is how often everything is looked at all the same, for what a
	// watch cannot see: writes through shared memory mappings, changes of inode
	// flags. Zero: each time.
	RescanEvery time.Duration

	mark    Mark      // of the last capture's scan; zero: the next scan is of everything
	version Version   // that it came to
	whole   time.Time // when a scan of everything began last
	extent  ScanRequest
	secrets []SecretFile // of that version
}

// maxMissed bounds how many of the changes that a watch has missed are named.
const maxMissed = 20

// watched is what one capture does with its Watch.
type watched struct {
	*Watch
	src     Watcher // nil: the source cannot watch, or nobody asked
	next    Mark
	since   Mark
	quiet   bool // nothing is known to have changed since the last capture
	rescans bool // as it is time to
}

// watching begins the capture's use of its Watch.
func (k *capture) watching() *watched {
	w := &watched{Watch: k.o.Watch}
	if w.Watch == nil {
		w.Watch = &Watch{}
		return w
	}
	src, ok := k.src.(Watcher)
	if !ok {
		return w
	}
	if !sameTree(w.extent, k.request()) {
		w.mark = 0
	}
	w.src, w.since = src, w.mark
	for w.next == 0 {
		w.next = Mark(rand.Uint64())
	}
	w.rescans = w.mark != 0 && (k.o.Full || k.started.Sub(w.whole) >= w.RescanEvery)
	return w
}

// unchanged gives the report of a capture of a source in which nothing has
// changed, without looking at it; nil: it is to be looked at.
func (k *capture) unchanged(ctx context.Context, w *watched) (*CaptureReport, error) {
	if w.since == 0 {
		return nil, nil
	}
	var err error
	if w.quiet, err = w.src.Quiet(ctx, w.since); err != nil || !w.quiet || w.rescans {
		return nil, err
	}
	v, err := k.catalog.Resolve(ctx, k.o.Name+"@"+latest)
	if err != nil || v.Number != w.version.Number || v.Digest != w.version.Digest {
		return nil, nil // whatever that is, the capture will tell
	}
	if _, err := k.st.Stat(ctx, store.KindManifest, v.Blob); err != nil {
		return nil, nil
	}
	k.sink = &captureSink{secrets: w.secrets}
	r := k.report(v, true)
	r.Watched = true
	r.Seconds = time.Since(k.started).Seconds()
	return r, nil
}

// request completes a request, and the sink that takes what comes of it.
func (w *watched) request(k *capture, req *ScanRequest) {
	if w.src == nil {
		return
	}
	req.Mark = w.next
	if w.since != 0 && !w.rescans {
		req.Since = w.since
		k.sink.before = func(ctx context.Context) (*Entries, error) {
			m, err := k.catalog.Manifest(ctx, w.version)
			if err != nil {
				return nil, err
			}
			return &m.List, nil
		}
	}
	w.mark = 0 // a capture that fails leaves the next one nothing to go on
}

// end keeps what the next capture is to go on from.
func (w *watched) end(ctx context.Context, k *capture, r *CaptureReport) {
	if w.src == nil {
		if k.o.Watch != nil {
			r.Rescan = "the source cannot be watched"
		}
		return
	}
	for _, n := range k.sink.notes {
		if n.Kind == NoteRescan {
			r.Rescan = n.Detail
		}
	}
	r.Watched = w.since != 0 && !w.rescans && r.Rescan == ""
	if r.Watched {
		r.Secrets = detectedBefore(r.Secrets, w.secrets)
	} else {
		w.whole = k.started
	}
	before := w.version
	w.mark, w.extent, w.secrets = w.next, k.request(), slices.Clone(r.Secrets)
	w.version = Version{Image: r.Image, Number: r.Version, Digest: r.Digest, Blob: k.blob}
	w.check(ctx, k, r, before)
}

// detectedBefore marks the secrets that an earlier capture has found by what is
// in them. Both lists are in the order of their paths.
func detectedBefore(secrets, before []SecretFile) []SecretFile {
	known := make(map[string]bool, len(before))
	for _, s := range before {
		known[s.Path] = s.Detected
	}
	for i := range secrets {
		s := &secrets[i]
		s.Detected = s.Detected || known[s.Path]
	}
	return secrets
}

// check says what the watch has missed, when a scan of everything has found
// changes though nothing was known to have changed, and nothing was while it ran.
func (w *watched) check(ctx context.Context, k *capture, r *CaptureReport, before Version) {
	if !w.rescans || !w.quiet || r.Unchanged {
		return
	}
	if still, err := w.src.Quiet(ctx, w.mark); err != nil || !still {
		return // what changed meanwhile cannot be told from what was missed
	}
	a, err := k.catalog.Manifest(ctx, before)
	if err != nil {
		return // it was removed
	}
	b, err := k.catalog.Manifest(ctx, w.version)
	if err != nil {
		return
	}
	for _, c := range DiffManifests(a, b) {
		if len(r.Missed) < maxMissed {
			r.Missed = append(r.Missed, c.Path)
		}
	}
	if len(r.Missed) == 0 {
		return // it is the host that is another: its disks, say
	}
	k.o.Log.Warn("changes that the watch did not see were found by looking at everything", "image", k.o.Name, "paths", r.Missed)
}
