package tarball

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"doppel/imaging"
)

// Bounds of the fields of a ustar header, beyond which pax has a record.
const (
	ustarName  = 100
	ustarOwner = 1<<21 - 1
	ustarSize  = 1<<33 - 1
	ustarTime  = 1<<33 - 1
)

// record is one record of an extended header.
type record struct{ key, value string }

// appendRecord writes a record. Its length counts itself.
func appendRecord(b []byte, r record) []byte {
	rest := len(r.key) + len(r.value) + 3 // blank, equals sign, newline
	size := rest + 1
	for size != rest+len(strconv.Itoa(size)) {
		size = rest + len(strconv.Itoa(size))
	}
	return fmt.Appendf(b, "%d %s=%s\n", size, r.key, r.value)
}

// memberWriter writes members of a pax archive. Every record but hdrcharset and
// those of flags and projects is one that GNU tar and libarchive read, too; of
// flags, libarchive reads its own.
type memberWriter struct {
	w       io.Writer
	written int64
}

func (w *memberWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.written += int64(n)
	return n, err
}

// headers writes what comes before the data of an entry: stored bytes, in the
// runs of a file with holes. meta is the entry with the metadata: of a hard
// link, that of its target.
func (w *memberWriter) headers(e, meta *imaging.Entry, stored int64, runs []imaging.Extent) error {
	name := e.Path
	switch {
	case name == ".":
		name = "./"
	case e.Kind == imaging.Directory:
		name += "/"
	}
	var sparse []byte
	if runs != nil {
		sparse = appendMap(nil, runs)
		stored += int64(len(sparse))
	}
	list := paxRecords(name, e, meta, stored, runs != nil)
	if len(list) > 0 {
		if err := w.extended(name, list); err != nil {
			return err
		}
	}
	var h header
	if runs != nil {
		name = "GNUSparseFile.0/" + shortName(e.Path)
	}
	copy(h[:ustarName], name)
	copy(h[157:257], e.Target)
	h.number(h.mode(), int64(meta.Mode))
	h.number(h.uid(), within(int64(meta.UID), ustarOwner))
	h.number(h.gid(), within(int64(meta.GID), ustarOwner))
	h.number(h.size(), within(stored, ustarSize))
	h.number(h.mtime(), within(meta.MTime.Sec, ustarTime))
	h[156] = kindOf(e.Kind)
	if e.Kind == imaging.CharDevice || e.Kind == imaging.BlockDevice {
		h.number(h.major(), int64(e.Major))
		h.number(h.minor(), int64(e.Minor))
	}
	if err := w.block(&h); err != nil {
		return err
	}
	_, err := w.Write(sparse)
	return err
}

// within is n, or 0 where an extended header has it instead.
func within(n, limit int64) int64 {
	if n < 0 || n > limit {
		return 0
	}
	return n
}

func kindOf(k imaging.Kind) byte {
	return map[imaging.Kind]byte{imaging.Regular: typeRegular, imaging.Directory: typeDirectory, imaging.Symlink: typeSymlink,
		imaging.CharDevice: typeChar, imaging.BlockDevice: typeBlock, imaging.FIFO: typeFIFO, imaging.HardLink: typeLink}[k]
}

// number writes an octal number, or in two's complement what has no room.
func (h *header) number(field []byte, n int64) {
	digits := len(field) - 1
	text := strconv.FormatInt(n, 8)
	if n >= 0 && len(text) <= digits {
		copy(field, strings.Repeat("0", digits-len(text))+text)
		return
	}
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(n)
		n >>= 8
	}
	field[0] |= 0x80
}

// block writes a header with magic and checksum.
func (w *memberWriter) block(h *header) error {
	copy(h[257:], "ustar\x0000")
	sum, _ := h.sums()
	copy(h.checksum(), fmt.Sprintf("%06o\x00 ", sum))
	_, err := w.Write(h[:])
	return err
}

// extended writes an extended header for the member of that name.
func (w *memberWriter) extended(name string, list []record) error {
	var b []byte
	for _, r := range list {
		b = appendRecord(b, r)
	}
	var h header
	copy(h[:ustarName], "PaxHeaders/"+shortName(name))
	h.number(h.mode(), 0o644)
	h.number(h.uid(), 0)
	h.number(h.gid(), 0)
	h.number(h.size(), int64(len(b)))
	h.number(h.mtime(), 0)
	h[156] = typePAX
	if err := w.block(&h); err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return w.zeros(-int64(len(b)) & (blockSize - 1))
}

// shortName is the last of a path's names, as far as it fits behind what
// stands for a directory.
func shortName(path string) string {
	path = strings.TrimSuffix(path, "/")
	path = path[strings.LastIndexByte(path, '/')+1:]
	return path[:min(len(path), 80)]
}

// paxRecords are the records that an entry needs.
func paxRecords(name string, e, meta *imaging.Entry, stored int64, sparse bool) []record {
	var list []record
	add := func(key, value string) { list = append(list, record{key, value}) }
	if !utf8.ValidString(name) || !utf8.ValidString(e.Target) {
		add("hdrcharset", "BINARY") // POSIX: what follows is in no character set
	}
	if sparse {
		add("GNU.sparse.major", "1")
		add("GNU.sparse.minor", "0")
		add("GNU.sparse.name", name)
		add("GNU.sparse.realsize", strconv.FormatInt(e.Size, 10))
	} else if len(name) > ustarName || !isASCII(name) {
		add("path", name)
	}
	if len(e.Target) > ustarName || !isASCII(e.Target) {
		add("linkpath", e.Target)
	}
	if stored > ustarSize {
		add("size", strconv.FormatInt(stored, 10))
	}
	if meta.UID > ustarOwner {
		add("uid", strconv.FormatUint(uint64(meta.UID), 10))
	}
	if meta.GID > ustarOwner {
		add("gid", strconv.FormatUint(uint64(meta.GID), 10))
	}
	if t := meta.MTime; t.Nsec != 0 || t.Sec < 0 || t.Sec > ustarTime {
		add("mtime", timeText(t))
	}
	if e.Kind != imaging.HardLink {
		list = append(list, flagRecords(e)...)
		list = append(list, xattrRecords(e)...)
	}
	return list
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf || r == utf8.RuneError }) < 0
}

// gnuKeyword writes the name of an extended attribute so that it holds no
// equals sign, where a keyword would end.
var gnuKeyword = strings.NewReplacer("%", "%25", "=", "%3D")

// xattrRecords are the extended attributes of an entry. An ACL is there twice:
// tar --acls takes the words, and takes an ACL away where there are none.
func xattrRecords(e *imaging.Entry) []record {
	var list []record
	for name, key := range map[string]string{aclAccess: "SCHILY.acl.access", aclDefault: "SCHILY.acl.default"} {
		for _, x := range e.Xattrs {
			if x.Name != name {
				continue
			}
			if acl, ok := decodeACL(x.Value); ok {
				if text, ok := aclText(acl); ok {
					list = append(list, record{key, text})
				}
			}
		}
	}
	if len(list) == 2 && list[0].key > list[1].key {
		list[0], list[1] = list[1], list[0]
	}
	for _, x := range e.Xattrs {
		list = append(list, record{"SCHILY.xattr." + gnuKeyword.Replace(x.Name), string(x.Value)})
	}
	return list
}

// timeText writes decimal seconds.
func timeText(t imaging.Time) string {
	sec, nsec, sign := t.Sec, t.Nsec, ""
	if sec < 0 {
		sign = "-"
		if nsec > 0 {
			sec, nsec = sec+1, 1_000_000_000-nsec
		}
	}
	text := strings.TrimPrefix(strconv.FormatInt(sec, 10), "-")
	if nsec > 0 {
		text += "." + strings.TrimRight(fmt.Sprintf("%09d", nsec), "0")
	}
	return sign + text
}

// tapeRuns are the runs of a file with holes as they are written: GNU tar reads
// each but the last in whole blocks, so those end at one.
func tapeRuns(e *imaging.Entry) (runs []imaging.Extent, stored int64) {
	runs = []imaging.Extent{}
	for _, x := range e.Extents {
		if last := len(runs) - 1; last >= 0 {
			before := &runs[last]
			before.Length += -before.Length & (blockSize - 1)
			if end := before.Offset + before.Length; end >= x.Offset {
				before.Length = x.Offset + x.Length - before.Offset
				continue
			}
		}
		runs = append(runs, x)
	}
	for _, x := range runs {
		stored += x.Length
	}
	if end := len(runs) - 1; end < 0 || runs[end].Offset+runs[end].Length < e.Size {
		runs = append(runs, imaging.Extent{Offset: e.Size})
	}
	return runs, stored
}

// appendMap writes the map that the data of a file with holes begins with.
func appendMap(b []byte, runs []imaging.Extent) []byte {
	b = fmt.Appendf(b, "%d\n", len(runs))
	for _, x := range runs {
		b = fmt.Appendf(b, "%d\n%d\n", x.Offset, x.Length)
	}
	return append(b, bytes.Repeat([]byte{0}, -len(b)&(blockSize-1))...)
}

var noughts [64 << 10]byte

// zeros writes n zeros.
func (w *memberWriter) zeros(n int64) error {
	for n > 0 {
		k := min(n, int64(len(noughts)))
		if _, err := w.Write(noughts[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
