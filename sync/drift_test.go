package resync

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
	"doppel/imaging/store"
)

// noChunks is a source for trees without content.
type noChunks struct{}

func (noChunks) Find(store.Ref) (uint32, bool) { return 0, false }

func (noChunks) StreamNumbers(context.Context, []uint32, int, func(uint32, []byte) error) error {
	return nil
}

// applied is a small tree on disk, and its manifest.
func applied(t *testing.T) (*imaging.Manifest, string) {
	t.Helper()
	var list []imaging.Entry
	add := func(path string, kind imaging.Kind, mode uint32) {
		list = append(list, imaging.Entry{
			Path: path, Kind: kind, Mode: mode, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			MTime: imaging.Time{Sec: 1_700_000_000 + int64(len(list))},
		})
	}
	add(".", imaging.Directory, 0o755)
	add("etc", imaging.Directory, 0o755)
	add("etc/hostname", imaging.Regular, 0o644)
	add("etc/passwd", imaging.Regular, 0o644)
	add("usr", imaging.Directory, 0o755)
	add("usr/bin", imaging.Directory, 0o755)
	entries, err := imaging.NewEntries(list...)
	if err != nil {
		t.Fatal(err)
	}
	m := &imaging.Manifest{List: entries}
	dir := t.TempDir()
	if _, err := imaging.Apply(t.Context(), m, noChunks{}, dir, imaging.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	return m, dir
}

// identity lets the host name be, and what the agent adds.
func identity(path string, d imaging.Difference) (string, bool) {
	switch {
	case path == "etc/hostname" && (d.Kind == imaging.DiffSize || d.Kind == imaging.DiffContent || d.Kind == imaging.DiffMTime):
		return "the machine's name", true
	case path == "usr/bin/agent" && d.Kind == imaging.DiffExtra:
		return "the agent", true
	}
	return "", false
}

// replace writes a file anew, as editors do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func list(r Report) (differences, allowed []string) {
	for _, d := range r.Differences {
		differences = append(differences, string(d.Kind)+" "+d.Path)
	}
	for _, d := range r.Allowed {
		allowed = append(allowed, string(d.Kind)+" "+d.Path+": "+d.Reason)
	}
	return differences, allowed
}

func TestDrift(t *testing.T) {
	m, dir := applied(t)
	r, err := Drift(t.Context(), m, dir, identity, imaging.CompareOptions{})
	if err != nil || !r.Equal() || len(r.Allowed) > 0 || r.Entries != 6 {
		t.Errorf("report %+v, %v", r, err)
	}

	replace(t, filepath.Join(dir, "etc/hostname"), "node001")
	replace(t, filepath.Join(dir, "usr/bin/agent"), "agent")
	r, err = Drift(t.Context(), m, dir, identity, imaging.CompareOptions{})
	differences, allowed := list(r)
	want := []string{
		`mtime etc: "etc/hostname", which may differ, is in it`,
		"mtime etc/hostname: the machine's name",
		"size etc/hostname: the machine's name",
		`mtime usr/bin: "usr/bin/agent", which may differ, is in it`,
		"extra usr/bin/agent: the agent",
	}
	if err != nil || !r.Equal() || !slices.Equal(allowed, want) {
		t.Errorf("%v: differences %q, allowed %q", err, differences, allowed)
	}

	// The mode of an excused directory is not excused, nor are the times of
	// directories in which nothing may differ.
	replace(t, filepath.Join(dir, "usr/new"), "")
	if err := os.Chmod(filepath.Join(dir, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.UtimesNano(filepath.Join(dir, "etc/passwd"), []unix.Timespec{{}, {}}); err != nil {
		t.Fatal(err)
	}
	r, err = Drift(t.Context(), m, dir, identity, imaging.CompareOptions{})
	differences, allowed = list(r)
	wantDifferences := []string{"mode etc", "mtime etc/passwd", "mtime usr", "extra usr/new"}
	if err != nil || r.Equal() || !slices.Equal(differences, wantDifferences) || !slices.Equal(allowed, want) {
		t.Errorf("%v: differences %q, allowed %q", err, differences, allowed)
	}

	if r, err = Drift(t.Context(), m, dir, nil, imaging.CompareOptions{}); err != nil || len(r.Allowed) > 0 || len(r.Differences) != 9 {
		t.Errorf("nothing allowed: report %+v, %v", r, err)
	}
	if _, err = Drift(t.Context(), m, filepath.Join(dir, "none"), nil, imaging.CompareOptions{}); err == nil {
		t.Error("a tree that is not there has no drift")
	}
}
