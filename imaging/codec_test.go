package imaging

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"doppel/imaging/store"
)

func chunkOf(s string) store.Chunk {
	return store.Chunk{ID: store.Sum([]byte(s)), Size: uint32(len(s))}
}

// sampleManifest has every kind of entry and every turn of the encoding.
func sampleManifest() *Manifest { return describe(manifestOf(sampleEntries()...)) }

func sampleEntries() []Entry {
	list := []Entry{
		{Path: ".", Kind: Directory, Mode: 0o755},
		{Path: "a", Kind: Directory, Mode: 0o1777, UID: math.MaxUint32, GID: 12, MTime: Time{-1, 999_999_999}},
		{Path: "a/\x01\xfe", Kind: Regular, Mode: 0o4755, Size: 5, MTime: Time{math.MinInt64, 0}, Chunks: []store.Chunk{chunkOf("hello")},
			Xattrs: []Xattr{{"security.capability", []byte{1, 0, 2}}, {"user.empty", nil}}},
		{Path: "a/link\n", Kind: Symlink, Mode: 0o777, Target: "../\xff", Xattrs: []Xattr{{"trusted.x", []byte("y")}}},
		{Path: "a/sub", Kind: Directory, Opaque: true, Flags: 0x10, Project: 77},
		{Path: "a-b", Kind: Regular, Size: 0},
		{Path: "b", Kind: HardLink, Target: "a/\x01\xfe"},
		{Path: "blk", Kind: BlockDevice, Major: 8, Minor: 1 << 20},
		{Path: "chr", Kind: CharDevice, Major: 1, Minor: 3},
		{Path: "fifo", Kind: FIFO, MTime: Time{1 << 40, 1}},
		{Path: "hole", Kind: Regular, Size: 1 << 40, Extents: []Extent{}},
		{Path: "key", Kind: Regular, Mode: 0o600, Size: 3, Class: ClassNode, Chunks: []store.Chunk{chunkOf("key")}},
		{Path: "key2", Kind: Regular, Size: 1 << 20, Class: ClassHead, Extents: []Extent{{10, 2}, {100, 1}}, Chunks: []store.Chunk{chunkOf("ke"), chunkOf("y")}},
		{Path: "munge", Kind: Regular, Flags: 0x800040, Size: 3, Class: ClassCluster, Chunks: []store.Chunk{chunkOf("mun")}},
		{Path: "sock", Kind: Socket},
		{Path: "sparse", Kind: Regular, Size: 100, Extents: []Extent{{0, 1}, {50, 50}}, Chunks: []store.Chunk{{ID: store.Sum([]byte("z")), Size: 51}}},
	}
	return list
}

// describe gives a manifest a head.
func describe(m *Manifest) *Manifest {
	m.Facts = Facts{Hostname: "head", OSRelease: map[string]string{"ID": "debian", "A": "<&>"}}
	m.Layout = &Layout{Table: "gpt", Partitions: []LayoutPartition{{Number: 1, FS: &FileSystem{Type: "ext4"}}}}
	m.Boot = Boot{Kernels: []Kernel{{Release: "6.1"}}, Loaders: []string{}, Tools: []string{}}
	m.Entries, m.Bytes = int64(m.List.Len()), m.List.Bytes()
	return m
}

// encode gives the plain bytes of a manifest's two parts.
func encode(t testing.TB, m *Manifest) (cluster, head []byte) {
	t.Helper()
	cluster, err := m.preamble()
	must(t, err)
	head, err = m.headPart()
	must(t, err)
	return append(cluster, bytes.Join(m.List.parts, nil)...), head
}

// decode reads what encode gave; head may be nil.
func decode(cluster, head []byte) (*Manifest, error) {
	x := newManifestDecoder()
	rest, err := x.preamble(cluster)
	if err == nil {
		err = x.part(rest)
	}
	if err == nil && head != nil {
		err = x.head(head)
	}
	if err != nil {
		return nil, err
	}
	return x.done()
}

// entriesOf gives all entries as values.
func entriesOf(m *Manifest) []Entry {
	var list []Entry
	for _, e := range m.List.All() {
		list = append(list, *e)
	}
	return list
}

func TestManifestRoundTrip(t *testing.T) {
	m := sampleManifest()
	cluster, head := encode(t, m)
	got, err := decode(cluster, head)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Head, m.Head) || !reflect.DeepEqual(entriesOf(got), sampleEntries()) {
		t.Errorf("decoded:\n%+v\nwant:\n%+v", entriesOf(got), sampleEntries())
	}
}

func TestManifestWithheld(t *testing.T) {
	cluster, head := encode(t, sampleManifest())
	got, err := decode(cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got.List.All() {
		secret := e.Path == "key" || e.Path == "key2"
		if e.Withheld != secret || secret && (e.Chunks != nil || e.Extents != nil || e.Size == 0) {
			t.Errorf("without the head part: %+v", e)
		}
	}
	if _, err := got.Digest(); err == nil {
		t.Error("a manifest with withheld entries was encoded")
	}
	for _, secret := range []string{"key", "ke", "y"} {
		id := store.Sum([]byte(secret))
		if bytes.Contains(cluster, id[:]) {
			t.Errorf("the cluster part names the chunk of %q", secret)
		}
		if !bytes.Contains(head, id[:]) {
			t.Errorf("the head part does not name the chunk of %q", secret)
		}
	}
}

// TestManifestFrozen holds the format still: a manifest written by an older
// doppel must have the same digest for ever.
func TestManifestFrozen(t *testing.T) {
	cluster, head := encode(t, sampleManifest())
	const want = "sha256:e1840fda2bc572ff52889ad7f69ba19a7b6643c8138f26b9377d6e90d5af47cd"
	if got := digestOf(cluster, head).String(); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

// digestOf computes a digest as FORMAT.md says.
func digestOf(cluster, head []byte) store.ID {
	c, h := store.Sum(cluster), store.Sum(head)
	return store.Sum(slices.Concat([]byte("doppel manifest v2"), c[:], h[:]))
}

// TestManifestOneEncoding: extents that say nothing make no other digest.
func TestManifestOneEncoding(t *testing.T) {
	list := sampleEntries()
	for i := range list {
		if e := &list[i]; e.Kind == Regular && e.Extents == nil && e.Size > 0 {
			e.Extents = []Extent{{0, e.Size}}
		}
	}
	a, b := encode(t, sampleManifest())
	c, d := encode(t, describe(manifestOf(list...)))
	if !bytes.Equal(a, c) || !bytes.Equal(b, d) {
		t.Error("extents over the whole file change the encoding")
	}
}

func TestEncodeRefuses(t *testing.T) {
	file := func(path string) Entry { return Entry{Path: path, Kind: Regular} }
	dir := func(path string) Entry { return Entry{Path: path, Kind: Directory} }
	one := []store.Chunk{chunkOf("12345")}
	for name, list := range map[string][]Entry{
		"nothing":           {},
		"no root":           {dir("a")},
		"root is a file":    {file(".")},
		"root twice":        {dir("."), dir(".")},
		"twice":             {dir("."), file("a"), file("a")},
		"out of order":      {dir("."), file("b"), file("a")},
		"order of siblings": {dir("."), dir("a"), file("a-b"), file("a/b")},
		"no parent":         {dir("."), file("a/b")},
		"parent is a file":  {dir("."), file("a"), file("a/b")},
		"parent is a link":  {dir("."), {Path: "a", Kind: Symlink, Target: "/etc"}, file("a/b")},
		"parent left":       {dir("."), dir("a"), dir("a/x"), dir("b"), file("b/x/y")},
		"absolute":          {dir("."), file("/etc")},
		"dotdot":            {dir("."), file("..")},
		"dotdot within":     {dir("."), dir("a"), file("a/..")},
		"dot":               {dir("."), dir("a"), file("a/.")},
		"empty element":     {dir("."), dir("a"), file("a//b")},
		"trailing slash":    {dir("."), dir("a"), file("a/")},
		"empty path":        {dir("."), file("")},
		"NUL":               {dir("."), file("a\x00b")},
		"long element":      {dir("."), file(strings.Repeat("a", maxElement+1))},
		"no kind":           {dir("."), {Path: "a"}},
		"flags of a link":   {dir("."), {Path: "a", Kind: Symlink, Target: "b", Flags: 0x10}},
		"flags not kept":    {dir("."), {Path: "a", Kind: Regular, Flags: 0x80000}},
		"unknown kind":      {dir("."), {Path: "a", Kind: HardLink + 1}},
		"unknown class":     {dir("."), {Path: "a", Kind: Regular, Class: ClassHead + 1}},
		"class of a dir":    {dir("."), {Path: "a", Kind: Directory, Class: ClassHead}},
		"opaque file":       {dir("."), {Path: "a", Kind: Regular, Opaque: true}},
		"mode":              {dir("."), {Path: "a", Kind: Regular, Mode: 0o10000}},
		"nanoseconds":       {dir("."), {Path: "a", Kind: Regular, MTime: Time{0, 1e9}}},
		"empty target":      {dir("."), {Path: "a", Kind: Symlink}},
		"NUL in target":     {dir("."), {Path: "a", Kind: Symlink, Target: "a\x00"}},
		"link to nothing":   {dir("."), {Path: "a", Kind: HardLink, Target: "b"}},
		"link to later":     {dir("."), {Path: "a", Kind: HardLink, Target: "b"}, file("b")},
		"link to itself":    {dir("."), {Path: "a", Kind: HardLink, Target: "a"}},
		"link to dir":       {dir("."), dir("a"), {Path: "b", Kind: HardLink, Target: "a"}},
		"link to link":      {dir("."), file("a"), {Path: "b", Kind: HardLink, Target: "a"}, {Path: "c", Kind: HardLink, Target: "b"}},
		"negative size":     {dir("."), {Path: "a", Kind: Regular, Size: -1}},
		"content of a dir":  {dir("."), {Path: "a", Kind: Directory, Chunks: one}},
		"chunks too long":   {dir("."), {Path: "a", Kind: Regular, Size: 4, Chunks: one}},
		"chunks too short":  {dir("."), {Path: "a", Kind: Regular, Size: 6, Chunks: one}},
		"no chunks":         {dir("."), {Path: "a", Kind: Regular, Size: 6}},
		"empty chunk":       {dir("."), {Path: "a", Kind: Regular, Size: 5, Chunks: append([]store.Chunk{{}}, one...)}},
		"extent outside":    {dir("."), {Path: "a", Kind: Regular, Size: 7, Extents: []Extent{{3, 5}}, Chunks: one}},
		"extent overflows":  {dir("."), {Path: "a", Kind: Regular, Size: 7, Extents: []Extent{{3, math.MaxInt64}}, Chunks: one}},
		"extents overlap":   {dir("."), {Path: "a", Kind: Regular, Size: 9, Extents: []Extent{{0, 3}, {2, 2}}, Chunks: one}},
		"extents touch":     {dir("."), {Path: "a", Kind: Regular, Size: 9, Extents: []Extent{{0, 3}, {3, 2}}, Chunks: one}},
		"extents unsorted":  {dir("."), {Path: "a", Kind: Regular, Size: 9, Extents: []Extent{{5, 3}, {0, 2}}, Chunks: one}},
		"empty extent":      {dir("."), {Path: "a", Kind: Regular, Size: 9, Extents: []Extent{{0, 0}, {3, 5}}, Chunks: one}},
		"negative extent":   {dir("."), {Path: "a", Kind: Regular, Size: 9, Extents: []Extent{{-1, 5}}, Chunks: one}},
		"xattrs unsorted":   {dir("."), {Path: "a", Kind: Regular, Xattrs: []Xattr{{"user.b", nil}, {"user.a", nil}}}},
		"xattr twice":       {dir("."), {Path: "a", Kind: Regular, Xattrs: []Xattr{{"user.b", nil}, {"user.b", nil}}}},
		"xattr unnamed":     {dir("."), {Path: "a", Kind: Regular, Xattrs: []Xattr{{"", nil}}}},
		"withheld":          {dir("."), {Path: "a", Kind: Regular, Size: 5, Class: ClassHead, Withheld: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if entries, err := NewEntries(list...); err == nil {
				_, err := decode(encode(t, describe(&Manifest{List: entries})))
				t.Errorf("encoded; decoding it: %v", err)
			}
		})
	}
}

// TestDecodeRefusesEveryCut: a manifest cut short anywhere is no manifest.
func TestDecodeRefusesEveryCut(t *testing.T) {
	cluster, head := encode(t, sampleManifest())
	for i := range cluster {
		if _, err := decode(cluster[:i], head); err == nil {
			t.Fatalf("decoded from %d of %d bytes", i, len(cluster))
		}
	}
	for i := range head {
		if _, err := decode(cluster, head[:i]); err == nil {
			t.Fatalf("decoded from %d of %d bytes of the head part", i, len(head))
		}
	}
	if _, err := decode(append(bytes.Clone(cluster), 0), head); err == nil {
		t.Error("decoded with a byte too many")
	}
	if _, err := decode(cluster, append(bytes.Clone(head), 0)); err == nil {
		t.Error("decoded with a byte too many in the head part")
	}
}

func FuzzDecodeManifest(f *testing.F) {
	cluster, head := encode(f, sampleManifest())
	f.Add(cluster, head)
	f.Add(cluster, []byte(nil))
	empty := describe(manifestOf(Entry{Path: ".", Kind: Directory}))
	cluster, head = encode(f, empty)
	f.Add(cluster, head)
	f.Add([]byte(clusterMagic), []byte(headMagic))
	f.Add(append([]byte(clusterMagic), 2, '{', '}', 0xff, 0xff, 0xff, 0xff, 0x0f), []byte(headMagic))
	f.Fuzz(func(t *testing.T, cluster, head []byte) {
		m, err := decode(cluster, head)
		if err != nil {
			return
		}
		if head == nil {
			return
		}
		// What decodes is right in all respects, and has one encoding.
		list, err := NewEntries(entriesOf(m)...)
		if err != nil {
			t.Fatalf("decoded, but no entries again: %v", err)
		}
		again, headAgain := encode(t, &Manifest{Head: m.Head, List: list})
		for i, e := range m.List.All() {
			if at, ok := m.List.Find(e.Path); !ok || at != i {
				t.Errorf("%q is at %d and found at %d", e.Path, i, at)
			}
		}
		if !bytes.Equal(again, cluster) || !bytes.Equal(headAgain, head) {
			t.Error("two encodings of one manifest")
		}
	})
}

func testKeys(t testing.TB) store.Keys {
	t.Helper()
	a, err := store.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return store.Keys{Cluster: &a, Head: &b}
}

func TestManifestBlob(t *testing.T) {
	ctx := t.Context()
	st, keys := store.NewMemory(), testKeys(t)
	m := sampleManifest()
	blob, digest, err := WriteManifest(ctx, st, keys, m)
	if err != nil {
		t.Fatal(err)
	}
	again, same, err := WriteManifest(ctx, st, keys, m)
	if err != nil || same != digest || again == blob {
		t.Errorf("written twice: %v %v %v", again == blob, same == digest, err)
	}
	got, read, err := ReadManifest(ctx, st, keys, blob)
	if err != nil || read != digest || !reflect.DeepEqual(entriesOf(got), entriesOf(m)) {
		t.Errorf("read: %v, digest %s, want %s", err, read, digest)
	}
	node := store.Keys{Cluster: keys.Cluster}
	got, read, err = ReadManifest(ctx, st, node, blob)
	if err != nil || read != digest || !got.List.At(11).Withheld {
		t.Errorf("read without the head's key: %v, digest %s, want %s", err, read, digest)
	}
	if _, _, err := ReadManifest(ctx, st, testKeys(t), blob); err == nil {
		t.Error("read with other keys")
	}
	if _, _, err := WriteManifest(ctx, st, node, m); err == nil {
		t.Error("written without the head's key")
	}
	raw, err := store.ReadBlob(ctx, st, store.KindManifest, blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, len(sealedMagic) + 7, len(sealedMagic) + 40, len(raw) / 2, len(raw) - 1} {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		id, err := store.PutBlob(ctx, st, store.KindManifest, bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadManifest(ctx, st, keys, id); err == nil {
			t.Errorf("byte %d of %d changed and nothing said", i, len(raw))
		}
	}
	var missing *store.MissingError
	if _, _, err := ReadManifest(ctx, st, keys, store.Sum(nil)); !errors.As(err, &missing) {
		t.Errorf("a manifest that is not there: %v", err)
	}
}

// TestManifestSectionsBelongTogether: the head section of another manifest of
// the same keys is refused.
func TestManifestSectionsBelongTogether(t *testing.T) {
	ctx := t.Context()
	st, keys := store.NewMemory(), testKeys(t)
	list := sampleEntries()
	list[11].Chunks = []store.Chunk{chunkOf("kex")}
	blob, digest, err := WriteManifest(ctx, st, keys, sampleManifest())
	must(t, err)
	other, otherDigest, err := WriteManifest(ctx, st, keys, describe(manifestOf(list...)))
	if err != nil || otherDigest == digest {
		t.Fatal("another head part, the same digest", err)
	}
	a, _ := store.ReadBlob(ctx, st, store.KindManifest, blob)
	b, _ := store.ReadBlob(ctx, st, store.KindManifest, other)
	second := func(b []byte) int { return bytes.LastIndex(b, []byte("DOPPELMF")) }
	id, err := store.PutBlob(ctx, st, store.KindManifest, append(bytes.Clone(a[:second(a)]), b[second(b):]...))
	must(t, err)
	if _, _, err := ReadManifest(ctx, st, keys, id); err == nil || !strings.Contains(err.Error(), "two manifests") {
		t.Errorf("sections of two manifests: %v", err)
	}
}
