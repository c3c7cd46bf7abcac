package imaging

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"doppel/imaging/store"
)

// captureSink takes what a scan finds into a vault.
type captureSink struct {
	vault    *store.Vault
	writer   *store.Writer
	cache    *captureCache
	progress func(CaptureProgress)
	instant  func(context.Context) error

	// before loads the entries of the scan that the request's Since names.
	before func(context.Context) (*Entries, error)
	last   *Entries     // these, once they are needed
	copied *cacheReader // the last capture's cache, for what is the same; likewise

	list    EntriesBuilder
	notes   []Note
	secrets []SecretFile
	total   ScanProgress
	sent    atomic.Int64
}

// Cached answers from the last capture's cache. What it says of a file counts
// only while every chunk of it is in the store, for the file's audience of now.
func (s *captureSink) Cached(ctx context.Context, class []Class, files []Stamp) ([]*Content, error) {
	if len(class) != len(files) {
		return nil, fmt.Errorf("asked about %d files with %d classes", len(files), len(class))
	}
	answers := make([]*Content, len(files))
	for i := range files {
		r := s.cache.lookup(files[i].Path)
		if r == nil || !r.knows(&files[i]) || r.entry.Class != class[i] {
			continue
		}
		if s.whole(&r.entry) {
			answers[i] = &Content{Extents: r.entry.Extents, Chunks: r.entry.Chunks, Flags: r.entry.Flags, Project: r.entry.Project, Xattrs: r.entry.Xattrs}
		}
	}
	return answers, nil
}

// whole tells whether all chunks of an entry are in the store.
func (s *captureSink) whole(e *Entry) bool {
	aud := e.Class.Audience()
	for _, c := range e.Chunks {
		if size, ok := s.vault.Size(store.Ref{Audience: aud, ID: c.ID}); !ok || size != c.Size {
			return false
		}
	}
	return true
}

func (s *captureSink) Missing(ctx context.Context, refs []store.Ref) ([]bool, error) {
	missing := make([]bool, len(refs))
	for i, ref := range refs {
		missing[i] = !s.writer.Has(ref)
	}
	return missing, nil
}

func (s *captureSink) Block(ctx context.Context, b store.Block) error {
	if err := s.writer.Add(ctx, b); err != nil {
		return err
	}
	s.sent.Add(int64(len(b.Data)))
	return nil
}

// Recall reads a chunk, after making durable what is on its way into a pack.
func (s *captureSink) Recall(ctx context.Context, ref store.Ref) ([]byte, error) {
	if !s.vault.Has(ref) {
		if err := s.writer.Commit(ctx); err != nil {
			return nil, err
		}
	}
	return s.vault.Chunk(ctx, ref)
}

func (s *captureSink) Entries(ctx context.Context, entries []Entry, stamps []Stamp) error {
	if len(entries) != len(stamps) {
		return fmt.Errorf("%d entries came with %d stamps", len(entries), len(stamps))
	}
	for i := range entries {
		if err := s.list.Add(&entries[i]); err != nil {
			return fmt.Errorf("what the source gave: %w", err)
		}
		s.secret(&entries[i])
		s.cache.add(&entries[i], &stamps[i])
	}
	return nil
}

// Same takes what was in a directory at the last capture, and what its cache
// knew of the files.
func (s *captureSink) Same(ctx context.Context, path string) error {
	if s.before == nil {
		return fmt.Errorf("what the source gave: %q is as in an earlier scan, and none was named", path)
	}
	if s.last == nil {
		var err error
		if s.last, err = s.before(ctx); err != nil {
			return err
		}
		if s.copied, err = openCache(s.cache.path); err != nil {
			s.cache.log.Warn("what the last capture knew is lost in part", "path", s.cache.path, "error", err)
		}
	}
	from, ok := s.last.Find(path)
	if !ok || s.last.At(from).Kind != Directory {
		return nil // it came while this scan went on: the next one is told of it
	}
	for i, e := range s.last.From(from) {
		if i > from && !strings.HasPrefix(e.Path, path+"/") {
			break
		}
		if err := s.list.Add(e); err != nil {
			return fmt.Errorf("what is as in the last scan: %w", err)
		}
		s.secret(e)
		if e.Kind != Regular {
			continue
		}
		r, err := s.copied.lookup(e.Path)
		if err != nil {
			s.cache.log.Warn("what the last capture knew is lost in part", "path", s.cache.path, "error", err)
		}
		if r != nil {
			s.cache.new.add(r)
		}
	}
	return nil
}

// secret lists an entry that is a secret.
func (s *captureSink) secret(e *Entry) {
	if e.Class != ClassNone {
		s.secrets = append(s.secrets, SecretFile{Path: e.Path, Class: e.Class.String()})
	}
}

// close lets go of what Same has opened.
func (s *captureSink) close() {
	if s.copied != nil {
		s.copied.close()
	}
}

func (s *captureSink) Note(ctx context.Context, n Note) error {
	s.notes = append(s.notes, n)
	if n.Kind == NoteInstant && s.instant != nil {
		instant := s.instant
		s.instant = nil
		return instant(ctx)
	}
	return nil
}

func (s *captureSink) Progress(p ScanProgress) {
	s.total = p
	if s.progress != nil {
		s.progress(CaptureProgress{ScanProgress: p, BytesSent: s.sent.Load()})
	}
}

// captureCache is the cache of the last capture, to read, and that of this
// one, to write.
type captureCache struct {
	path string
	log  *slog.Logger
	old  *cacheReader
	new  *cacheWriter
}

// beginCache opens the caches. A cache that cannot be used is one that is
// empty; full says not to use it.
func beginCache(path string, full bool, log *slog.Logger) (*captureCache, error) {
	c := &captureCache{path: path, log: log, old: &cacheReader{}}
	var err error
	if !full {
		if c.old, err = openCache(path); err != nil {
			log.Warn("the capture cache is not used: every file is read", "path", path, "error", err)
		}
	}
	if c.new, err = createCache(path); err != nil {
		c.old.close()
		return nil, err
	}
	return c, nil
}

// lookup finds what the last capture knew of a path.
func (c *captureCache) lookup(path string) *record {
	r, err := c.old.lookup(path)
	if err != nil {
		c.log.Warn("the capture cache is not used from here on", "path", c.path, "error", err)
	}
	return r
}

// add remembers an entry for the next capture, if its stamp says by what.
func (c *captureCache) add(e *Entry, s *Stamp) {
	if e.Kind != Regular || s.Path != e.Path {
		return
	}
	c.new.add(&record{
		entry: Entry{
			Path: e.Path, Kind: Regular, MTime: s.MTime, Size: e.Size, Class: e.Class,
			Flags: e.Flags, Project: e.Project, Xattrs: e.Xattrs, Extents: e.Extents, Chunks: e.Chunks,
		},
		ino:   s.Ino,
		ctime: s.CTime,
	})
}

// commit makes this capture's cache the one to read next time. Its absence
// only costs time, so it fails no capture.
func (c *captureCache) commit() {
	if err := c.new.commit(); err != nil {
		c.log.Warn("the next capture will read every file", "error", err)
	}
}

// breakOff makes a cache of what this capture learned until it broke off, and
// of what the last one knew of the rest.
func (c *captureCache) breakOff() error {
	old, err := openCache(c.path)
	if err != nil {
		return err
	}
	defer old.close()
	for old.last != nil {
		if c.new.last == "" || ComparePath(old.last.entry.Path, c.new.last) > 0 {
			c.new.add(old.last)
		}
		if err := old.next(); err != nil {
			return err
		}
	}
	return c.new.commit()
}

// close lets go of both; what was committed stays.
func (c *captureCache) close() {
	c.old.close()
	c.new.discard()
}
