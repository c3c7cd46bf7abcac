package remote

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging"
)

// A real capture, through the real agent, into a real store: the second one
// reads nothing and makes no version, the third sends what has changed.
func TestCaptureAgain(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	furnish(t, h.tree)
	h.fill(30, 300_000)
	for i := range 500 {
		writeFile(t, fmt.Sprintf("%s/many/f%d", h.tree, i), fmt.Sprint(i), 0o644)
	}
	// A file that is one hole, and one with holes.
	for name, at := range map[string]int64{"hole": -1, "holes": 5 << 20} {
		f, err := os.Create(filepath.Join(h.tree, name))
		if err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			if _, err := f.WriteAt([]byte("in the middle"), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(9 << 20); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	catalog, err := imaging.OpenCatalog(t.TempDir(), imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	conn := dialHead(t, h.target("root"), options(t, h, key))
	capture := func() *imaging.CaptureReport {
		t.Helper()
		src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
		if err != nil {
			t.Fatal(err)
		}
		report, err := imaging.Capture(t.Context(), catalog, src, imaging.CaptureOptions{Name: "head", Root: "/mnt"})
		if err != nil {
			t.Fatal(err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		return report
	}
	first := capture()
	if first.Unchanged || first.Version != 1 || first.BytesSent < 30*300_000 || first.Partial() {
		t.Errorf("first: %+v", first)
	}
	before := conn.Received()
	second := capture()
	if !second.Unchanged || second.BytesRead != 0 || second.BytesSent != 0 || second.Digest != first.Digest {
		t.Errorf("second: %+v", second)
	}
	if n := conn.Received() - before; n > 150*second.Entries {
		t.Errorf("%d bytes came for %d entries that had not changed", n, second.Entries)
	}
	writeFile(t, filepath.Join(h.tree, "many", "f7"), strings.Repeat("new", 1000), 0o644)
	if third := capture(); third.Unchanged || third.Version != 2 || third.BytesRead != 3000 || third.Entries != first.Entries {
		t.Errorf("third: %+v", third)
	}
	h.mustBeClean()
}
