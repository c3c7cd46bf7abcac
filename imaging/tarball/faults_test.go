package tarball

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"doppel/imaging"
	"doppel/imaging/faultfs"
)

// A disk that fails at any change an import makes, or fills up there, costs no
// version; the import fails with an error that says where, or makes the version
// that it should.
func TestImportOnBadDisk(t *testing.T) {
	needRoot(t)
	at, behind := t.TempDir(), t.TempDir()
	run(t, "mount", "-t", "tmpfs", "tmpfs", behind)
	t.Cleanup(func() { run(t, "umount", behind) })
	disk := faultfs.Mount(t, behind, at)
	// The class of the file shows under its last name: it is stored twice.
	old := archive(raw{name: "f", kind: '0', data: "kept"})
	b := archive(raw{name: "f", kind: '0', data: string(noise(200<<10, 1))}, raw{name: "opt/x", kind: '0', data: "secret"},
		raw{name: "etc/ssl/private/x", kind: '1', link: "opt/x"})
	disk.EachFault(t, func(errno syscall.Errno) error {
		disk.Pause()
		inFront := filepath.Join(at, "state")
		defer func() { must(t, os.RemoveAll(filepath.Join(behind, "state"))) }()
		c, err := imaging.OpenCatalog(inFront, imaging.CatalogOptions{})
		must(t, err)
		_, err = importBytes(t, c, "x", old)
		must(t, err)
		disk.Resume()
		_, failure := importBytes(t, c, "x", b)
		disk.Pause()
		if failure != nil && (!errors.Is(failure, errno) || !strings.Contains(failure.Error(), inFront) || errors.As(failure, new(*MemberError))) {
			t.Errorf("the error does not tell what is wrong with what: %v", failure)
		}
		c, err = imaging.OpenCatalog(filepath.Join(behind, "state"), imaging.CatalogOptions{})
		must(t, err)
		verify := func() {
			must(t, c.Verify(t.Context(), nil, true, func(f imaging.ImageFault) { t.Errorf("fault: %v", f) }))
		}
		verify()
		r, err := importBytes(t, c, "x", b)
		must(t, err)
		if failure == nil && !r.Unchanged {
			t.Error("it was no success")
		}
		verify()
		for ref, want := range map[string]string{"x@1": "kept", "x@2": string(noise(200<<10, 1))} {
			m, vault := manifest(t, c, ref)
			if content(t, m, vault, "f") != want {
				t.Errorf("%s is another", ref)
			}
		}
		return failure
	})
}
