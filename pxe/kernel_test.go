package pxe

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// memory is an image's content, by chunk.
type memory map[store.ID][]byte

func (m memory) Chunk(_ context.Context, ref store.Ref) ([]byte, error) {
	b, ok := m[ref.ID]
	if !ok {
		return nil, &store.MissingError{What: "chunk", ID: ref.ID}
	}
	return b, nil
}

// image makes a manifest of files; two chunks each, with a hole between where
// there is room for one.
func image(files map[string]string) (*imaging.Manifest, memory) {
	m, chunks := &imaging.Manifest{}, memory{}
	list := []imaging.Entry{{Path: ".", Kind: imaging.Directory}}
	m.Facts.Arch = "x86_64"
	for path, content := range files {
		half := len(content) / 2
		e := imaging.Entry{Path: path, Kind: imaging.Regular, Mode: 0o644, Size: int64(len(content))}
		for _, part := range []string{content[:half], content[half:]} {
			if part == "" {
				continue
			}
			id := store.Sum([]byte(part))
			chunks[id] = []byte(part)
			e.Chunks = append(e.Chunks, store.Chunk{ID: id, Size: uint32(len(part))})
		}
		list = append(list, e)
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			list = append(list, imaging.Entry{Path: dir, Kind: imaging.Directory})
		}
	}
	m.List = entriesOf(list)
	return m, chunks
}

// entriesOf makes entries of a list in any order; what is there twice counts
// once.
func entriesOf(list []imaging.Entry) imaging.Entries {
	byPath := func(a, b imaging.Entry) int { return imaging.ComparePath(a.Path, b.Path) }
	slices.SortStableFunc(list, byPath)
	list = slices.CompactFunc(list, func(a, b imaging.Entry) bool { return a.Path == b.Path })
	entries, err := imaging.NewEntries(list...)
	if err != nil {
		panic(err)
	}
	return entries
}

// changed is m's entries after fn was at each; one for which it says false is
// left out.
func changed(m *imaging.Manifest, fn func(e *imaging.Entry) bool) imaging.Entries {
	var list []imaging.Entry
	for _, e := range m.List.All() {
		if fn(e) {
			list = append(list, *e)
		}
	}
	return entriesOf(list)
}

// debianKernel is the kernel package of Debian's cloud images, unpacked once
// and kept among the user's caches.
var debianKernel = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "doppel", "kernel")
	if found, _ := filepath.Glob(filepath.Join(dir, "linux-image-*", "boot", "vmlinuz-*")); len(found) > 0 {
		return filepath.Dir(filepath.Dir(found[0])), nil
	}
	out, err := exec.Command("apt-cache", "depends", "linux-image-cloud-amd64").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for the newest kernel: %w", err)
	}
	var name string
	for _, w := range strings.Fields(string(out)) {
		if strings.HasPrefix(w, "linux-image-") && w != "linux-image-cloud-amd64" {
			name = w
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, "unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	get := exec.Command("apt-get", "download", name)
	get.Dir = work
	if out, err := get.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w: %s", name, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %q", name, debs)
	}
	if out, err := exec.Command("dpkg-deb", "-x", debs[0], filepath.Join(work, "tree")).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg-deb -x %s: %w: %s", debs[0], err, out)
	}
	tree := filepath.Join(dir, name)
	if err := os.Rename(filepath.Join(work, "tree"), tree); err != nil && !os.IsExist(err) {
		return "", err
	}
	return tree, nil
})

// debianImage is an image that holds Debian's kernel, with what depmod would
// have written.
func debianImage(t *testing.T) (*imaging.Manifest, memory) {
	t.Helper()
	tree, err := debianKernel()
	if err != nil {
		t.Fatal("this test needs Debian's linux-image-cloud-amd64: ", err)
	}
	content := map[string]string{}
	for _, top := range []string{"boot", "lib/modules"} {
		err := filepath.WalkDir(filepath.Join(tree, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			name, _ := filepath.Rel(tree, path)
			content[name] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(tree, "lib/modules/*"))
	release := filepath.Base(dirs[0])
	modules := "lib/modules/" + release
	for name, text := range depmod(t, modules, content) {
		content[modules+"/"+name] = text
	}
	m, chunks := image(content)
	m.Boot.Kernels = []imaging.Kernel{{Release: release, Path: "boot/vmlinuz-" + release, Modules: modules}}
	return m, chunks
}

// depmod writes what depmod(8) does, from the modules' own words about
// themselves.
func depmod(t *testing.T, dir string, content map[string]string) map[string]string {
	t.Helper()
	var dep, alias, softdep bytes.Buffer
	needs := map[string][]string{}
	file := map[string]string{}
	var names []string
	for path, b := range content {
		rel, ok := strings.CutPrefix(path, dir+"/")
		if !ok || !strings.HasSuffix(path, ".ko") {
			continue
		}
		name := moduleName(path)
		file[name], names = rel, append(names, name)
		f, err := elf.NewFile(strings.NewReader(b))
		if err != nil {
			t.Fatal(path, err)
		}
		info, err := f.Section(".modinfo").Data()
		if err != nil {
			t.Fatal(path, err)
		}
		for _, line := range strings.Split(string(info), "\x00") {
			key, value, _ := strings.Cut(line, "=")
			switch key {
			case "depends":
				if value != "" {
					needs[name] = strings.Split(strings.ReplaceAll(value, "-", "_"), ",")
				}
			case "alias":
				fmt.Fprintf(&alias, "alias %s %s\n", value, name)
			case "softdep":
				fmt.Fprintf(&softdep, "softdep %s %s\n", name, value)
			}
		}
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&dep, "%s:", file[name])
		// All that it needs, the first to load last.
		var all []string
		var walk func(string)
		seen := map[string]bool{}
		walk = func(n string) {
			for _, d := range needs[n] {
				walk(d)
				if !seen[d] {
					seen[d] = true
					all = append(all, d)
				}
			}
		}
		walk(name)
		for i := len(all) - 1; i >= 0; i-- {
			fmt.Fprintf(&dep, " %s", file[all[i]])
		}
		dep.WriteString("\n")
	}
	return map[string]string{"modules.dep": dep.String(), "modules.alias": alias.String(), "modules.softdep": softdep.String()}
}

// agentBinary is the agent, built once for all tests of the package.
var agentBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "doppel-agent-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	path := filepath.Join(dir, "doppel-agent")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "doppel/cmd/doppel-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the agent: %w: %s", err, out)
	}
	return path, nil
})

var builtIn string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

func agentPath(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(inside); path != "" {
		return path
	}
	path, err := agentBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
