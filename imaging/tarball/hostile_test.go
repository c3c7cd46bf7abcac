package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// Archives that nobody means well with: what is said of each, which names the
// member and where it is, and no version is made.
func TestHostileArchives(t *testing.T) {
	root := raw{name: "./", kind: '5'}
	file := func(name string) raw { return raw{name: name, kind: '0', data: "data"} }
	link := func(name, to string) raw { return raw{name: name, kind: '1', link: to} }
	sparse := func(size, data string, records ...record) []byte {
		return paxed(raw{name: "s", kind: '0', data: data}, append([]record{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "s"}, {"GNU.sparse.realsize", size}}, records...)...)
	}
	padded := func(s string) string { return s + strings.Repeat("\x00", -len(s)&(blockSize-1)) }
	header := func(s string) []byte { return raw{name: "PaxHeaders/x", kind: 'x', data: s}.bytes() }
	cases := map[string]struct {
		members []any
		want    string
	}{
		"up":                     {[]any{root, file("../out/evil")}, `member "../out/evil", at byte 512 of the archive: its name leads out`},
		"up from below":          {[]any{root, file("a/../../out/evil")}, "leads out of the tree"},
		"up, absolute":           {[]any{root, file("/../out/evil")}, "leads out of the tree"},
		"up at the end":          {[]any{root, raw{name: "a/..", kind: '5'}}, "leads out of the tree"},
		"no name":                {[]any{root, file("")}, "it has no name"},
		"NUL":                    {[]any{root, paxed(file("x"), record{"path", "a\x00b"})}, "a name with a NUL"},
		"NUL in a target":        {[]any{root, paxed(link("x", "y"), record{"linkpath", "a\x00b"})}, "a name with a NUL"},
		"long element":           {[]any{root, paxed(file("x"), record{"path", strings.Repeat("n", 2000)})}, "longer than any file system"},
		"long name":              {[]any{root, paxed(file("x"), record{"path", strings.Repeat("n/", 600_000)})}, "longer than any path"},
		"below a symbolic link":  {[]any{root, raw{name: "a", kind: '2', link: "/etc"}, file("a/passwd")}, `it is below "a", which is a symlink`},
		"below a file":           {[]any{root, file("a"), file("a/b/c")}, `it is below "a", which is a file`},
		"below a hard link":      {[]any{root, file("b"), link("a", "b"), file("a/c")}, `it is below "a", which is a file`},
		"below a link to come":   {[]any{root, link("a", "b"), file("a/c")}, `it is below "a", which is a hard link`},
		"link for a directory":   {[]any{root, file("a/b"), raw{name: "a", kind: '2', link: "/etc"}}, "in place of a directory that is not empty"},
		"root is a file":         {[]any{file(".")}, "it is the root of the tree, and a file"},
		"root is a link":         {[]any{raw{name: "./", kind: '2', link: "/"}, file("a")}, "it is the root of the tree, and a symlink"},
		"link outside":           {[]any{root, link("a", "../out/secret")}, `hard link to "../out/secret", outside of the tree`},
		"link to nothing there":  {[]any{root, link("a", "/etc/passwd")}, `member "a", at byte 512 of the archive: it is a hard link to "etc/passwd", which is not in the archive`},
		"link to a directory":    {[]any{root, raw{name: "d", kind: '5'}, link("a", "d")}, "which is a directory"},
		"to a directory to come": {[]any{root, link("a", "d"), raw{name: "d", kind: '5'}}, "which is a directory"},
		"link to itself":         {[]any{root, link("a", "a")}, "a hard link to itself"},
		"links in a circle":      {[]any{root, link("a", "b"), link("b", "c"), link("c", "a")}, "leads back to itself"},
		"link to the root":       {[]any{root, link("a", ".")}, "which is a directory"},
		"link without target":    {[]any{root, link("a", "")}, "a hard link to nothing"},
		"symlink without target": {[]any{root, raw{name: "a", kind: '2'}}, "a symbolic link to what no symbolic link can point to"},
		"device number":          {[]any{root, raw{name: "a", kind: '3', major: "7777777"}}, "which Linux does not have"},
		"negative device number": {[]any{root, raw{name: "a", kind: '4', minor: "\xff\xff\xff\xff\xff\xff\xff\xff"}}, "which Linux does not have"},
		"negative size":          {[]any{root, raw{name: "a", kind: '0', size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"}}, "its size is -256"},
		"negative size in pax":   {[]any{root, paxed(file("a"), record{"size", "-1"})}, "its size is -1"},
		"size beyond the end":    {[]any{root, raw{name: "a", kind: '0', size: "77777777777"}}, `member "a", at byte 512 of the archive: the archive ends within it`},
		"size of no end":         {[]any{root, raw{name: "a", kind: '0', size: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"}}, "the archive ends within it"},
		"size of no number":      {[]any{root, raw{name: "a", kind: '0', size: "12q"}}, "its size is no number"},
		"size of more than that": {[]any{root, raw{name: "a", kind: '0', size: "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}}, "its size is no number"},
		"owner":                  {[]any{root, raw{name: "a", kind: '0', uid: "\x80\x00\x00\x01\x00\x00\x00\x00"}}, "which nobody can be"},
		"owner -1":               {[]any{root, paxed(file("a"), record{"uid", "4294967295"})}, "which nobody can be"},
		"mode":                   {[]any{root, raw{name: "a", kind: '0', mode: "rwxr-xr"}}, "its mode is no number"},
		"unknown type":           {[]any{root, raw{name: "a", kind: 'Z'}}, "it is of the type 'Z'"},
		"second volume":          {[]any{root, raw{name: "a", kind: 'M', data: "rest"}}, "it is of the type 'M'"},
		"checksum":               {[]any{root, raw{name: "a", kind: '0', sum: "000000\x00 "}}, "at byte 512 of the archive: there is no header"},
		"no archive":             {[]any{bytes.Repeat([]byte("text "), 300)}, "it is no tar archive"},
		"nothing":                {nil, "there is nothing in it"},
		"record without length":  {[]any{root, header("path=a\n"), file("a")}, "a record without a length"},
		"record of length 0":     {[]any{root, header("0 path=a\n"), file("a")}, "of another length than it says"},
		"record beyond":          {[]any{root, header("99 path=a\n"), file("a")}, "of another length than it says"},
		"record of 2^63":         {[]any{root, header("9223372036854775808 a=b\n"), file("a")}, "a record without a length"},
		"record of no keyword":   {[]any{root, header("5 =a\n"), file("a")}, "without a keyword"},
		"giant extended header":  {[]any{root, raw{name: "x", kind: 'x', size: "77777777777"}}, "more than 16777216 are not taken"},
		"extended header's end":  {[]any{root, raw{name: "x", kind: 'x', size: "00010000000"}}, "the archive ends within it"},
		"giant long name":        {[]any{root, raw{name: "x", kind: 'L', size: "77777777777", magic: "ustar  \x00"}}, "more than 1048577 are not taken"},
		"many attributes":        {[]any{root, paxed(file("a"), manyXattrs()...)}, "more than 4096 extended attributes"},
		"giant attribute":        {[]any{root, paxed(file("a"), record{"SCHILY.xattr.user.a", strings.Repeat("x", 1<<17)})}, "no file system can hold"},
		"attribute of no base64": {[]any{root, paxed(file("a"), record{"LIBARCHIVE.xattr.user.a", "&&&"})}, "is no base64"},
		"ACL":                    {[]any{root, paxed(file("a"), record{"SCHILY.acl.access", "user::rwx\nuser:1:rwx\ngroup::r--\nother::---"})}, "without all entries"},
		"ACL of words":           {[]any{root, paxed(file("a"), record{"SCHILY.acl.access", "nobody::rwx"})}, "which makes no sense"},
		"name for all":           {[]any{root, paxed(raw{name: "g", kind: 'g', data: "10 path=a\n"}), file("a")}, "which cannot be meant"},
		"runs that overlap":      {[]any{root, sparse("100", padded("2\n0\n8\n4\n8\n")+"0123456789abcdef")}, "overlap or lie outside"},
		"runs outside":           {[]any{root, sparse("10", padded("1\n8\n8\n")+"01234567")}, "overlap or lie outside"},
		"run beyond 8 EiB":       {[]any{root, sparse("9223372036854775807", padded("1\n9223372036854775800\n9223372036854775807\n"))}, "overlap or lie outside"},
		"runs without data":      {[]any{root, sparse("100000", padded("1\n0\n100000\n"))}, "more data than there is"},
		"data without runs":      {[]any{root, sparse("100000", padded("0\n")+"data")}, "less data than there is"},
		"2^62 runs":              {[]any{root, sparse("100000", padded("4611686018427387904\n"))}, "more than 1048576 are not taken"},
		"map without an end":     {[]any{root, sparse("100000", padded("2\n0\n"))}, "number"},
		"negative size of holes": {[]any{root, sparse("-5", padded("0\n"))}, "its size with holes is -5"},
		"holes of no kind":       {[]any{root, paxed(file("s"), record{"GNU.sparse.major", "7"}, record{"GNU.sparse.minor", "0"}, record{"GNU.sparse.realsize", "10"})}, "which is not known"},
		"offset without length":  {[]any{root, paxed(file("s"), record{"GNU.sparse.size", "10"}, record{"GNU.sparse.offset", "0"})}, "not all about them"},
		"old map that overlaps":  {[]any{root, raw{name: "s", kind: 'S', magic: "ustar  \x00", data: "12345678", more: map[int64]string{386: "00000000000\x0000000000004\x0000000000002\x0000000000004\x00", 483: "00000000100"}}}, "overlap or lie outside"},
		"8 EiB twice":            {[]any{root, sparse("9223372036854775807", padded("0\n")), paxed(raw{name: "t", kind: '0', data: padded("0\n")}, record{"GNU.sparse.major", "1"}, record{"GNU.sparse.minor", "0"}, record{"GNU.sparse.name", "t"}, record{"GNU.sparse.realsize", "9223372036854775807"})}, "more than 8 EiB"},
	}
	c := openCatalog(t)
	_, err := importBytes(t, c, "kept", archive(root, file("a")))
	must(t, err)
	before, err := c.List(t.Context())
	must(t, err)
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := importBytes(t, c, "kept", archive(k.members...))
			if err == nil || !strings.Contains(err.Error(), k.want) {
				t.Fatalf("%v\nwant %s", err, k.want)
			}
			var fault *MemberError
			if !errors.As(err, &fault) || fault.Hint() == "" {
				t.Errorf("%v is no error with a remedy", err)
			}
			after, err := c.List(t.Context())
			must(t, err)
			if fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the images are %v", after)
			}
		})
	}
}

func manyXattrs() []record {
	var list []record
	for i := range maxXattrs + 1 {
		list = append(list, record{fmt.Sprintf("SCHILY.xattr.user.%d", i), "x"})
	}
	return list
}

// An archive that is cut anywhere makes no version.
func TestCutArchives(t *testing.T) {
	whole := archive(raw{name: "./", kind: '5'}, paxed(raw{name: "x", kind: '0', data: strings.Repeat("data", 300)}, record{"path", "f"}), raw{name: "g", kind: '0'})
	c := openCatalog(t)
	for n := 0; n <= len(whole)-2*blockSize; n += 100 {
		if _, err := importBytes(t, c, "x", whole[:n]); err == nil {
			t.Errorf("cut at %d of %d bytes it is taken", n, len(whole))
		}
	}
	for _, c := range []string{"gzip", "zstd"} {
		packed := pack(t, c, whole)
		for n := 1; n < len(packed); n += 7 {
			if _, err := importBytes(t, openCatalog(t), "x", packed[:n]); err == nil {
				t.Errorf("%s, cut at %d of %d bytes, is taken", c, n, len(packed))
			}
		}
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) > 0 {
		t.Errorf("images %v, %v", list, err)
	}
}

func pack(tb testing.TB, how string, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	if how == "gzip" {
		w := gzip.NewWriter(&out)
		_, err := w.Write(b)
		must(tb, err, w.Close())
		return out.Bytes()
	}
	w, err := zstd.NewWriter(&out)
	must(tb, err)
	_, err = w.Write(b)
	must(tb, err, w.Close())
	return out.Bytes()
}

// hostile makes one archive of pieces that are each bad in their way, or not.
func hostile(r *rand.Rand, out string) []byte {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	names := []string{".", "./", "a", "a/b", "a/b/c", "b", "d/", "/abs", "../up", "a/../../up", out + "/evil", "", "a//b", "./a/.", "etc/passwd", "\xff\xfe", "-rf", " ", "..a", "a/..b",
		strings.Repeat("deep/", 19) + "x", strings.Repeat("n", 100), "link", "link/evil", "doppel\nhint: x"}
	name := func() string {
		if r.IntN(4) > 0 {
			return pick("a", "b", "d/", "link", "e/f", "e/g", "e/h/i", "/abs", "\xff")
		}
		return names[r.IntN(len(names))]
	}
	number := func(usual string) string {
		if r.IntN(30) > 0 {
			return usual
		}
		return pick("", "7777777", "-1", "        ", "99999", "\x80\x00\x00\x00\x00\x00\x00\x01", "\xff\xff\xff\xff\xff\xff\xff\xff", "\x80\xff\xff\xff\xff\xff\xff\xff", "0x10", "1 2")
	}
	value := func() string {
		return pick("", "0", "-1", "5", "1.5", "-0.25", "18446744073709551616", "9223372036854775807", "0,4", "0,4,8", "x", "4294967295", "user::rwx", strings.Repeat("v", 3000), "\x00", name(), out, "../up", "AAAA")
	}
	var b []byte
	for range 1 + r.IntN(8) {
		m := raw{name: name(), kind: "0000000000000555555512222223467\x000SDVLKxgXMZ"[r.IntN(41)], link: pick(name(), "a", "b", "a", "b", "link", out+"/secret", "/etc/passwd", ".."),
			mode: number("0000644"), uid: number("0001750"), gid: number(""), major: number("0000001"), minor: number("0000003"),
			magic: pick("ustar\x0000", "ustar\x0000", "ustar  \x00", "\x00\x00\x00\x00\x00\x00\x00\x00"), prefix: pick("", "", "", "", "", "", "", "", "", "a", "/", ".."),
			data: strings.Repeat("data", r.IntN(3)*r.IntN(300))}
		if strings.IndexByte("123456", m.kind) >= 0 && r.IntN(30) > 0 {
			m.data = "" // as it should be
		}
		if r.IntN(25) == 0 {
			m.size = pick("77777777777", "00000000000", "00000000003", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", "00000010000", "x")
		}
		if m.kind == 'S' {
			m.magic = "ustar  \x00"
			m.more = map[int64]string{386: pick("00000000000\x0000000000004\x00", "00000001000\x0000000000004\x00", ""), 482: pick("\x00", "\x01"), 483: pick("00000000004", "00000010000", "77777777777", "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")}
		}
		switch r.IntN(6) {
		case 0:
			var list []record
			for range 1 + r.IntN(3) {
				list = append(list, record{pick("path", "linkpath", "size", "uid", "gid", "mtime", "hdrcharset", "comment", "SCHILY.xattr.user.a", "SCHILY.xattr.trusted.b", "LIBARCHIVE.xattr.user.%61",
					"SCHILY.acl.access", "SCHILY.acl.default", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.name", "GNU.sparse.offset", "GNU.sparse.numbytes",
					"SCHILY.devmajor", "SCHILY.fflags", "DOPPEL.fflags", "DOPPEL.project", "RHT.security.selinux"), value()})
			}
			b = append(b, paxed(m, list...)...)
		default:
			b = append(b, m.bytes()...)
		}
	}
	if r.IntN(12) > 0 {
		b = append(b, make([]byte, 2*blockSize)...)
	}
	for range r.IntN(4) / 3 * r.IntN(3) { // and damage to it
		b[r.IntN(len(b))] ^= byte(1 << r.IntN(8))
	}
	if r.IntN(20) == 0 {
		b = b[:r.IntN(len(b)+1)]
	}
	return b
}

// 600 hostile archives: each is an error that leaves the images as they were,
// or a version that is restored beneath its target and nowhere else.
func TestSixHundredHostileArchives(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	out := filepath.Join(top, "out")
	fill(t, out+"/secret", []byte("secret"))
	random := rand.New(rand.NewPCG(1, 2))
	c := openCatalog(t)
	_, err := importBytes(t, c, "kept", archive(raw{name: "f", kind: '0', data: "kept"}))
	must(t, err)
	taken, refused := 0, 0
	for i := range 600 {
		b := hostile(random, out)
		outside, state := stamps(t, top), stamps(t, filepath.Join(c.Dir(), "store", "names"))
		passwd := stamps(t, "/etc/passwd")
		_, err := importBytes(t, c, "x", b)
		if err != nil {
			refused++
			if now := stamps(t, filepath.Join(c.Dir(), "store", "names")); !slices.Equal(now, state) {
				t.Fatalf("archive %d, refused with %v, changed the images", i, err)
			}
		} else {
			taken++
			m, vault := manifest(t, c, "x")
			target := filepath.Join(t.TempDir(), "target")
			// It may say that a file of 8 EiB is too large for this disk.
			_, err = imaging.Apply(t.Context(), m, vault, target, imaging.ApplyOptions{})
			if err != nil && !errors.Is(err, unix.EFBIG) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENAMETOOLONG) {
				t.Errorf("archive %d cannot be restored: %v", i, err)
			}
			must(t, os.RemoveAll(target))
		}
		if !slices.Equal(stamps(t, top), outside) || !slices.Equal(stamps(t, "/etc/passwd"), passwd) {
			t.Fatalf("archive %d (%v) changed what is outside of the store and the target", i, err)
		}
	}
	if _, err := os.Lstat("/abs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/abs was made: %v", err)
	}
	if taken < 60 || refused < 200 {
		t.Errorf("%d archives were taken, %d refused: the test no longer tests both", taken, refused)
	}
	t.Logf("%d taken, %d refused", taken, refused)
	must(t, c.Verify(t.Context(), nil, true, func(f imaging.ImageFault) { t.Errorf("fault: %v", f) }))
}

// stamps say by inode and change time what everything below path is.
func stamps(tb testing.TB, path string) []string {
	tb.Helper()
	var list []string
	must(tb, filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		list = append(list, fmt.Sprint(path, st.Ino, st.Ctim, st.Size))
		return err
	}))
	return list
}
