package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging"
)

// TestInstallerOfDamagedImage has the reason why there is no installer say what
// to do: it becomes the node's.
func TestInstallerOfDamagedImage(t *testing.T) {
	state, tree := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, err := imaging.OpenCatalog(state, imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := imaging.Capture(t.Context(), catalog, imaging.NewLocal(tree), imaging.CaptureOptions{Name: "head", Root: tree})
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Glob(filepath.Join(state, "store/manifests/*"))
	if err != nil || len(manifests) != 1 {
		t.Fatalf("%v: %v", err, manifests)
	}
	if err := os.Remove(manifests[0]); err != nil {
		t.Fatal(err)
	}
	_, err = (&installers{catalog: catalog, dir: t.TempDir()}).Installer(t.Context(), "head@1", r.Digest)
	if err == nil || !strings.Contains(err.Error(), "head@1") || !strings.Contains(err.Error(), "doppel image repair") {
		t.Errorf("it says %v", err)
	}
}
