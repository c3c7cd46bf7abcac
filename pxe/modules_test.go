package pxe

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"doppel/imaging"
	"doppel/imaging/store"
)

func xzOf(s string) string {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	if _, err := io.WriteString(w, s); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func gzipOf(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func zstdOf(t *testing.T, s string) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return string(w.EncodeAll([]byte(s), nil))
}

const modulesDir = "usr/lib/modules/6.6.6"

// smallImage is an image with a kernel whose modules are packed in every way.
func smallImage(t *testing.T, config string) (*imaging.Manifest, memory) {
	t.Helper()
	k := modulesDir + "/kernel/"
	m, chunks := image(map[string]string{
		"boot/vmlinuz-6.6.6": "the kernel",
		"boot/config-6.6.6":  config,
		modulesDir + "/modules.dep": "kernel/drivers/net/ethernet/intel/e1000e.ko.xz: kernel/drivers/ptp/ptp.ko.zst kernel/drivers/pps/pps_core.ko\n" +
			"kernel/drivers/ptp/ptp.ko.zst: kernel/drivers/pps/pps_core.ko\nkernel/drivers/pps/pps_core.ko:\n" +
			"kernel/fs/xfs/xfs.ko.gz: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\nkernel/arch/x86/crypto/crc32c-intel.ko:\nkernel/sound/snd.ko:\n",
		modulesDir + "/modules.alias":                 "# Aliases\nalias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\nalias fs-xfs xfs\nalias crc32c crc32c-intel\nalias snd-card-* snd\n",
		modulesDir + "/modules.softdep":               "softdep libcrc32c pre: crc32c post: later\n",
		modulesDir + "/modules.builtin":               "kernel/fs/ext4/ext4.ko\n",
		k + "drivers/net/ethernet/intel/e1000e.ko.xz": xzOf("e1000e"),
		k + "drivers/ptp/ptp.ko.zst":                  zstdOf(t, "ptp"),
		k + "drivers/pps/pps_core.ko":                 "pps",
		k + "fs/xfs/xfs.ko.gz":                        gzipOf("xfs"),
		k + "lib/libcrc32c.ko":                        "libcrc32c",
		k + "arch/x86/crypto/crc32c-intel.ko":         "crc32c-intel",
		k + "sound/snd.ko":                            "snd",
	})
	m.Boot.Kernels = []imaging.Kernel{{Release: "6.6.6", Path: "boot/vmlinuz-6.6.6", Modules: modulesDir}, {Release: "5.5.5"}}
	return m, chunks
}

// staticAgent is a program that needs no other file: this test, if it was
// built so, else a header that says as much.
func staticAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	header := make([]byte, 64)
	copy(header, elf.ELFMAG)
	header[elf.EI_CLASS], header[elf.EI_DATA], header[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	header[20], header[52], header[54], header[58] = 1, 64, 56, 64
	if err := os.WriteFile(path, header, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func unpackInitrd(t *testing.T, path string) (map[string]string, []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r io.Reader
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		r, err = gzip.NewReader(bytes.NewReader(b))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(b))
	}
	if err != nil {
		t.Fatal(err)
	}
	files, order := map[string]string{}, []string(nil)
	c := cpio.NewReader(r)
	for {
		h, err := c.Next()
		if err == io.EOF {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], order = string(content), append(order, h.Name)
	}
}

func TestBuildBoot(t *testing.T) {
	m, chunks := smallImage(t, "CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n")
	dir, agent := t.TempDir(), staticAgent(t)
	build := func(m *imaging.Manifest, chunks memory, dir string) Boot {
		t.Helper()
		b, err := BuildBoot(t.Context(), m, chunks, agent, []byte("CA"), dir)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := build(m, chunks, dir)
	if b.Release != "6.6.6" || b.Machine != "x86_64" || b.Kernel != filepath.Join(dir, b.KernelDigest.Hex(), "vmlinuz") || b.Initrd != filepath.Join(dir, b.InitrdDigest.Hex(), "initrd") {
		t.Errorf("%+v", b)
	}
	if k, err := os.ReadFile(b.Kernel); err != nil || string(k) != "the kernel" {
		t.Errorf("kernel %q, %v", k, err)
	}
	files, order := unpackInitrd(t, b.Initrd)
	at := "lib/modules/6.6.6/kernel/"
	for name, want := range map[string]string{
		"etc/doppel/ca.crt":                         "CA",
		at + "drivers/net/ethernet/intel/e1000e.ko": "e1000e", at + "drivers/ptp/ptp.ko": "ptp", at + "drivers/pps/pps_core.ko": "pps",
		at + "fs/xfs/xfs.ko": "xfs", at + "lib/libcrc32c.ko": "libcrc32c", at + "arch/x86/crypto/crc32c-intel.ko": "crc32c-intel",
	} {
		if files[name] != want {
			t.Errorf("%s: %q, want %q", name, files[name], want)
		}
	}
	if _, ok := files[at+"sound/snd.ko"]; ok {
		t.Error("sound is in the initramfs")
	}
	for _, name := range []string{"dev/console", "init", "proc", "sys", "run"} {
		if !slices.Contains(order, name) {
			t.Errorf("no %s", name)
		}
	}
	for i, name := range order { // a directory before what is in it
		if d := filepath.Dir(name); d != "." && !slices.Contains(order[:i], d) {
			t.Errorf("%s comes before its directory", name)
		}
	}
	golden(t, "index.json", strings.ReplaceAll(files["lib/modules/6.6.6/doppel.json"], "},", "},\n")+"\n")

	// The same inputs give the same bytes, from the cache or not, also when the
	// cache was damaged.
	withoutKernel := maps.Clone(chunks) // so that it can only be from the cache
	delete(withoutKernel, store.Sum([]byte("the k")))
	if again := build(m, withoutKernel, dir); again != b {
		t.Errorf("from the cache: %+v", again)
	}
	if err := os.WriteFile(b.Initrd, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again := build(m, chunks, dir); again != b {
		t.Errorf("after damage: %+v", again)
	}
	if elsewhere := build(m, chunks, t.TempDir()); elsewhere.InitrdDigest != b.InitrdDigest {
		t.Error("the bytes depend on more than the inputs")
	}
	m, chunks = smallImage(t, "CONFIG_RD_GZIP=y\n# CONFIG_RD_ZSTD is not set\n")
	unpackInitrd(t, build(m, chunks, dir).Initrd)
}

func TestBuildBootRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		change func(m *imaging.Manifest, chunks memory)
		want   string
	}{
		"no kernel":      {func(m *imaging.Manifest, _ memory) { m.Boot.Kernels = nil }, "linux-image-amd64"},
		"no modules":     {func(m *imaging.Manifest, _ memory) { m.Boot.Kernels[0].Modules = "" }, "has no modules"},
		"kernel missing": {func(m *imaging.Manifest, _ memory) { m.Boot.Kernels[0].Path = "boot/gone" }, "boot/gone is not a file"},
		"no modules.dep": {func(m *imaging.Manifest, _ memory) { drop(m, "modules.dep") }, "run depmod 6.6.6"},
		"module missing": {func(m *imaging.Manifest, _ memory) { drop(m, "libcrc32c.ko") }, "libcrc32c.ko, which its modules.dep names"},
		"corrupt chunk":  {func(m *imaging.Manifest, c memory) { clear(c) }, "is not in the store"},
		"withheld": {func(m *imaging.Manifest, _ memory) {
			m.List = changed(m, func(e *imaging.Entry) bool {
				if e.Kind == imaging.Regular {
					e.Class = imaging.ClassHead
				}
				return true
			})
			*m = *withheld(m)
		}, "for heads only"},
		"too large": {func(m *imaging.Manifest, _ memory) {
			m.List = changed(m, func(e *imaging.Entry) bool {
				if e.Kind == imaging.Regular {
					e.Size, e.Extents, e.Chunks = 1<<40, []imaging.Extent{}, nil
				}
				return true
			})
		}, "more than any kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			m, chunks := smallImage(t, "")
			x.change(m, chunks)
			_, err := BuildBoot(t.Context(), m, chunks, staticAgent(t), nil, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want …%s…", err, x.want)
			}
		})
	}
	m, chunks := smallImage(t, "")
	if _, err := BuildBoot(t.Context(), m, chunks, "/bin/sh", nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a dynamic agent: %v", err)
	}
}

// withheld is m as a node without the heads' key reads it.
func withheld(m *imaging.Manifest) *imaging.Manifest {
	keys := store.Keys{Cluster: &store.Key{1}, Head: &store.Key{2}}
	st, ctx := store.NewMemory(), context.Background()
	blob, _, err := imaging.WriteManifest(ctx, st, keys, m)
	if err == nil {
		m, _, err = imaging.ReadManifest(ctx, st, store.Keys{Cluster: keys.Cluster}, blob)
	}
	if err != nil {
		panic(err)
	}
	return m
}

func drop(m *imaging.Manifest, name string) {
	m.List = changed(m, func(e *imaging.Entry) bool { return filepath.Base(e.Path) != name })
}

// Hard links and holes are read as the tree has them.
func TestReadFiles(t *testing.T) {
	m, chunks := image(map[string]string{"d/a": "0123456789"})
	m.List = changed(m, func(e *imaging.Entry) bool {
		if e.Path == "d/a" {
			e.Size, e.Extents = 30, []imaging.Extent{{Offset: 2, Length: 3}, {Offset: 20, Length: 7}}
		}
		return true
	})
	list := []imaging.Entry{{Path: "d/b", Kind: imaging.HardLink, Target: "d/a"}}
	for _, e := range m.List.All() {
		list = append(list, *e)
	}
	m.List = entriesOf(list)
	f, err := findFiles(m, chunks, "d")
	if err != nil {
		t.Fatal(err)
	}
	want := "\x00\x00012" + strings.Repeat("\x00", 15) + "3456789\x00\x00\x00"
	for _, path := range []string{"d/a", "d/b"} {
		if got, err := f.read(t.Context(), path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for _, bad := range [][]imaging.Extent{{{Offset: 2, Length: 3}}, {{Offset: 28, Length: 10}}, {{Offset: -1, Length: 10}}, {{Offset: 0, Length: 11}}} {
		f.byPath["d/a"].Extents = bad
		if got, err := f.read(t.Context(), "d/a"); err == nil {
			t.Errorf("%v: %q", bad, got)
		}
	}
}

// Debian's kernel: what an installer must have is there, and not much more.
func TestDebianModules(t *testing.T) {
	m, chunks := debianImage(t)
	s, err := findSource(t.Context(), m, chunks)
	if err != nil {
		t.Fatal(err)
	}
	if !s.zstd {
		t.Error("this kernel unpacks zstd")
	}
	for _, name := range []string{"virtio_net", "virtio_blk", "virtio_pci", "virtio_scsi", "net_failover", "xfs", "vfat", "efivarfs", "sd_mod", "nls_ascii"} {
		if _, ok := s.modules[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	if n := len(s.modules); n > 200 {
		t.Errorf("%d modules", n)
	}
}

func FuzzModules(f *testing.F) {
	f.Add("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n", "alias pci:* a\n", "softdep a pre: b c post: d\n", "kernel/c.ko\n")
	f.Add("../a.ko:\n", "alias a\n", "softdep\n", "")
	f.Add("kernel/drivers/net/ethernet/x.ko.xz: kernel/drivers/net/ethernet/x.ko.xz", "alias x y z x", "softdep x pre: x", "#")
	f.Fuzz(func(t *testing.T, dep, aliases, soft, builtin string) {
		var tree moduleTree
		var err error
		if tree.files, tree.needs, err = parseDep([]byte(dep)); err != nil {
			return
		}
		if tree.aliases, err = parseAlias([]byte(aliases)); err != nil {
			return
		}
		if tree.wants, err = parseSoftdep([]byte(soft)); err != nil {
			return
		}
		if tree.builtin, err = parseBuiltin([]byte(builtin)); err != nil {
			return
		}
		for _, m := range tree.choose("r").Modules {
			if !insideTree(tree.files[m.Name]) || !filepath.IsLocal(m.File) {
				t.Fatalf("%+v leaves the tree", m)
			}
		}
	})
}
