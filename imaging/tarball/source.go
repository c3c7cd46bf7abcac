package tarball

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"doppel/imaging"
	"doppel/imaging/store"
)

const (
	batchEntries = 256
	progressGap  = time.Second / 4
)

// source is an archive as a Source of captures.
type source struct {
	reader *Reader
	tree   *tree
	facts  *imaging.Facts // nil: it was not read yet
	rest   bool           // something follows the archive's end

	chunker imaging.Chunker
	in      *intake
	sink    imaging.Sink
	total   imaging.ScanProgress
	shown   time.Time
}

func newSource(ctx context.Context, r io.Reader) *source {
	return &source{reader: NewReader(ctx, r), tree: newTree()}
}

// Describe tells what the files in the archive say of their host.
func (s *source) Describe(ctx context.Context, root string) (imaging.Facts, *imaging.Layout, error) {
	if s.facts == nil {
		return imaging.Facts{}, nil, imaging.ErrScanFirst
	}
	return *s.facts, nil, nil
}

func (s *source) Close() error { return nil }

// Scan reads the archive to its end. The contents of files go to the sink as
// they come, entries when all members are known.
func (s *source) Scan(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
	s.sink, s.in = sink, newIntake(sink)
	if err := s.in.run(ctx, s.read); err != nil {
		return err
	}
	paths, err := s.tree.settle()
	if err != nil {
		return err
	}
	back, ok := sink.(imaging.Recaller)
	if !ok {
		return errors.New("what takes the archive's files cannot give them back")
	}
	host := &contents{tree: s.tree, back: back}
	if err := s.setACLs(ctx, paths, host); err != nil {
		return err
	}
	facts, err := host.facts(ctx)
	if err != nil {
		return err
	}
	if err := s.in.run(ctx, func(ctx context.Context) error { return s.reseal(ctx, paths, back) }); err != nil {
		return err
	}
	if err := s.emit(ctx, paths); err != nil {
		return err
	}
	s.facts = &facts
	return nil
}

// read reads all members.
func (s *source) read(ctx context.Context) error {
	for {
		m, err := s.reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		ino, err := s.tree.add(m)
		if err != nil {
			return s.reader.fault(m.Name, m.Offset, err)
		}
		if ino != nil {
			if err := s.content(ctx, m, ino); err != nil {
				return err
			}
		}
		s.total.Entries++
		s.show(false)
	}
	var err error
	if s.rest, err = s.reader.Rest(); err != nil {
		return err
	}
	if s.rest {
		s.tree.note("", "what follows the end of the archive was not read, as tar does without --ignore-zeros")
	}
	return nil
}

// content reads a file's data.
func (s *source) content(ctx context.Context, m *Member, ino *inode) error {
	s.chunker.Reset(s.reader)
	path, _, err := cleanPath(m.Name)
	if err != nil {
		return s.reader.fault(m.Name, m.Offset, err)
	}
	class, known := imaging.Classify(path)
	if m.Size > 0 {
		ino.detected = s.chunker.Secret()
	}
	if !known && ino.detected {
		class = imaging.ClassHead
	}
	ino.stored = class
	s.total.Bytes += m.Size
	for {
		b, err := s.chunker.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = s.tree.spend(40)
		}
		if err != nil {
			return s.reader.fault(m.Name, m.Offset, err)
		}
		if !ino.detected && s.chunker.Secret() {
			ino.detected = true
			if !known {
				class, ino.stored, ino.early = imaging.ClassHead, imaging.ClassHead, len(ino.entry.Chunks)
			}
		}
		chunk := store.Chunk{ID: store.Sum(b), Size: uint32(len(b))}
		ino.entry.Chunks = append(ino.entry.Chunks, chunk)
		if err := s.in.take(ctx, store.Ref{Audience: class.Audience(), ID: chunk.ID}, b); err != nil {
			return err
		}
		s.total.BytesRead += int64(len(b))
		s.show(false)
	}
}

// class is the class of a file by its first name, as a capture of the tree
// would find it. unknown says that it is a secret by its content alone.
func (i *inode) class() (c imaging.Class, unknown bool) {
	if i.entry.Kind != imaging.Regular {
		return imaging.ClassNone, false
	}
	c, known := imaging.Classify(i.first)
	if !known && i.detected {
		return imaging.ClassHead, true
	}
	return c, false
}

// audience is whom chunk i of a file was stored for.
func (i *inode) audience(chunk int) store.Audience {
	if chunk < i.early {
		return store.Cluster
	}
	return i.stored.Audience()
}

// reseal stores again, for the right audience, what came under a name that is
// not the first of its file, or in front of the secret in it.
func (s *source) reseal(ctx context.Context, paths []string, back imaging.Recaller) error {
	for _, path := range paths {
		ino := s.tree.names[path]
		if ino.first != path {
			continue
		}
		class, _ := ino.class()
		to := class.Audience()
		for i, c := range ino.entry.Chunks {
			from := ino.audience(i)
			if from == to {
				continue
			}
			b, err := back.Recall(ctx, store.Ref{Audience: from, ID: c.ID})
			if err == nil {
				err = s.in.take(ctx, store.Ref{Audience: to, ID: c.ID}, b)
			}
			if err != nil {
				return fmt.Errorf("store %q for its class: %w", path, err)
			}
		}
		ino.stored, ino.early = class, 0
	}
	return nil
}

// emit gives the sink all entries.
func (s *source) emit(ctx context.Context, paths []string) error {
	var entries []imaging.Entry
	flush := func() error {
		err := s.sink.Entries(ctx, entries, make([]imaging.Stamp, len(entries)))
		entries = nil // the sink may keep them
		return err
	}
	var bytes int64
	for _, path := range paths {
		ino := s.tree.names[path]
		class, unknown := ino.class()
		e := ino.entry
		e.Path, e.Class = path, class
		if ino.first != path {
			own := imaging.ClassNone
			if e.Kind == imaging.Regular {
				own, _ = imaging.Classify(path)
			}
			e = imaging.Entry{Path: path, Kind: imaging.HardLink, Target: ino.first, Class: max(class, own)}
		} else if unknown {
			note := imaging.Note{Path: path, Kind: imaging.NoteSecret, Detail: imaging.DetectedSecret}
			if err := s.sink.Note(ctx, note); err != nil {
				return err
			}
		}
		if bytes += e.Size; bytes < 0 {
			return &MemberError{Name: path, Offset: ino.offset, Err: errors.New("with it, the files come to more than 8 EiB")}
		}
		if entries = append(entries, e); len(entries) == batchEntries {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	s.total.Entries, s.total.Bytes = int64(len(paths)), bytes
	s.show(true)
	return nil
}

// show tells how far the scan is, when the last time is long enough ago.
func (s *source) show(now bool) {
	if t := time.Now(); now || t.Sub(s.shown) >= progressGap {
		s.shown = t
		s.sink.Progress(s.total)
	}
}

// setACLs makes extended attributes of ACLs in words, and modes what ACLs make
// them.
func (s *source) setACLs(ctx context.Context, paths []string, host *contents) error {
	for _, path := range paths {
		ino := s.tree.names[path]
		if ino.first != path || ino.entry.Kind == imaging.Symlink {
			continue
		}
		for i, name := range []string{aclAccess, aclDefault} {
			if ino.acl[i] == "" || hasXattr(ino.entry.Xattrs, name) || name == aclDefault && ino.entry.Kind != imaging.Directory {
				continue
			}
			if err := s.setACL(ctx, path, ino, name, ino.acl[i], host); err != nil {
				return err
			}
		}
		ino.acl = [2]string{}
		for _, x := range ino.entry.Xattrs {
			if list, ok := decodeACL(x.Value); ok && x.Name == aclAccess {
				ino.entry.Mode = aclMode(ino.entry.Mode, list)
			}
		}
	}
	return nil
}

// setACL makes an extended attribute of one ACL.
func (s *source) setACL(ctx context.Context, path string, ino *inode, name, text string, host *contents) error {
	var failed error
	list, err := parseACL(text, func(group bool, name string) (uint32, bool) {
		id, ok, err := host.id(ctx, group, name)
		failed = errors.Join(failed, err)
		return id, ok
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, errUnknownName):
		return s.sink.Note(ctx, imaging.Note{Path: path, Kind: imaging.NoteLost,
			Detail: err.Error() + ": pack with --numeric-owner, or with the etc/passwd and etc/group of its host"})
	case err != nil:
		return &MemberError{Name: path, Offset: ino.offset, Err: err}
	case name == aclAccess && len(list) == 3: // the mode, and no ACL
		ino.entry.Mode = aclMode(ino.entry.Mode, list)
	case len(list) > 0:
		ino.entry.Xattrs = addSorted(ino.entry.Xattrs, imaging.Xattr{Name: name, Value: encodeACL(list)})
	}
	return nil
}
