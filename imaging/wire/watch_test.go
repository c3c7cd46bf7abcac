package wire

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"doppel/imaging"
)

// A tree at the other end that is watched: what has not changed is not sent, and
// what is captured is the same.
func TestWatchAcrossTheWire(t *testing.T) {
	root := t.TempDir()
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{"a/b", "c/d"} {
		must(os.MkdirAll(filepath.Join(root, dir), 0o755), os.WriteFile(filepath.Join(root, dir, "file"), []byte(dir), 0o600))
	}
	must(os.Link(filepath.Join(root, "a/b/file"), filepath.Join(root, "c/link")))
	// Files that were only just written are not known by their times.
	clock := func() time.Time { return time.Now().Add(time.Hour) }
	source := imaging.NewLocal(root, imaging.WithClock(clock))
	defer source.Close()
	l := connect(t, source)
	catalog, err := imaging.OpenCatalog(filepath.Join(t.TempDir(), "state"), imaging.CatalogOptions{})
	must(err)
	watch := &imaging.Watch{RescanEvery: time.Hour}
	capture := func() *imaging.CaptureReport {
		t.Helper()
		r, err := imaging.Capture(t.Context(), catalog, l.client, imaging.CaptureOptions{Name: "head", Root: root, Watch: watch})
		must(err)
		whole, err := imaging.Capture(t.Context(), catalog, imaging.NewLocal(root, imaging.WithClock(clock)), imaging.CaptureOptions{Name: "whole", Root: root})
		must(err)
		if r.Digest != whole.Digest {
			t.Errorf("captured %+v, the tree is %+v", r, whole)
		}
		return r
	}
	if r := capture(); r.Watched || r.Unchanged {
		t.Errorf("the first capture: %+v", r)
	}
	if r := capture(); !r.Watched || !r.Unchanged {
		t.Errorf("nothing has changed: %+v", r)
	}
	must(os.WriteFile(filepath.Join(root, "c/d/file"), []byte("other"), 0o600))
	if r := capture(); !r.Watched || r.Unchanged || r.BytesRead != 5 {
		t.Errorf("one file has changed: %+v", r)
	}

	must(os.WriteFile(filepath.Join(root, "c/d/file"), []byte("once more"), 0o600))
	sink := &memorySink{}
	must(l.client.Scan(t.Context(), imaging.ScanRequest{Root: root}, sink))
	if len(sink.same) > 0 || len(sink.entries) != 8 {
		t.Errorf("a scan since nothing gave %q as the same, and %d entries", sink.same, len(sink.entries))
	}
	if quiet, err := l.client.Quiet(t.Context(), 1); err != nil || quiet {
		t.Errorf("since a scan that never was: %v, %v", quiet, err)
	}
	// What only the agent knows is asked by the one question that has one answer,
	// as often as wanted.
	for range 3 {
		must(os.WriteFile(filepath.Join(root, "a/b/file"), []byte(time.Now().String()), 0o600))
		if r := capture(); !r.Watched || r.Unchanged {
			t.Errorf("%+v", r)
		}
	}
}

// The order of what is the same among entries is that of the tree.
func TestSameKeepsItsPlace(t *testing.T) {
	entries, stamps := allKinds()
	l := connect(t, &fakeSource{scan: func(ctx context.Context, req imaging.ScanRequest, s imaging.Sink) error {
		if req.Since != 5 || req.Mark != 6 {
			t.Errorf("asked for %+v", req)
		}
		for i := range entries[:3] {
			if err := s.Entries(ctx, entries[i:i+1], stamps[i:i+1]); err != nil {
				return err
			}
			if err := s.Same(ctx, fmt.Sprintf("below/%d", i)); err != nil {
				return err
			}
		}
		return nil
	}})
	sink := &memorySink{}
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{Mark: 6, Since: 5}, sink); err != nil {
		t.Fatal(err)
	}
	if len(sink.entries) != 3 || len(sink.same) != 3 {
		t.Errorf("%d entries, %q", len(sink.entries), sink.same)
	}
	want := []string{}
	for i := range 3 {
		want = append(want, "entries", fmt.Sprintf("same below/%d", i))
	}
	if !slices.Equal(sink.order, want) {
		t.Errorf("order %q", sink.order)
	}
}
