package wire

import (
	"encoding/json"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Hello is how an end greets the other.
type Hello struct {
	Version int      // of the protocol
	Build   string   // which doppel it is, for people
	Digest  store.ID // of the agent's own binary; zero from the client
}

func (h Hello) encode() []byte {
	b := putString(putUint(nil, uint64(h.Version)), h.Build)
	return append(b, h.Digest[:]...)
}

// decodeHello reads the version alone when it is another one: what follows may
// then look otherwise.
func decodeHello(p []byte) (Hello, error) {
	d := &decoder{b: p}
	h := Hello{Version: int(d.uint(1<<20, "version"))}
	if d.err != nil || h.Version != Version {
		return h, d.err
	}
	h.Build = d.string(maxText, "build")
	h.Digest = d.id("digest")
	return h, d.finish()
}

func encodeScan(r imaging.ScanRequest) []byte {
	b := putString(nil, r.Root)
	b = putUint(b, uint64(len(r.Exclude)))
	for _, glob := range r.Exclude {
		b = putString(b, glob)
	}
	one := byte(0)
	if r.OneFileSystem {
		one = 1
	}
	b = putUint(putUint(append(b, one), uint64(r.Limits.Rate)), uint64(r.Limits.CPU))
	b = putConsistency(b, &r.Consistency)
	return putUint(putUint(b, uint64(r.Mark)), uint64(r.Since))
}

func decodeScan(p []byte) (imaging.ScanRequest, error) {
	d := &decoder{b: p}
	r := imaging.ScanRequest{Root: d.string(maxPath, "root")}
	if n := d.count(maxExcludes, 1, "exclusions"); n > 0 {
		r.Exclude = make([]string, n)
		for i := range r.Exclude {
			r.Exclude[i] = d.string(maxPath, "exclusion")
		}
	}
	r.OneFileSystem = d.flag("one file system")
	r.Limits.Rate = d.length("the limit of the rate")
	r.Limits.CPU = int(d.uint(maxCPU, "the limit of the CPU"))
	r.Consistency = d.consistency()
	r.Mark, r.Since = d.mark(), d.mark()
	return r, d.finish()
}

func (d *decoder) mark() imaging.Mark { return imaging.Mark(d.uint(1<<64-1, "mark")) }

func encodeQuiet(since imaging.Mark) []byte { return putUint(nil, uint64(since)) }

func decodeQuiet(p []byte) (imaging.Mark, error) {
	d := &decoder{b: p}
	since := d.mark()
	return since, d.finish()
}

func encodeQuieted(quiet bool) []byte {
	if quiet {
		return []byte{1}
	}
	return []byte{0}
}

func decodeQuieted(p []byte) (bool, error) {
	d := &decoder{b: p}
	quiet := d.flag("whether it is quiet")
	return quiet, d.finish()
}

func encodeSame(path string) []byte { return putPath(nil, "", path) }

func decodeSame(p []byte) (string, error) {
	d := &decoder{b: p}
	path := d.path("", "path")
	return path, d.finish()
}

func (d *decoder) flag(what string) bool {
	v := d.byte(what)
	if v > 1 {
		d.fail("%s is neither yes nor no", what)
	}
	return v == 1
}

func encodeDescribe(root string) []byte { return putString(nil, root) }

func decodeDescribe(p []byte) (string, error) {
	d := &decoder{b: p}
	root := d.string(maxPath, "root")
	return root, d.finish()
}

func encodeDescribed(f imaging.Facts, l *imaging.Layout) ([]byte, error) {
	facts, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	layout, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return putString(putString(nil, string(facts)), string(layout)), nil
}

func decodeDescribed(p []byte) (f imaging.Facts, l *imaging.Layout, err error) {
	d := &decoder{b: p}
	facts, layout := d.bytes(maxJSON, "facts"), d.bytes(maxJSON, "layout")
	if err := d.finish(); err != nil {
		return f, nil, err
	}
	if err := json.Unmarshal(facts, &f); err != nil {
		return f, nil, violation("facts: %v", err)
	}
	if err := json.Unmarshal(layout, &l); err != nil {
		return f, nil, violation("layout: %v", err)
	}
	return f, l, nil
}

// question is a cached question: files with their classes.
type question struct {
	id    uint64
	class []imaging.Class
	files []imaging.Stamp
}

func (q question) encode() []byte {
	b := putUint(putUint(nil, q.id), uint64(len(q.files)))
	prev, last := "", imaging.Stamp{}
	for i, s := range q.files {
		b = append(b, byte(q.class[i]))
		b = putPath(b, prev, s.Path)
		b = putStampSince(b, &last, &s)
		prev, last = s.Path, s
	}
	return b
}

// putStamp writes a stamp without its path.
func putStamp(b []byte, s imaging.Stamp) []byte {
	b = putUint(putUint(b, s.Dev), s.Ino)
	b = putUint(b, uint64(s.Size))
	return putTime(putTime(b, s.MTime), s.CTime)
}

// putStampSince writes a stamp by what sets it off from the one before: files
// that lie side by side have come to be together.
func putStampSince(b []byte, last, s *imaging.Stamp) []byte {
	b = putInt(putInt(b, int64(s.Dev-last.Dev)), int64(s.Ino-last.Ino))
	b = putUint(b, uint64(s.Size))
	b = putTime(b, imaging.Time{Sec: s.MTime.Sec - last.MTime.Sec, Nsec: s.MTime.Nsec})
	return putTime(b, imaging.Time{Sec: s.CTime.Sec - last.CTime.Sec, Nsec: s.CTime.Nsec})
}

func (d *decoder) stampSince(last *imaging.Stamp, path string) imaging.Stamp {
	s := imaging.Stamp{
		Path: path,
		Dev:  last.Dev + uint64(d.int("device")), Ino: last.Ino + uint64(d.int("inode")),
		Size:  d.length("size"),
		MTime: d.time("mtime"), CTime: d.time("ctime"),
	}
	s.MTime.Sec += last.MTime.Sec
	s.CTime.Sec += last.CTime.Sec
	return s
}

func (d *decoder) stamp(path string) imaging.Stamp {
	return imaging.Stamp{
		Path: path,
		Dev:  d.uint(1<<64-1, "device"), Ino: d.uint(1<<64-1, "inode"),
		Size:  d.length("size"),
		MTime: d.time("mtime"), CTime: d.time("ctime"),
	}
}

func decodeQuestion(p []byte) (question, error) {
	d := &decoder{b: p}
	q := question{id: d.uint(1<<64-1, "question")}
	n := d.count(maxFiles, 8, "files")
	q.class, q.files = make([]imaging.Class, n), make([]imaging.Stamp, n)
	prev, last := "", imaging.Stamp{}
	for i := range q.files {
		q.class[i] = d.class()
		prev = d.path(prev, "path")
		last = d.stampSince(&last, prev)
		q.files[i] = last
	}
	return q, d.finish()
}

func (d *decoder) class() imaging.Class {
	c := imaging.Class(d.byte("class"))
	if c > imaging.ClassHead {
		d.fail("class %d is unknown", c)
	}
	return c
}

// missing is a missing question.
type missing struct {
	id   uint64
	refs []store.Ref
}

func (m missing) encode() []byte {
	b := putUint(putUint(nil, m.id), uint64(len(m.refs)))
	for _, r := range m.refs {
		b = append(append(b, byte(r.Audience)), r.ID[:]...)
	}
	return b
}

func decodeMissing(p []byte) (missing, error) {
	d := &decoder{b: p}
	m := missing{id: d.uint(1<<64-1, "question")}
	m.refs = make([]store.Ref, d.count(maxRefs, 1+len(store.ID{}), "chunks"))
	for i := range m.refs {
		m.refs[i] = store.Ref{Audience: d.audience(), ID: d.id("chunk")}
	}
	return m, d.finish()
}

func (d *decoder) audience() store.Audience {
	a := store.Audience(d.byte("audience"))
	if a != store.Cluster && a != store.Head {
		d.fail("audience %d is unknown", a)
	}
	return a
}

// answer answers either question with one bit a file or chunk.
type answer struct {
	id   uint64
	bits []bool
}

func (a answer) encode() []byte { return putBits(putUint(nil, a.id), a.bits) }

func decodeAnswer(p []byte) (answer, error) {
	d := &decoder{b: p}
	a := answer{id: d.uint(1<<64-1, "question")}
	a.bits = d.bits(max(maxFiles, maxRefs), "answers")
	return a, d.finish()
}

// encodeBlock gives what stands before the block's data, which follows as it
// is, to save a copy.
func encodeBlock(b store.Block) []byte {
	return putChunks([]byte{byte(b.Audience), byte(b.Codec)}, b.Chunks)
}

func decodeBlock(p []byte) (store.Block, error) {
	d := &decoder{b: p}
	b := store.Block{Audience: d.audience(), Codec: store.Codec(d.byte("codec"))}
	if b.Codec != store.Raw && b.Codec != store.Zstd {
		d.fail("codec %d is unknown", b.Codec)
	}
	b.Chunks = d.chunks(maxBlockRefs, "chunks of a block")
	if d.err != nil {
		return store.Block{}, d.err
	}
	plain := int64(0)
	for _, c := range b.Chunks {
		plain += int64(c.Size)
	}
	b.Data = d.b
	switch {
	case len(b.Chunks) == 0:
		return store.Block{}, violation("a block without chunks")
	case plain > store.MaxBlock:
		return store.Block{}, violation("a block says it holds %d bytes, the limit is %d", plain, store.MaxBlock)
	case len(b.Data) > maxData || b.Codec == store.Raw && int64(len(b.Data)) != plain:
		return store.Block{}, violation("a block of %d bytes comes in %d", plain, len(b.Data))
	}
	return b, nil
}

func encodeNote(n imaging.Note) []byte {
	return putString(putString(putString(nil, n.Path), string(n.Kind)), cut(n.Detail, maxText))
}

func decodeNote(p []byte) (imaging.Note, error) {
	d := &decoder{b: p}
	n := imaging.Note{Path: d.string(maxPath, "path")}
	if d.err == nil && n.Path != "" && !validPath(n.Path) {
		d.fail("path %q is not a path below a root", n.Path)
	}
	n.Kind = imaging.NoteKind(d.string(64, "note"))
	n.Detail = d.string(maxText, "detail")
	return n, d.finish()
}

func encodeProgress(p imaging.ScanProgress) []byte {
	return putUint(putUint(putUint(nil, uint64(p.Entries)), uint64(p.Bytes)), uint64(p.BytesRead))
}

func decodeProgress(b []byte) (imaging.ScanProgress, error) {
	d := &decoder{b: b}
	p := imaging.ScanProgress{Entries: d.length("entries"), Bytes: d.length("bytes"), BytesRead: d.length("bytes read")}
	return p, d.finish()
}

// cut shortens a text to max bytes.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	return s[:max]
}
