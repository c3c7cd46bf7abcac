package tarball

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"

	"doppel/imaging"
)

// repeated gives n times the same bytes.
type repeated struct {
	b []byte
	n int
	r bytes.Reader
}

func (r *repeated) Read(b []byte) (int, error) {
	for r.r.Len() == 0 {
		if r.n == 0 {
			return 0, io.EOF
		}
		r.n--
		r.r.Reset(r.b)
	}
	return r.r.Read(b)
}

// bombs are archives that come to much more than they are. Each is made anew
// when it is asked for.
var bombs = map[string]func(tb testing.TB) io.Reader{
	// 2 GiB of zeros in 2 MB.
	"zeros": func(tb testing.TB) io.Reader {
		r, w := io.Pipe()
		go func() {
			z := gzip.NewWriter(w)
			_, err := z.Write(raw{name: "zeros", kind: '0', size: "20000000000"}.bytes())
			if err == nil {
				_, err = io.Copy(z, &repeated{b: make([]byte, 1<<20), n: 2 << 10})
			}
			if err == nil {
				_, err = z.Write(make([]byte, 2*blockSize))
			}
			w.CloseWithError(errors.Join(err, z.Close()))
		}()
		return r
	},
	// Extended headers that are each as large as is taken, one after the other.
	"headers": func(tb testing.TB) io.Reader {
		one := paxed(raw{name: "f", kind: '0'}, record{"comment", strings.Repeat("c", maxPAX-100)})
		return io.MultiReader(&repeated{b: one, n: 100}, bytes.NewReader(make([]byte, 2*blockSize)))
	},
	// Extended headers for all members, over and over.
	"global headers": func(tb testing.TB) io.Reader {
		one := raw{name: "g", kind: 'g', data: string(appendRecord(nil, record{"comment", "c"}))}.bytes()
		return io.MultiReader(&repeated{b: one, n: 200_000}, bytes.NewReader(archive(raw{name: "f", kind: '0'})))
	},
	// Attributes without end, on members of one name.
	"attributes": func(tb testing.TB) io.Reader {
		var list []record
		for i := range 200 {
			list = append(list, record{fmt.Sprintf("SCHILY.xattr.user.%d", i), strings.Repeat("v", 60_000)})
		}
		return io.MultiReader(&repeated{b: paxed(raw{name: "f", kind: '0'}, list...), n: 300}, bytes.NewReader(make([]byte, 2*blockSize)))
	},
	// A map of a million runs, of a file that is all hole.
	"runs": func(tb testing.TB) io.Reader {
		line := []byte("0\n0\n")
		size := 8 + len(line)*maxRuns
		head := paxed(raw{name: "s", kind: '0', size: fmt.Sprintf("%011o", size+(-size&(blockSize-1)))}, record{"GNU.sparse.major", "1"}, record{"GNU.sparse.minor", "0"}, record{"GNU.sparse.name", "s"}, record{"GNU.sparse.realsize", "9223372036854775807"})
		return io.MultiReader(bytes.NewReader(head), strings.NewReader(fmt.Sprintf("%d\n", maxRuns)), &repeated{b: line, n: maxRuns}, bytes.NewReader(make([]byte, -size&(blockSize-1)+2*blockSize)))
	},
	// A name of half a million directories.
	"depth": func(tb testing.TB) io.Reader {
		return bytes.NewReader(archive(paxed(raw{name: "x", kind: '0'}, record{"path", strings.Repeat("d/", 500_000) + "f"})))
	},
	// Hard links in a chain, each before what it leads to.
	"chain": func(tb testing.TB) io.Reader {
		var list []any
		for i := range 100_000 {
			list = append(list, raw{name: fmt.Sprintf("%06d", i), kind: '1', link: fmt.Sprintf("%06d", i+1)})
		}
		return bytes.NewReader(archive(append(list, raw{name: "100000", kind: '0'})...))
	},
}

// Whatever an archive comes to, an import takes little memory. Each is imported
// by a process of its own, whose peak is what counts.
func TestBombs(t *testing.T) {
	if name := os.Getenv("DOPPEL_TEST_BOMB"); name != "" {
		c, err := imaging.OpenCatalog(os.Getenv("DOPPEL_TEST_STATE"), imaging.CatalogOptions{})
		must(t, err)
		_, err = Import(t.Context(), c, bombs[name](t), ImportOptions{Name: "x"})
		fmt.Printf("import: %v\n", err)
		return
	}
	for name, want := range map[string]string{
		"zeros": "<nil>", "headers": "<nil>", "global headers": "<nil>", "chain": "<nil>", "runs": "<nil>",
		"attributes": "more than 1073741824 bytes to remember", "depth": "more than 1073741824 bytes to remember",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestBombs$")
			cmd.Env = append(os.Environ(), "DOPPEL_TEST_BOMB="+name, "DOPPEL_TEST_STATE="+filepath.Join(t.TempDir(), "state"))
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Fatalf("%v\n%.2000s", err, out)
			}
			peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
			t.Logf("%d MiB", peak)
			// The race detector multiplies what a program takes by five to ten.
			if peak > 1500 {
				t.Errorf("it took %d MiB", peak)
			}
		})
	}
}

// A store without room gives an error that says what to do, keeps what there
// was, and goes on when there is room.
func TestImportDiskFull(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk)
	t.Cleanup(func() { run(t, "umount", disk) })
	c, err := imaging.OpenCatalog(filepath.Join(disk, "state"), imaging.CatalogOptions{})
	must(t, err)
	_, err = importBytes(t, c, "x", archive(raw{name: "f", kind: '0', data: "kept"}))
	must(t, err)
	b := archive(raw{name: "f", kind: '0', data: string(noise(60<<20, 1))})
	var fault *MemberError // it is no fault of the archive
	if _, err = importBytes(t, c, "x", b); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "doppel image rm") || errors.As(err, &fault) {
		t.Errorf("on a full disk: %v", err)
	}
	m, vault := manifest(t, c, "x")
	if content(t, m, vault, "f") != "kept" {
		t.Error("the version there was is another")
	}
	run(t, "mount", "-o", "remount,size=200m", disk)
	r, err := importBytes(t, c, "x", b)
	must(t, err)
	if r.Version != 2 {
		t.Errorf("with room again: %+v", r)
	}
	must(t, c.Verify(t.Context(), nil, true, func(f imaging.ImageFault) { t.Errorf("fault: %v", f) }))
}

// An import that is called off changes no image.
func TestImportCalledOff(t *testing.T) {
	c := openCatalog(t)
	ctx, cancel := context.WithCancel(t.Context())
	b := archive(raw{name: "f", kind: '0', data: string(noise(60<<20, 1))})
	r := io.MultiReader(bytes.NewReader(b[:40<<20]), readerFunc(func(p []byte) (int, error) { cancel(); return copy(p, "more"), nil }))
	if _, err := Import(ctx, c, r, ImportOptions{Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	if list, err := c.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("images %v, %v", list, err)
	}
	report, err := importBytes(t, c, "x", b)
	must(t, err)
	if report.BytesSent > 50<<20 {
		t.Errorf("what had come is sent again: %+v", report)
	}
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// What is compressed in a way that is not read, or asks for too much, says how
// to go on.
func TestCompressionRefused(t *testing.T) {
	c := openCatalog(t)
	windows := exec.Command("zstd", "-c", "--ultra", "-22", "--long=31", "--no-check")
	windows.Stdin = io.LimitReader(&repeated{b: noise(1<<20, 1), n: 300}, 300<<20)
	window, err := windows.Output()
	must(t, err)
	for name, k := range map[string]struct {
		b    []byte
		want string
	}{
		"lz4":              {[]byte("\x04\x22\x4d\x18..."), "lz4, which is not read"},
		"zip":              {[]byte("PK\x03\x04..."), "zip, which is not read"},
		"cpio":             {[]byte("070701..."), "cpio, which is not read"},
		"gzip of nothing":  {[]byte("\x1f\x8b"), "cannot be unpacked with gzip"},
		"xz of no kind":    {[]byte("\xfd7zXZ\x00............"), "cannot be unpacked with xz"},
		"bzip2 of no kind": {[]byte("BZh9nonsense"), "cannot be unpacked with bzip2"},
		"large window":     {window, "cannot be unpacked with zstd"},
		"large dictionary": {[]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x28\x00\x00\x00............................................................"), "more than 134217728"},
	} {
		_, err := importBytes(t, c, "x", k.b)
		var packed *CompressionError
		if !errors.As(err, &packed) || packed.Hint() == "" || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
