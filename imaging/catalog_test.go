package imaging

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/imaging/store"
)

func resolved(t *testing.T, c *Catalog, ref string) string {
	t.Helper()
	v, err := c.Resolve(t.Context(), ref)
	if err != nil {
		return err.Error()
	}
	return v.Ref()
}

func TestCatalogNames(t *testing.T) {
	ctx := t.Context()
	c := openTestCatalog(t)
	if list, err := c.List(ctx); err != nil || list == nil || len(list) > 0 {
		t.Errorf("an empty catalog: %v %v", list, err)
	}
	var unknown *UnknownImageError
	if _, err := c.Resolve(ctx, "head"); !errors.As(err, &unknown) {
		t.Errorf("no image: %v", err)
	}
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Error("looking made the state directory")
	}
	must(t, c.Create(ctx))
	must(t, c.Create(ctx))
	digest := func(s string) string { return "sha256:" + s + strings.Repeat("0", 64-len(s)) }
	for _, v := range []Version{
		{Image: "head", Digest: digest("aaaa1"), Tags: []string{"good"}}, {Image: "head", Digest: digest("aaaa2")},
		{Image: "abcd", Digest: digest("bbbb")}, {Image: "copy", Digest: digest("aaaa1")},
	} {
		_, err := c.Add(ctx, v)
		must(t, err)
	}
	for ref, want := range map[string]string{
		"head": "head@2", "head@1": "head@1", "head@latest": "head@2", "head@good": "head@1",
		"abcd": "abcd@1", "bbbb": "abcd@1", "sha256:bbbb": "abcd@1", "BBBB": "abcd@1", "aaaa2": "head@2", digest("bbbb"): "abcd@1",
		"aaaa1": "head@1", // twice the same tree is no question
	} {
		if got := resolved(t, c, ref); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	for _, ref := range []string{"", "head@", "head@3", "head@0", "head@bad", "none", "bbb", "cccc", "@1", "head@1@2", "../names/head", "sha256:"} {
		if _, err := c.Resolve(ctx, ref); !errors.As(err, &unknown) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	var ambiguous *AmbiguousError
	if _, err := c.Resolve(ctx, "aaaa"); !errors.As(err, &ambiguous) || len(ambiguous.Among) != 2 || !strings.Contains(err.Error(), "head@2") {
		t.Errorf("the beginning of two digests: %v", err)
	}
	if v, err := c.Tag(ctx, "head", "good"); err != nil || v.Number != 2 {
		t.Error(v, err)
	}
	if got := resolved(t, c, "head@good"); got != "head@2" {
		t.Errorf("the tag did not move: %s", got)
	}
	for _, tag := range []string{"", "latest", "17", "a/b", "-x"} {
		if _, err := c.Tag(ctx, "head", tag); err == nil {
			t.Errorf("%q is taken for a tag", tag)
		}
	}
	if _, err := c.Tag(ctx, "head@9", "x"); !errors.As(err, &unknown) {
		t.Errorf("tagging what is not there: %v", err)
	}
}

// TestCatalogNumbers: many at once, each gets a number of its own.
func TestCatalogNumbers(t *testing.T) {
	c := openTestCatalog(t)
	must(t, c.Create(t.Context()))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			other, err := OpenCatalog(c.Dir(), CatalogOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				if _, err := other.Add(t.Context(), Version{Image: "x", Digest: store.Sum(nil).String(), Time: time.Now()}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	list, err := c.List(t.Context())
	must(t, err)
	for i, v := range list {
		if v.Number != i+1 {
			t.Fatalf("version %d at %d", v.Number, i)
		}
	}
	if len(list) != 40 {
		t.Errorf("%d versions", len(list))
	}
}

func storeSize(t *testing.T, c *Catalog) (packs, manifests int) {
	t.Helper()
	st, err := c.Store()
	must(t, err)
	must(t, st.List(t.Context(), store.KindPack, func(store.ID, int64) error { packs++; return nil }))
	must(t, st.List(t.Context(), store.KindManifest, func(store.ID, int64) error { manifests++; return nil }))
	return packs, manifests
}

func TestCatalogRemove(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/kept", noise(1<<20, 1))
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	fill(t, root+"/gone", noise(1<<20, 2))
	takeImage(t, c, root, "x")
	must(t, os.Remove(root+"/gone"))
	fill(t, root+"/later", noise(1<<20, 3))
	takeImage(t, c, root, "x")
	if packs, manifests := storeSize(t, c); packs != 3 || manifests != 3 {
		t.Fatalf("%d packs, %d manifests", packs, manifests)
	}
	v, err := c.Remove(t.Context(), "x@2")
	if err != nil || v.Number != 2 {
		t.Error(v, err)
	}
	if packs, manifests := storeSize(t, c); packs != 2 || manifests != 2 {
		t.Errorf("%d packs, %d manifests", packs, manifests)
	}
	verifyAll(t, c)
	if files := readVersion(t, c, "x@1"); files["kept"] != string(noise(1<<20, 1)) {
		t.Error("version 1 is another")
	}
	// A number is not used again, also not the last one.
	_, err = c.Remove(t.Context(), "x@3")
	must(t, err)
	if r := takeImage(t, c, root, "x"); r.Version != 4 {
		t.Errorf("the version after 3 is %d", r.Version)
	}
	for _, ref := range []string{"x@1", "x@4"} {
		_, err = c.Remove(t.Context(), ref)
		must(t, err)
	}
	if packs, manifests := storeSize(t, c); packs != 0 || manifests != 0 {
		t.Errorf("%d packs, %d manifests are left of nothing", packs, manifests)
	}
	if r := takeImage(t, c, root, "x"); r.Version != 5 || r.BytesSent == 0 {
		t.Errorf("after all: %+v", r)
	}
	verifyAll(t, c)
}

// TestCatalogSweep: what interrupted captures left is swept up, what versions
// need is not, and with a manifest that cannot be read nothing is.
func TestCatalogSweep(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/file", noise(1<<20, 1))
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	for i := range 12 {
		fill(t, root+"/more"+string(rune('a'+i)), noise(1<<20, byte(10+i)))
	}
	_, err := Capture(t.Context(), c, &broken{NewLocal(root), 1}, CaptureOptions{Name: "x", Root: root})
	if !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	before, _ := storeSize(t, c)
	freed, err := c.Sweep(t.Context())
	if err != nil || freed.Blobs != 1 || freed.Deleted < 4<<20 {
		t.Errorf("%d packs; freed %+v, %v", before, freed, err)
	}
	verifyAll(t, c)
	takeImage(t, c, root, "y")
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	must(t, os.Remove(filepath.Join(c.Dir(), "store/manifests", v.Blob.Hex())))
	before, _ = storeSize(t, c)
	if _, err := c.Remove(t.Context(), "y"); err == nil || !strings.Contains(err.Error(), "x@1") {
		t.Errorf("with a manifest that is lost: %v", err)
	}
	if after, _ := storeSize(t, c); after != before {
		t.Error("packs were deleted though it is not known who needs them")
	}
}

// TestCatalogVerify damages a store and looks for the names of what is wrong.
func TestCatalogVerify(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	fill(t, root+"/a", noise(1<<20, 1))
	c := openTestCatalog(t)
	must(t, c.Verify(ctx, nil, true, func(f ImageFault) { t.Errorf("fault in nothing: %v", f) }))
	takeImage(t, c, root, "x")
	fill(t, root+"/b", noise(1<<20, 2))
	takeImage(t, c, root, "x")
	verifyAll(t, c)
	faults := func(readData bool, refs ...string) []string {
		var list []string
		must(t, c.Verify(ctx, refs, readData, func(f ImageFault) {
			s := f.Path
			if f.Version.Number > 0 {
				s = f.Version.Ref() + ":" + f.Path
			}
			if f.Path != "" && f.Chunk.IsZero() {
				t.Errorf("no chunk is named: %v", f)
			}
			if !slices.Contains(list, s) {
				list = append(list, s)
			}
		}))
		return list
	}
	// Find the pack of b, which only version 2 needs.
	v1, _ := c.Resolve(ctx, "x@1")
	m1, err := c.Manifest(ctx, v1)
	must(t, err)
	vault, err := c.Vault(ctx)
	must(t, err)
	var refs []store.Ref
	for ref := range m1.Refs() {
		refs = append(refs, ref.Ref)
	}
	packs, err := vault.PacksOf(refs)
	must(t, err)
	all, err := filepath.Glob(filepath.Join(c.Dir(), "store/packs/*"))
	if err != nil || len(all) != 2 || len(packs) != 1 {
		t.Fatal(all, packs, err)
	}
	other := all[0]
	if filepath.Base(other) == packs[0].Hex() {
		other = all[1]
	}
	good, err := os.ReadFile(other)
	must(t, err)

	bad := slices.Clone(good)
	bad[len(bad)/3] ^= 1
	must(t, os.WriteFile(other, bad, 0o600))
	if got := faults(false); len(got) > 0 {
		t.Errorf("without reading data: %q", got)
	}
	if got := faults(true); !slices.Equal(got, []string{"x@2:b"}) {
		t.Errorf("with a flipped bit: %q", got)
	}
	if got := faults(true, "x@1"); len(got) > 0 {
		t.Errorf("version 1 has no part in it: %q", got)
	}
	if got := faults(true, "x@2", "x@1"); !slices.Equal(got, []string{"x@2:b"}) {
		t.Errorf("with a flipped bit: %q", got)
	}
	must(t, os.Remove(other))
	if got := faults(false); !slices.Equal(got, []string{"x@2:b"}) {
		t.Errorf("without the pack: %q", got)
	}
	must(t, os.WriteFile(other, good, 0o600))
	verifyAll(t, c)
	must(t, os.WriteFile(filepath.Join(c.Dir(), "store/manifests", v1.Blob.Hex()), []byte("no manifest"), 0o600))
	if got := faults(false); !slices.Equal(got, []string{"x@1:"}) {
		t.Errorf("without a manifest: %q", got)
	}
	if err := c.Verify(ctx, []string{"none"}, false, func(ImageFault) {}); err == nil {
		t.Error("an image that is not there was verified")
	}
	// The next capture of the same tree as version 2's needs no new version.
	if r := takeImage(t, c, root, "x"); !r.Unchanged || r.Version != 2 {
		t.Errorf("%+v", r)
	}
}

// TestCaptureMends: a capture sends again what the store has lost.
func TestCaptureMends(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/a", noise(1<<20, 1))
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	packs, err := filepath.Glob(filepath.Join(c.Dir(), "store/packs/*"))
	must(t, err)
	must(t, os.Truncate(packs[0], 100))
	if r := takeImage(t, c, root, "x"); !r.Unchanged || r.BytesSent < 1<<20 {
		t.Errorf("%+v", r)
	}
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	must(t, c.Verify(t.Context(), []string{v.Ref()}, true, func(f ImageFault) { t.Errorf("fault: %v", f) }))
}

func FuzzNameFile(f *testing.F) {
	b, err := (&nameFile{Next: 2, Versions: []Version{{Image: "x", Number: 1, Digest: store.Sum(nil).String(), Tags: []string{"t"}}}}).encode("x")
	must(f, err)
	f.Add(b)
	_, text, _ := strings.Cut(string(b), "\n")
	f.Add([]byte(text))
	f.Add([]byte(`{"next":1,"versions":[{"version":-1}]}`))
	f.Add([]byte(`{"next":1}{`))
	f.Add([]byte(namesHeader))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseNameFile("x", b); err != nil {
			// Then as one whose digest is right.
			b = append([]byte(namesHeader+namesDigest("x", b)+"\n"), b...)
		}
		n, err := parseNameFile("x", b)
		if err != nil {
			return
		}
		if again, err := n.encode("x"); err != nil {
			t.Error(err)
		} else if _, err := parseNameFile("x", again); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
		n.pick("latest")
		n.pick("1")
	})
}
