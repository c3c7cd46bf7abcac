package pxe

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Names of the files below a digest's directory.
const (
	kernelFile = "vmlinuz"
	initrdFile = "initrd"
)

// buildFormat is part of every cache key: it changes whenever BuildBoot makes
// something else of the same inputs.
const buildFormat = "doppel boot 1"

// BuildBoot makes the installer for an image from the image itself: its newest
// kernel, and an initramfs of the agent (as /init), the CA's certificate and
// the kernel's modules for disks, networks and file systems. It is cached in
// cacheDir by its inputs, and laid there by digest: DIGEST/vmlinuz and
// DIGEST/initrd. A cache that was damaged is made anew.
func BuildBoot(ctx context.Context, m *imaging.Manifest, chunks Chunks, agentPath string, ca []byte, cacheDir string) (Boot, error) {
	s, err := findSource(ctx, m, chunks)
	if err != nil {
		return Boot{}, err
	}
	if s.agent, err = readAgent(agentPath); err != nil {
		return Boot{}, err
	}
	s.ca = ca
	record := filepath.Join(cacheDir, "inputs", s.key().Hex()+".json")
	if b, ok := cached(record, cacheDir); ok {
		return b, nil
	}
	kernel, err := s.files.read(ctx, s.kernel.Path)
	if err != nil {
		return Boot{}, err
	}
	initrd, err := s.initrd(ctx)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Release: s.kernel.Release, Machine: m.Facts.Arch, KernelDigest: store.Sum(kernel), InitrdDigest: store.Sum(initrd)}
	b.place(cacheDir)
	if err := keep(b.Kernel, kernel); err != nil {
		return Boot{}, err
	}
	if err := keep(b.Initrd, initrd); err != nil {
		return Boot{}, err
	}
	text, err := json.Marshal(b)
	if err != nil {
		return Boot{}, fmt.Errorf("recording the installer: %w", err)
	}
	return b, keep(record, text)
}

// place says where the files of a Boot are.
func (b *Boot) place(dir string) {
	b.Kernel = filepath.Join(dir, b.KernelDigest.Hex(), kernelFile)
	b.Initrd = filepath.Join(dir, b.InitrdDigest.Hex(), initrdFile)
}

// cached finds what was made of the same inputs before, if its bytes are still
// those.
func cached(record, dir string) (Boot, bool) {
	var b Boot
	text, err := os.ReadFile(record)
	if err != nil || json.Unmarshal(text, &b) != nil {
		return Boot{}, false
	}
	b.place(dir)
	return b, isFile(b.Kernel, b.KernelDigest) && isFile(b.Initrd, b.InitrdDigest)
}

func isFile(path string, id store.ID) bool {
	content, err := os.ReadFile(path)
	return err == nil && store.Sum(content) == id
}

// keep writes a file of the cache. The cache is disposable, and what is read
// from it is judged by its digest, so a rename is enough: nobody sees half a
// file, and power loss costs another build.
func keep(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("keeping the installer: %w", err)
	}
	if err := renameio.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("keeping the installer: %w", err)
	}
	return nil
}

// readAgent reads the agent, which must run where there is nothing else.
func readAgent(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the agent: %w", err)
	}
	if err := checkStatic(b); err != nil {
		return nil, fmt.Errorf("the agent %s cannot be the installer's first program: %w", path, err)
	}
	return b, nil
}

// source is what an installer is made of.
type source struct {
	kernel  imaging.Kernel
	files   *files
	chosen  index
	modules map[string]string // module's name → path in the image
	zstd    bool              // the kernel unpacks it
	agent   []byte
	ca      []byte
}

// findSource picks the newest kernel of an image, and its modules.
func findSource(ctx context.Context, m *imaging.Manifest, chunks Chunks) (*source, error) {
	if len(m.Boot.Kernels) == 0 {
		return nil, errors.New("the image has no kernel to start an installer with: install one on the head (Debian: linux-image-amd64) and capture it again")
	}
	k := m.Boot.Kernels[0]
	if k.Modules == "" {
		return nil, fmt.Errorf("the image's newest kernel %s has no modules: install the package they are in on the head and capture it again", k.Release)
	}
	config := path.Join(path.Dir(k.Path), "config-"+k.Release)
	f, err := findFiles(m, chunks, k.Modules, k.Path, config)
	if err != nil {
		return nil, err
	}
	if !f.has(k.Path) {
		return nil, fmt.Errorf("the image's newest kernel %s is not a file of it", k.Path)
	}
	s := &source{kernel: k, files: f}
	return s, s.choose(ctx, config)
}

// choose reads what depmod and the kernel's configuration say.
func (s *source) choose(ctx context.Context, config string) error {
	dir := s.kernel.Modules
	if !s.files.has(path.Join(dir, "modules.dep")) {
		return fmt.Errorf("the image has no %s/modules.dep: run depmod %s on the head and capture it again", dir, s.kernel.Release)
	}
	t, err := s.readTree(ctx, dir)
	if err != nil {
		return err
	}
	s.chosen = t.choose(s.kernel.Release)
	s.modules = map[string]string{}
	for _, m := range s.chosen.Modules {
		file := path.Join(dir, t.files[m.Name])
		if !s.files.has(file) {
			return fmt.Errorf("the image has no %s, which its modules.dep names: run depmod %s on the head and capture it again", file, s.kernel.Release)
		}
		s.modules[m.Name] = file
	}
	text, err := s.files.read(ctx, config)
	if err != nil {
		return err
	}
	s.zstd = strings.Contains("\n"+string(text), "\nCONFIG_RD_ZSTD=y\n")
	return nil
}

func (s *source) readTree(ctx context.Context, dir string) (*moduleTree, error) {
	var t moduleTree
	parse := func(name string, into func([]byte) error) error {
		b, err := s.files.read(ctx, path.Join(dir, name))
		if err != nil {
			return err
		}
		return into(b)
	}
	err := errors.Join(
		parse("modules.dep", func(b []byte) (err error) { t.files, t.needs, err = parseDep(b); return }),
		parse("modules.alias", func(b []byte) (err error) { t.aliases, err = parseAlias(b); return }),
		parse("modules.softdep", func(b []byte) (err error) { t.wants, err = parseSoftdep(b); return }),
		parse("modules.builtin", func(b []byte) (err error) { t.builtin, err = parseBuiltin(b); return }),
	)
	if err != nil {
		return nil, fmt.Errorf("reading the modules of %s: %w", s.kernel.Release, err)
	}
	return &t, nil
}

// key is the digest of all that the installer's bytes depend on.
func (s *source) key() store.ID {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\nzstd %v\nkernel %s\n", buildFormat, s.kernel.Release, s.zstd, s.files.ids(s.kernel.Path))
	fmt.Fprintf(h, "agent %s\nca %s\n", store.Sum(s.agent), store.Sum(s.ca))
	for _, m := range s.chosen.Modules {
		fmt.Fprintf(h, "%s %s %v %v %s\n", m.Name, m.File, m.Needs, m.Wants, s.files.ids(s.modules[m.Name]))
	}
	fmt.Fprintf(h, "%q %q\n", s.chosen.Aliases, s.chosen.Always)
	return store.ID(h.Sum(nil))
}
