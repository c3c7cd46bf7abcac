package pxe

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// checkStatic tells what keeps a program from running without a system.
func checkStatic(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it is linked against a C library; build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// initrd makes the initramfs. Its bytes depend on its contents alone: entries
// in a fixed order, without times, and one compressor thread.
func (s *source) initrd(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	pack, err := s.compressor(&out)
	if err != nil {
		return nil, fmt.Errorf("making the initramfs: %w", err)
	}
	a := &archive{w: cpio.NewWriter(pack), to: pack, dirs: map[string]bool{".": true}}
	for _, d := range []string{"proc", "sys", "run", "tmp", "mnt"} {
		a.dir(d)
	}
	// The kernel opens /dev/console for init before any devtmpfs is mounted.
	a.device("dev/console", 5, 1)
	a.device("dev/null", 1, 3)
	a.file("init", 0o755, s.agent)
	a.file("etc/doppel/ca.crt", 0o644, s.ca)
	dir := path.Join("lib/modules", s.kernel.Release)
	text, err := json.Marshal(s.chosen)
	if err != nil {
		return nil, fmt.Errorf("making the initramfs: %w", err)
	}
	a.file(path.Join(dir, "doppel.json"), 0o644, text)
	// In the order of the tree, which is that of the image's blocks, so that
	// each block is read about once.
	modules := slices.SortedFunc(slices.Values(s.chosen.Modules), func(a, b indexModule) int { return strings.Compare(a.File, b.File) })
	for _, m := range modules {
		if err := s.addModule(ctx, a, m, path.Join(dir, m.File)); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(a.close(), pack.Close()); err != nil {
		return nil, fmt.Errorf("making the initramfs: %w", err)
	}
	return out.Bytes(), nil
}

func (s *source) addModule(ctx context.Context, a *archive, m indexModule, to string) error {
	from := s.modules[m.Name]
	content, err := s.files.read(ctx, from)
	if err != nil {
		return err
	}
	if content, err = unpack(from, content); err != nil {
		return fmt.Errorf("unpacking %s of the image: %w", from, err)
	}
	a.file(to, 0o644, content)
	return a.err
}

// compressor is zstd where the kernel unpacks it, else gzip, which all do.
func (s *source) compressor(w io.Writer) (io.WriteCloser, error) {
	if s.zstd {
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	}
	return gzip.NewWriterLevel(w, gzip.DefaultCompression)
}

// unpack gives a module as the kernel takes it. The kernel's own way to take
// compressed ones (5.17's MODULE_INIT_COMPRESSED_FILE) is an option that few
// build in, and an initramfs is compressed as a whole anyway.
func unpack(name string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch path.Ext(name) {
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(b))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case ".zst":
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFile))
		if err == nil {
			defer d.Close()
		}
		r = d
	default:
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(plain) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return plain, err
}

// archive writes a cpio archive of the newc format, which the kernel unpacks
// into its root (Documentation/driver-api/early-userspace/buffer-format.rst).
// The first error stays.
type archive struct {
	w    *cpio.Writer
	to   io.Writer // beneath w
	dirs map[string]bool
	ino  int64
	err  error
}

func (a *archive) put(h *cpio.Header, content []byte) {
	if a.err != nil {
		return
	}
	// Numbers of their own, since cpio knows hard links by them.
	a.ino++
	h.Inode, h.Links, h.Size = a.ino, 1, int64(len(content))
	if a.err = a.w.WriteHeader(h); a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

// dir makes a directory, and those above it.
func (a *archive) dir(name string) {
	if a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.put(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755}, nil)
}

func (a *archive) file(name string, mode cpio.FileMode, content []byte) {
	a.dir(path.Dir(name))
	a.put(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode}, content)
}

// device makes a character device. The library writes no device numbers, so
// its header is written here, between two of the library's.
func (a *archive) device(name string, major, minor uint32) {
	a.dir(path.Dir(name))
	if a.err == nil {
		a.err = a.w.Flush()
	}
	if a.err != nil {
		return
	}
	a.ino++
	fields := []any{a.ino, cpio.TypeChar | 0o600, 0, 0, 1, 0, 0, 0, 0, major, minor, len(name) + 1, 0}
	h := fmt.Sprintf("070701"+strings.Repeat("%08X", len(fields)), fields...) + name + "\x00"
	h += strings.Repeat("\x00", -len(h)&3)
	_, a.err = io.WriteString(a.to, h)
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.w.Close()
}
