package clone

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"doppel/imaging"
)

// manifestIndex finds the entries of a manifest by their paths.
type manifestIndex struct{ list *imaging.Entries }

// entry gives the entry of that path; nil: there is none.
func (x manifestIndex) entry(path string) *imaging.Entry { return x.list.Get(path) }

func (x manifestIndex) has(path string) bool {
	_, ok := x.list.Find(path)
	return ok
}

// resolve follows the links of a path within the tree, as if it were the root
// directory. It gives the path of what is there in the end, and all links met
// on the way; false when the path leads nowhere.
func (x manifestIndex) resolve(name string) (real string, links []string, ok bool) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "."
	for hops := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		e := x.entry(next)
		if e == nil {
			return "", nil, false
		}
		if e.Kind != imaging.Symlink {
			at = next
			continue
		}
		if hops++; hops > 40 { // as the kernel's MAXSYMLINKS
			return "", nil, false
		}
		links = append(links, next)
		to := e.Target
		if !strings.HasPrefix(to, "/") {
			to = path.Join("/", at, to)
		}
		rest = append(strings.Split(strings.Trim(path.Clean(to), "/"), "/"), rest...)
		at = "."
	}
	return at, links, true
}

// toolkit collects the paths of programs and of all that they load.
type toolkit struct {
	index manifestIndex
	paths []string        // to restore
	seen  map[string]bool // of paths
	todo  []string        // programs and libraries restored next and then read
	dirs  []string        // where the tree keeps libraries
	used  []string        // of dirs, those that something was found in
}

// add takes a path with the links that lead to it.
func (k *toolkit) add(name string) bool {
	real, links, ok := k.index.resolve(name)
	if !ok {
		return false
	}
	for _, p := range append(links, real) {
		if k.seen[p] {
			continue
		}
		k.seen[p] = true
		k.paths = append(k.paths, p)
		if e := k.index.entry(p); e.Kind == imaging.HardLink && !k.seen[e.Target] {
			k.seen[e.Target] = true
			k.paths = append(k.paths, e.Target)
		}
		if p == real {
			k.todo = append(k.todo, p)
		}
	}
	return true
}

// addLibrary finds a library by its name, in the directories that the loader
// looks through.
func (k *toolkit) addLibrary(name string, first []string) bool {
	if strings.Contains(name, "/") {
		return k.add(name)
	}
	for _, dir := range append(slices.Clone(first), k.dirs...) {
		if k.add(path.Join(dir, name)) {
			if !slices.Contains(k.used, dir) {
				k.used = append(k.used, dir)
			}
			return true
		}
	}
	return false
}

// restoreTools brings the programs that make the plan's file systems out of
// the image into memory, with the libraries they need: the installer has none
// of its own, and the image's are those that its kernel and its GRUB were
// shipped with.
func (in *install) restoreTools(ctx context.Context) error {
	if err := os.MkdirAll(in.tools, 0o755); err != nil {
		return err
	}
	k := &toolkit{index: in.index, seen: make(map[string]bool)}
	for _, p := range in.plan.Partitions {
		if p.FS == nil {
			continue
		}
		name, _ := formatTool(p.FS.Type)
		tool := findTool(in.image.Boot, name)
		if tool == "" || !k.add(tool) {
			return fmt.Errorf("the image has no %s to make a %s file system with", name, p.FS.Type)
		}
	}
	k.add("etc/mke2fs.conf")
	k.add("etc/ld.so.conf")
	const confs = "etc/ld.so.conf.d"
	at, _ := in.index.list.Find(confs)
	for _, e := range in.index.list.From(at) {
		if e.Path != confs && !strings.HasPrefix(e.Path, confs+"/") {
			break
		}
		k.add(e.Path)
	}
	for round := 0; len(k.paths) > 0; round++ {
		batch := k.paths
		todo := k.todo
		k.paths, k.todo = nil, nil
		if _, err := imaging.Apply(ctx, in.image, in.chunks, in.tools, imaging.ApplyOptions{Paths: batch, Log: in.o.Log}); err != nil {
			return err
		}
		if round == 0 {
			k.dirs = libraryDirs(in.tools)
		}
		for _, p := range todo {
			if err := k.needs(in.tools, p); err != nil {
				return err
			}
		}
	}
	dirs := make([]string, 0, len(k.used))
	for _, d := range k.used {
		dirs = append(dirs, "/"+d)
	}
	slices.Sort(dirs)
	in.libs = strings.Join(dirs, ":")
	return nil
}

// needs adds what a program or library says that it is loaded with: the
// loader and the libraries (ELF specification, DT_NEEDED).
func (k *toolkit) needs(root, name string) error {
	f, err := os.Open(filepath.Join(root, name))
	if err != nil {
		return fmt.Errorf("read the tool %s: %w", name, err)
	}
	defer f.Close()
	mark := make([]byte, 4)
	if _, err := f.ReadAt(mark, 0); err != nil || string(mark) != elf.ELFMAG {
		return nil // a configuration file
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("read the tool %s: %w", name, err)
	}
	defer e.Close()
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		interp := make([]byte, p.Filesz)
		if _, err := p.ReadAt(interp, 0); err != nil {
			return fmt.Errorf("read the tool %s: %w", name, err)
		}
		loader := string(bytes.TrimRight(interp, "\x00"))
		if !k.add(loader) {
			return fmt.Errorf("the image lacks %s, which %s is started by", loader, name)
		}
	}
	libs, err := e.ImportedLibraries()
	if err != nil {
		return nil // static
	}
	first := runPath(e, path.Dir(name))
	for _, lib := range libs {
		if !k.addLibrary(lib, first) {
			return fmt.Errorf("the image lacks the library %s, which %s needs", lib, name)
		}
	}
	return nil
}

// runPath are the directories that a program or library itself names.
func runPath(e *elf.File, origin string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := e.DynString(tag)
		if err != nil {
			continue
		}
		for _, v := range values {
			for d := range strings.SplitSeq(v, ":") {
				d = strings.NewReplacer("$ORIGIN", "/"+origin, "${ORIGIN}", "/"+origin).Replace(d)
				dirs = append(dirs, strings.Trim(path.Clean("/"+d), "/"))
			}
		}
	}
	return dirs
}

var confInclude = regexp.MustCompile(`^include\s+(\S+)`)

// libraryDirs are the directories that the loader looks through: those that
// ld.so.conf names, and those built in (ld.so(8)). Debian's loaders also look
// into the directory of their architecture.
func libraryDirs(root string) []string {
	var dirs []string
	add := func(d string) {
		if d = strings.Trim(path.Clean("/"+d), "/"); d != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	// Files may include each other in circles; each is read once.
	seen := make(map[string]bool)
	var read func(name string)
	read = func(name string) {
		if name = path.Clean(name); seen[name] {
			return
		}
		seen[name] = true
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			line = strings.TrimSpace(line)
			if m := confInclude.FindStringSubmatch(line); m != nil {
				pattern := m[1]
				if !strings.HasPrefix(pattern, "/") {
					pattern = path.Join(path.Dir(name), pattern)
				}
				found, err := fs.Glob(os.DirFS(root), strings.Trim(pattern, "/"))
				if err != nil {
					continue
				}
				for _, f := range found {
					read(f)
				}
			} else if line != "" {
				add(line)
			}
		}
	}
	read("etc/ld.so.conf")
	for _, d := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"} {
		add(d)
	}
	return dirs
}

// formatCommand makes a file system as the plan says: with the head's features
// where they were recorded, since those that a newer mkfs sets by itself may be
// more than the image's GRUB reads.
func (in *install) formatCommand(f *imaging.FileSystem, node string) ([]string, error) {
	name, _ := formatTool(f.Type)
	tool := findTool(in.image.Boot, name)
	if tool == "" {
		return nil, fmt.Errorf("%s on %s is of a type that cannot be made", f.Type, node)
	}
	args := []string{"/" + tool}
	switch f.Type {
	case "ext2", "ext3", "ext4":
		args = append(args, "-F", "-q", "-U", f.UUID)
		if len(f.Features) > 0 {
			// none: without what mke2fs.conf says.
			args = append(args, "-O", "none,"+strings.Join(f.Features, ","))
		}
		if f.Label != "" {
			args = append(args, "-L", f.Label)
		}
	case "xfs":
		args = append(args, "-f", "-q", "-m", "uuid="+f.UUID)
		known, err := in.toolKnows(tool)
		if err != nil {
			return nil, err
		}
		args = append(args, xfsArgs(f.Features, known)...)
		if f.Label != "" {
			args = append(args, "-L", f.Label)
		}
	case "vfat":
		args = append(args, "-i", strings.ReplaceAll(f.UUID, "-", ""))
		for _, width := range f.Features {
			if n, ok := strings.CutPrefix(width, "fat"); ok {
				args = append(args, "-F", n)
			}
		}
		if f.Label != "" {
			args = append(args, "-n", f.Label)
		}
	case "swap":
		args = append(args, "-U", f.UUID)
		if f.Label != "" {
			args = append(args, "-L", f.Label)
		}
	}
	return append(args, node), nil
}

// xfsArgs are mkfs.xfs's options for features as ProbeFileSystem names them.
// One that is off, and that this mkfs.xfs does not know, is left out: it would
// refuse its name.
func xfsArgs(features []string, known func(string) bool) []string {
	options := map[string]string{
		"crc": "-m", "finobt": "-m", "rmapbt": "-m", "reflink": "-m", "inobtcount": "-m", "bigtime": "-m", "metadir": "-m",
		"sparse": "-i", "nrext64": "-i", "exchange": "-i", "ftype": "-n", "parent": "-n",
	}
	var args []string
	crc := !slices.Contains(features, "crc=0")
	for _, f := range features {
		name, value, _ := strings.Cut(f, "=")
		option := options[name]
		if option == "" || value == "0" && !known(name) {
			continue
		}
		if crc && f == "ftype=1" {
			continue // cannot be said, nor otherwise, together with crc
		}
		args = append(args, option, f)
	}
	return args
}

// toolKnows tells which words a restored program has among its strings; a
// word may be the end of a longer one, as linkers merge them.
func (in *install) toolKnows(tool string) (func(string) bool, error) {
	real, _, ok := in.index.resolve(tool)
	if !ok {
		return nil, fmt.Errorf("the image's %s leads nowhere", tool)
	}
	b, err := os.ReadFile(filepath.Join(in.tools, real))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the tool %s", tool), err)
	}
	return func(word string) bool { return bytes.Contains(b, []byte(word+"\x00")) }, nil
}
