package imaging

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"doppel/imaging/store"

	"golang.org/x/sys/unix"
)

// CaptureOptions say what to capture and under which name.
type CaptureOptions struct {
	Name          string // of the image
	Root          string // default "/"
	Origin        string // where the source is, for people: root@head
	Exclude       []string
	OneFileSystem bool
	Limits        Limits
	Consistency   Consistency
	Full          bool   // read every file, whatever the last capture knew
	Watch         *Watch // nil: nobody watches the source between captures
	Progress      func(CaptureProgress)
	Log           *slog.Logger // nil: the catalog's

	// Instant, if there is one, is called once all snapshots are taken, before
	// much is read. Its error ends the capture.
	Instant func(ctx context.Context) error
}

// CaptureProgress are running totals of one capture.
type CaptureProgress struct {
	ScanProgress
	BytesSent int64 // of compressed blocks
}

// SecretFile is a secret that a capture came upon.
type SecretFile struct {
	Path     string `json:"path"`
	Class    string `json:"class"`
	Detected bool   `json:"detected,omitempty"` // by what is in it: no rule knows it
}

// CaptureReport is what a capture came to. Paths in it that are not UTF-8 are
// so in the version; JSON has them with replacement characters.
type CaptureReport struct {
	Image      string       `json:"image"`
	Version    int          `json:"version"`
	Digest     string       `json:"digest"`
	Unchanged  bool         `json:"unchanged"` // Version is the one there was before
	Entries    int64        `json:"entries"`
	BytesTotal int64        `json:"bytes_total"` // of regular files
	BytesRead  int64        `json:"bytes_read"`
	BytesSent  int64        `json:"bytes_sent"`  // of compressed blocks
	BytesAdded int64        `json:"bytes_added"` // that the store has grown by
	Seconds    float64      `json:"seconds"`
	Unstable   []string     `json:"unstable"` // never held still
	Vanished   []string     `json:"vanished"` // went away while the tree was walked
	Lost       []Note       `json:"lost"`     // what the source could not carry
	Secrets    []SecretFile `json:"secrets"`
	Watched    bool         `json:"watched,omitempty"` // only what has changed was looked at
	Rescan     string       `json:"rescan,omitempty"`  // why everything was, though the source is to be watched
	Missed     []string     `json:"missed,omitempty"`  // some of what had changed without the watch having seen it

	// Consistency tells of each file system how it was kept still while it was
	// read; empty when that was not asked for.
	Consistency []Note `json:"consistency,omitempty"`
}

// Partial tells whether the version is not all that the tree was: a file
// never held still, the source could not carry something, a file system was not
// read before it had to be thawed; or whether a snapshot was left behind.
func (r *CaptureReport) Partial() bool {
	odd := func(n Note) bool { return n.Kind == NoteThawed || n.Kind == NoteLeft }
	return len(r.Unstable) > 0 || len(r.Lost) > 0 || slices.ContainsFunc(r.Consistency, odd)
}

// Capture captures src as the next version of the image o.Name, unless nothing
// has changed since the last. It fails as a whole or not at all; but what had
// arrived before it failed is in the store, and the next capture does not send
// it again.
func Capture(ctx context.Context, c *Catalog, src Source, o CaptureOptions) (*CaptureReport, error) {
	if err := CheckName(o.Name); err != nil {
		return nil, err
	}
	o.Root = cmp.Or(o.Root, "/")
	o.Log = cmp.Or(o.Log, c.log)
	if err := c.Create(ctx); err != nil {
		return nil, c.explain(err)
	}
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	release, err := st.LockShared(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	r, err := newCapture(c, st, src, o).run(ctx)
	if err != nil {
		return nil, c.explain(err)
	}
	return r, nil
}

// explain adds to an error what helps against it.
func (c *Catalog) explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w (the disk that holds %s is full: remove versions with doppel image rm, or make room otherwise, and capture again; what has arrived is kept)", err, c.dir)
	}
	return err
}

// capture is one run of Capture.
type capture struct {
	catalog *Catalog
	st      *store.Dir
	src     Source
	o       CaptureOptions
	keys    store.Keys
	sink    *captureSink
	started time.Time
	blob    store.ID // of the version's manifest, once there is one
}

func newCapture(c *Catalog, st *store.Dir, src Source, o CaptureOptions) *capture {
	return &capture{catalog: c, st: st, src: src, o: o, started: time.Now()}
}

func (k *capture) run(ctx context.Context) (*CaptureReport, error) {
	watch := k.watching()
	if r, err := k.unchanged(ctx, watch); r != nil || err != nil {
		return r, err
	}
	before, err := blobBytes(ctx, k.st)
	if err != nil {
		return nil, err
	}
	if k.keys, err = k.catalog.Keys(); err != nil {
		return nil, err
	}
	vault, err := store.OpenVault(ctx, k.st, k.keys, nil)
	if err != nil {
		return nil, err
	}
	for _, f := range vault.Damaged() {
		k.o.Log.Warn("a pack is damaged; what it held is captured again", "pack", f.Pack.String(), "error", f.Err)
	}
	facts, layout, err := k.src.Describe(ctx, k.o.Root)
	late := errors.Is(err, ErrScanFirst)
	if err != nil && !late {
		return nil, fmt.Errorf("describe the host: %w", err)
	}
	if err := k.scan(ctx, vault, watch); err != nil {
		return nil, err
	}
	if late {
		if facts, layout, err = k.src.Describe(ctx, k.o.Root); err != nil {
			return nil, fmt.Errorf("describe the host: %w", err)
		}
	}
	list, err := k.sink.list.Done()
	if err != nil {
		return nil, fmt.Errorf("what the source gave: %w", err)
	}
	m := &Manifest{Head: Head{Facts: facts, Layout: layout, Boot: DetectBoot(&list)}, List: list}
	r, err := k.record(ctx, vault, m)
	if err != nil {
		return nil, err
	}
	after, err := blobBytes(ctx, k.st)
	if err != nil {
		return nil, err
	}
	r.BytesAdded = after - before
	r.Seconds = time.Since(k.started).Seconds()
	watch.end(ctx, k, r)
	return r, nil
}

// blobBytes is how large the store is.
func blobBytes(ctx context.Context, st store.Store) (int64, error) {
	var total int64
	for _, kind := range []store.Kind{store.KindPack, store.KindManifest} {
		err := st.List(ctx, kind, func(_ store.ID, size int64) error { total += size; return nil })
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}

// scan lets the source be scanned and makes durable what came of it, also when
// it broke off.
func (k *capture) scan(ctx context.Context, vault *store.Vault, watch *watched) error {
	w := vault.NewWriter()
	defer w.Close()
	cache, err := beginCache(k.cachePath(), k.o.Full, k.o.Log)
	if err != nil {
		return err
	}
	defer cache.close()
	k.sink = &captureSink{vault: vault, writer: w, cache: cache, progress: k.o.Progress, instant: k.o.Instant}
	defer k.sink.close()
	req := k.request()
	watch.request(k, &req)
	err = k.src.Scan(ctx, req, k.sink)
	if err == nil {
		if err = w.Commit(ctx); err == nil {
			cache.commit()
			return nil
		}
	}
	// Even when ctx has ended: this is bounded by one pack, and saves the next
	// capture from sending it all again.
	if w.Commit(context.WithoutCancel(ctx)) == nil {
		if err := cache.breakOff(); err != nil {
			k.o.Log.Warn("what this capture learned is not kept", "error", err)
		}
	}
	return err
}

// request says what to scan.
func (k *capture) request() ScanRequest {
	return ScanRequest{Root: k.o.Root, Exclude: slices.Concat(k.o.Exclude, k.ownExclude()), OneFileSystem: k.o.OneFileSystem, Limits: k.o.Limits, Consistency: k.o.Consistency}
}

// cachePath is where the capture cache of this image and root is.
func (k *capture) cachePath() string {
	sum := sha256.Sum256([]byte(k.o.Name + "\x00" + k.o.Root))
	return filepath.Join(k.catalog.dir, "cache", "capture", hex.EncodeToString(sum[:16]))
}

// ownExclude leaves out the state directory when it is in the tree.
func (k *capture) ownExclude() []string {
	l, ok := k.src.(*local)
	if !ok {
		return nil
	}
	root, err := filepath.EvalSymlinks(l.path(k.o.Root))
	if err != nil {
		return nil // the scan will say so
	}
	dir, err := filepath.EvalSymlinks(k.catalog.dir)
	if err != nil {
		return nil
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil
	}
	return []string{quoteGlob(rel)}
}

// record writes the manifest and gives it its name, last of all, unless it is
// what the name's latest version is already.
func (k *capture) record(ctx context.Context, vault *store.Vault, m *Manifest) (*CaptureReport, error) {
	for ref := range m.Refs() {
		if size, ok := vault.Size(ref.Ref); !ok || size != ref.Size {
			return nil, fmt.Errorf("the scan ended without all content of %q: %w", ref.Entry.Path, &store.MissingError{What: "chunk", ID: ref.ID})
		}
	}
	digest, err := m.Digest()
	if err != nil {
		return nil, err
	}
	v := Version{
		Image:   k.o.Name,
		Digest:  digest.String(),
		Time:    time.Now().UTC(),
		Entries: int64(m.List.Len()),
		Bytes:   m.List.Bytes(),
		Source:  cmp.Or(k.o.Origin, "local"),
	}
	last, err := k.catalog.Resolve(ctx, k.o.Name+"@"+latest)
	var unknown *UnknownImageError
	if err != nil && !errors.As(err, &unknown) {
		return nil, err
	}
	unchanged := err == nil && last.Digest == v.Digest && k.readable(ctx, last)
	if unchanged {
		v = last
	} else {
		if v.Blob, _, err = WriteManifest(ctx, k.st, k.keys, m); err != nil {
			return nil, err
		}
		if v, err = k.catalog.Add(ctx, v); err != nil {
			return nil, err
		}
	}
	k.blob = v.Blob
	return k.report(v, unchanged), nil
}

// readable tells whether the version's manifest is still what was written. If it
// is not, the same tree makes another version.
func (k *capture) readable(ctx context.Context, v Version) bool {
	b, err := store.OpenBlob(ctx, k.st, store.KindManifest, v.Blob)
	if err == nil {
		err = errors.Join(b.Finish(), b.Close())
	}
	if err != nil {
		k.o.Log.Warn("the latest version cannot be read", "image", v.Ref(), "error", err)
	}
	return err == nil
}

func (k *capture) report(v Version, unchanged bool) *CaptureReport {
	r := &CaptureReport{
		Image:      v.Image,
		Version:    v.Number,
		Digest:     v.Digest,
		Unchanged:  unchanged,
		Entries:    v.Entries,
		BytesTotal: v.Bytes,
		BytesRead:  k.sink.total.BytesRead,
		BytesSent:  k.sink.sent.Load(),
		Unstable:   []string{},
		Vanished:   []string{},
		Lost:       []Note{},
		Secrets:    []SecretFile{},
	}
	detected := make(map[string]bool)
	for _, n := range k.sink.notes {
		switch n.Kind {
		case NoteUnstable:
			r.Unstable = append(r.Unstable, n.Path)
		case NoteVanished:
			r.Vanished = append(r.Vanished, n.Path)
		case NoteLost:
			r.Lost = append(r.Lost, n)
		case NoteSecret:
			detected[n.Path] = true
		}
		if n.Kind.isConsistency() {
			r.Consistency = append(r.Consistency, n)
		}
	}
	for _, s := range k.sink.secrets {
		s.Detected = s.Detected || detected[s.Path]
		r.Secrets = append(r.Secrets, s)
	}
	return r
}
