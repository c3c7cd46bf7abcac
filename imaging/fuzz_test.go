package imaging

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"doppel/imaging/store"
)

// FuzzDetectBoot looks for what starts a machine in any tree: names and links
// are the head's, links lead in circles and out of the tree.
func FuzzDetectBoot(f *testing.F) {
	f.Add("boot/vmlinuz-6.1.0-9-amd64\nboot/initrd.img-6.1.0-9-amd64\nusr/lib/modules/6.1.0-9-amd64/\nsbin -> usr/sbin\nusr/sbin/grub-install")
	f.Add("boot -> boot\nusr -> ../../..\nbin -> /bin\nboot/vmlinuz-1 -> ../boot/vmlinuz-1\netc/netplan/x.yaml")
	f.Add("boot/vmlinuz-\nboot/vmlinuz-6.1\xff\nboot/Image-00000000000000000000000000000001 -> /\nlib -> usr/lib\nusr/lib -> lib")
	f.Fuzz(func(t *testing.T, tree string) {
		var paths []string
		for _, p := range strings.Split(tree, "\n") {
			name, _, _ := strings.Cut(strings.TrimSuffix(p, "/"), " -> ")
			if len(paths) < 100 && name != "." && filepath.IsLocal(name) && filepath.Clean(name) == name {
				paths = append(paths, p)
			}
		}
		list := treeOf(paths...)
		b := DetectBoot(list)
		there := func(p string) bool { _, ok := list.Find(p); return ok }
		for _, k := range b.Kernels {
			if !there(k.Path) || k.Initrd != "" && !there(k.Initrd) || k.Modules != "" && !there(k.Modules) || !isRelease(k.Release) {
				t.Fatalf("%q has no kernel %+v", tree, k)
			}
		}
		if !slices.IsSortedFunc(b.Kernels, func(a, b Kernel) int { return compareReleases(b.Release, a.Release) }) {
			t.Fatalf("%q: kernels out of order: %+v", tree, b.Kernels)
		}
	})
}

// FuzzCompareReleases: an order, in which nothing is before itself.
func FuzzCompareReleases(f *testing.F) {
	f.Add("6.1.0-9-amd64", "6.1.0-37-amd64", "6.1.0-37-cloud-amd64")
	f.Add("0", "00", "000")
	f.Add("", "99999999999999999999999", "a1")
	f.Add("1a", "a", "01")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, bc, ac := compareReleases(a, b), compareReleases(b, c), compareReleases(a, c)
		if ab != -compareReleases(b, a) || compareReleases(a, a) != 0 {
			t.Fatalf("%q and %q: %d and %d", a, b, ab, compareReleases(b, a))
		}
		if ab != 0 && cmp.Compare(ab, 0) == bc && ac != ab || ab == 0 && ac != bc {
			t.Fatalf("%q %q %q: %d %d %d", a, b, c, ab, bc, ac)
		}
	})
}

// FuzzResolve gives a catalog any word for an image: it is one of those there
// are, or an error, and no file outside of the names is read.
func FuzzResolve(f *testing.F) {
	c, err := OpenCatalog(filepath.Join(f.TempDir(), "state"), CatalogOptions{})
	must(f, err)
	must(f, c.Create(f.Context()))
	digest := ""
	for i, image := range []string{"head", "head", "gpu"} {
		id := store.Sum([]byte{byte(i)})
		digest = id.String()
		_, err := c.Add(f.Context(), Version{Image: image, Digest: digest, Blob: id, Time: time.Unix(int64(i), 0), Tags: []string{"golden"}})
		must(f, err)
	}
	for _, s := range []string{"head", "head@1", "head@latest", "head@golden", "gpu@2", "head@-1", "head@99999999999999999999", digest, digest[7:12], "sha256:",
		"../names/head", "head@@", "@", "", "head\x00", "/etc/shadow", "..", ".", "HEAD@1", "head@01"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		v, err := c.Resolve(t.Context(), ref)
		if err != nil {
			return
		}
		name, _, at := strings.Cut(ref, "@")
		if v.Number < 1 || v.Digest == "" || at && v.Image != name || !at && v.Image != name && !strings.Contains(v.Digest, strings.ToLower(strings.TrimPrefix(name, "sha256:"))) {
			t.Fatalf("%q is %+v", ref, v)
		}
	})
}
