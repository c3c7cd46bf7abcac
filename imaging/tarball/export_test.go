package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

const pem = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n"

// Secrets of heads are in an archive only when they are asked for, and where
// the key is not there, not at all. What is left out is told.
func TestExportSecrets(t *testing.T) {
	c := openCatalog(t)
	_, err := importBytes(t, c, "x", archive(raw{name: "./", kind: '5'},
		raw{name: "etc/ssh/ssh_host_rsa_key", kind: '0', data: "host key"}, raw{name: "etc/shadow", kind: '0', data: "root:x"},
		raw{name: "opt/key", kind: '0', data: pem}, raw{name: "opt/link", kind: '1', link: "opt/key"}, raw{name: "plain", kind: '0', data: "plain"}))
	must(t, err)
	secrets := []string{"etc/ssh/ssh_host_rsa_key", "opt/key", "opt/link"}
	names := func(b []byte) (names []string) {
		r := tar.NewReader(bytes.NewReader(b))
		for {
			h, err := r.Next()
			if err == io.EOF {
				return names
			}
			must(t, err)
			names = append(names, h.Name)
		}
	}
	left := func(r *ExportReport, kind imaging.NoteKind) (paths []string) {
		for _, n := range r.LeftOut {
			if n.Kind != kind || n.Detail == "" {
				t.Errorf("%+v is not of the kind %s", n, kind)
			}
			paths = append(paths, n.Path)
		}
		return paths
	}
	export := func(o ExportOptions) ([]byte, *ExportReport) {
		var out bytes.Buffer
		r, err := Export(t.Context(), c, "x", &out, o)
		must(t, err)
		return out.Bytes(), r
	}
	b, r := export(ExportOptions{})
	if got := left(r, LeftSecret); !slices.Equal(got, secrets) {
		t.Errorf("left out %q", got)
	}
	if got := names(b); !slices.Equal(got, []string{"./", "etc/", "etc/shadow", "etc/ssh/", "opt/", "plain"}) || bytes.Contains(b, []byte("PRIVATE")) || bytes.Contains(b, []byte("host key")) {
		t.Errorf("the archive holds %q", got)
	}
	b, r = export(ExportOptions{Secrets: true})
	if got := names(b); len(r.LeftOut) > 0 || len(got) != 9 || !bytes.Contains(b, []byte(pem)) || r.Entries != 9 || r.BytesWritten != int64(len(b)) {
		t.Errorf("with secrets: %q, %+v", got, r)
	}
	must(t, os.Remove(filepath.Join(c.Dir(), "keys/head.key")))
	b, r = export(ExportOptions{Secrets: true})
	if got := left(r, LeftWithheld); !slices.Equal(got, secrets) || bytes.Contains(b, []byte("PRIVATE")) {
		t.Errorf("without the key: %q", got)
	}
}

// The same version gives the same bytes, however it is compressed, and other
// programs undo that.
func TestExportDeterministic(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c", "b/d"} {
		fill(t, dir+"/"+name, append(noise(3<<20, name[0]), bytes.Repeat([]byte("text"), 1<<20)...))
	}
	c := openCatalog(t)
	capture(t, c, dir, "x")
	var plain []byte
	for how, program := range map[Compression]string{None: "cat", Gzip: "gzip -dc", Zstd: "zstd -dc"} {
		export := func() []byte {
			var out bytes.Buffer
			_, err := Export(t.Context(), c, "x", &out, ExportOptions{Compression: how})
			must(t, err)
			return out.Bytes()
		}
		first := export()
		for range 3 {
			if !bytes.Equal(export(), first) {
				t.Errorf("%s: other bytes", how)
			}
		}
		cmd := exec.Command("sh", "-c", program)
		cmd.Stdin = bytes.NewReader(first)
		out, err := cmd.Output()
		must(t, err)
		if plain == nil {
			plain = out
		}
		if !bytes.Equal(out, plain) {
			t.Errorf("%s undoes it to %d bytes instead of %d", program, len(out), len(plain))
		}
	}
	_, err := importBytes(t, c, "y", plain)
	must(t, err)
	a, _ := manifest(t, c, "x")
	b, _ := manifest(t, c, "y")
	if diff := changes(a, b); len(diff) > 0 {
		t.Errorf("changes %q", diff)
	}
}

// Go's own reader, one of many that are not GNU's, reads what is written of the
// strangest entries; runs that do not end at a block are read by GNU tar.
func TestExportStrange(t *testing.T) {
	needRoot(t)
	c := openCatalog(t)
	_, err := importBytes(t, c, "x", archive(
		paxed(raw{name: "s", kind: '0', data: "3\n100\n3\n700\n5\n9000\n1\n" + strings.Repeat("\x00", 512-21) + "abc" + "defgh" + "i"}, record{"GNU.sparse.major", "1"}, record{"GNU.sparse.minor", "0"}, record{"GNU.sparse.name", strings.Repeat("long/", 50) + "\xff"}, record{"GNU.sparse.realsize", "20000"}),
		paxed(raw{name: "x", kind: '0', data: "x"}, record{"path", "x"}, record{"uid", "4294967294"}, record{"mtime", "-5.000000001"}, record{"SCHILY.xattr.user.a%3Db%25", "=\n\x00"}),
		paxed(raw{name: "l", kind: '2'}, record{"linkpath", strings.Repeat("l\xfe", 400)}),
	))
	must(t, err)
	file := filepath.Join(t.TempDir(), "x.tar")
	exportTo(t, c, "x", file, ExportOptions{})
	b, err := os.ReadFile(file)
	must(t, err)
	r := tar.NewReader(bytes.NewReader(b))
	found := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		data, err := io.ReadAll(r)
		must(t, err)
		switch {
		case strings.HasSuffix(h.Name, "/\xff"):
			want := make([]byte, 20000)
			copy(want[100:], "abc")
			copy(want[700:], "defgh")
			copy(want[9000:], "i")
			if !bytes.Equal(data, want) {
				t.Errorf("the file with holes: %d bytes", len(data))
			}
			found++
		case h.Name == "x":
			if h.Uid != 4294967294 || h.ModTime.Unix() != -6 || h.ModTime.Nanosecond() != 999_999_999 || string(data) != "x" {
				t.Errorf("x: %+v %q", h, data)
			}
			found++
		case h.Typeflag == tar.TypeSymlink:
			if h.Linkname != strings.Repeat("l\xfe", 400) {
				t.Errorf("the link leads to %q", h.Linkname)
			}
			found++
		}
	}
	if found != 3 {
		t.Errorf("%d of 3 were there", found)
	}
	dir := t.TempDir()
	unpack(t, "tar", "--xattrs", "--xattrs-include=*", "--warning=no-unknown-keyword", "--warning=no-timestamp", "-xpf", file, "-C", dir)
	unpacked := capture(t, c, dir, "y")
	m, vault := manifest(t, c, "x")
	_, have := manifest(t, c, "y")
	long := strings.Repeat("long/", 50) + "\xff"
	if content(t, m, vault, long) != content(t, unpacked, have, long) {
		t.Error("GNU tar unpacks another file with holes")
	}
	if e := entry(t, unpacked, "x"); len(e.Xattrs) != 1 || e.Xattrs[0].Name != "user.a=b%" || string(e.Xattrs[0].Value) != "=\n\x00" {
		t.Errorf("GNU tar unpacks the attributes %+v", e.Xattrs)
	}
}

// A directory whose contents were left out of the image is an empty one.
func TestExportOpaque(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir+"/proc/1", []byte("x"))
	fill(t, dir+"/a", []byte("x"))
	c := openCatalog(t)
	m := capture(t, c, dir, "x")
	if e := entry(t, m, "proc"); !e.Opaque {
		t.Fatal("proc is not opaque")
	}
	var out bytes.Buffer
	r, err := Export(t.Context(), c, "x", &out, ExportOptions{})
	must(t, err)
	if len(r.LeftOut) > 0 || !bytes.Contains(out.Bytes(), []byte("proc/\x00")) {
		t.Errorf("report %+v", r)
	}
}

// A pack that is damaged, and a writer that takes no more, end an export.
func TestExportFails(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir+"/a", noise(20<<20, 1))
	c := openCatalog(t)
	capture(t, c, dir, "x")
	full := errors.New("full")
	if _, err := Export(t.Context(), c, "x", failing{full}, ExportOptions{}); !errors.Is(err, full) {
		t.Errorf("a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Export(ctx, c, "x", io.Discard, ExportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	packs, err := filepath.Glob(filepath.Join(c.Dir(), "store/packs/*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	b, err := os.ReadFile(packs[0])
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(packs[0], 0o600), os.WriteFile(packs[0], b, 0o600))
	var corrupt *store.CorruptError
	if _, err := Export(t.Context(), c, "x", io.Discard, ExportOptions{}); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), `export "a"`) {
		t.Errorf("a damaged pack: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write(b []byte) (int, error) { return 0, f.err }

// A version without any content is an archive all the same.
func TestExportEmpty(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir+"/a/b", nil)
	c := openCatalog(t)
	m := capture(t, c, dir, "x")
	var out bytes.Buffer
	_, err := Export(t.Context(), c, "x", &out, ExportOptions{})
	must(t, err)
	_, err = importBytes(t, c, "y", out.Bytes())
	must(t, err)
	again, _ := manifest(t, c, "y")
	if diff := changes(m, again); len(diff) > 0 {
		t.Errorf("changes %q", diff)
	}
}
