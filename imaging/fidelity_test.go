package imaging

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// nasty makes the nastiest tree there is, with tools that are not ours.
func nasty(tb testing.TB) string {
	tb.Helper()
	needRoot(tb)
	dir, _ := image(tb, "ext4", "1G")
	dir = filepath.Join(dir, "tree")
	must(tb, os.Mkdir(dir, 0o755))
	run(tb, "python3", "testdata/nasty.py", dir)
	return dir
}

// captured captures a tree and gives what Apply needs.
func captured(tb testing.TB, dir string) (*Manifest, *store.Vault) {
	tb.Helper()
	catalog, err := OpenCatalog(filepath.Join(tb.TempDir(), "state"), CatalogOptions{})
	must(tb, err)
	report, err := Capture(tb.Context(), catalog, NewLocal(dir), CaptureOptions{Name: "nasty", Root: dir})
	must(tb, err)
	if report.Partial() {
		tb.Errorf("the capture is not whole: %+v", report)
	}
	version, err := catalog.Resolve(tb.Context(), "nasty@latest")
	must(tb, err)
	m, err := catalog.Manifest(tb.Context(), version)
	must(tb, err)
	vault, err := catalog.Vault(tb.Context())
	must(tb, err)
	return m, vault
}

// What was captured and applied is the same tree, in the eyes of rsync, find,
// getfattr and sha256sum.
func TestFidelity(t *testing.T) {
	source := nasty(t)
	m, vault := captured(t, source)
	for _, kind := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			target := memory
			if kind != "tmpfs" {
				target = func(tb testing.TB) string { dir, _ := image(tb, kind, "1G"); return dir }
			}
			dir := filepath.Join(target(t), "tree")
			report, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
			must(t, err)
			if report.Lost > 0 {
				t.Errorf("report %+v", report)
			}
			judge(t, source, dir)
			diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{})
			if err != nil || len(diffs) > 0 {
				t.Errorf("%d differences, %v: %.2000v", len(diffs), err, diffs)
			}
			if kind == "ext4" {
				sameRoom(t, source, dir)
			}
			if kind != "tmpfs" { // which rounds holes to pages of its own
				again, _ := captured(t, dir)
				if changes := DiffManifests(m, again); len(changes) > 0 {
					t.Errorf("captured again it has %d changes: %.2000v", len(changes), changes)
				}
			}
			report, err = Apply(t.Context(), m, vault, dir, ApplyOptions{Delete: true, Full: true})
			if err != nil || report.Unchanged != report.Entries {
				t.Errorf("second report %+v, %v", report, err)
			}
		})
	}
}

// The tools that everybody uses leave differences on this tree, which shows
// that they can be seen.
func TestFidelityOfPeers(t *testing.T) {
	source := nasty(t)
	m, _ := captured(t, source)
	for _, peer := range []struct{ name, script string }{
		{"rsync -aHAXS", `rsync -aHAXS --numeric-ids "$1/" "$2"`},
		{"tar", `tar -C "$1" -c --sparse --acls --xattrs --xattrs-include='*' . | tar -C "$2" -x -p --numeric-owner --acls --xattrs --xattrs-include='*'`},
		{"cp -a", `cp -a "$1/." "$2"`},
	} {
		dir, _ := image(t, "ext4", "1G")
		dir = filepath.Join(dir, "copy")
		must(t, os.Mkdir(dir, 0o755))
		// They fail on what they cannot do, and go on.
		said, err := exec.Command("bash", "-c", peer.script, "copy", source, dir).CombinedOutput()
		diffs, cerr := CompareTree(t.Context(), m, dir, CompareOptions{})
		must(t, cerr)
		kinds := map[DifferenceKind]int{}
		for _, d := range diffs {
			kinds[d.Kind]++
		}
		if len(diffs) == 0 || len(diffs) > 2000 {
			t.Errorf("%s: %d differences (%v: %.500s)", peer.name, len(diffs), err, said)
		}
		t.Logf("%-13s %4d differences: %v", peer.name, len(diffs), kinds)
	}
}

// judge compares two trees with the tools that everybody uses.
func judge(t *testing.T, want, have string) {
	t.Helper()
	// rsync knows no way beyond PATH_MAX, and says so with an error. It
	// reads the gigabytes of a hole, too, which holeMaps does not.
	// XFS shows the ACLs twice.
	args := []string{"-aHAXn", "--filter=-x trusted.SGI_ACL_*", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--exclude=/deep", "--exclude=/links/top", "--exclude=/holes/far"}
	if out := rsyncOutput(t, append(args, want+"/", have+"/")...); out != "" {
		t.Errorf("rsync sees differences:\n%.4000s", out)
	}
	// These see all, those that go into each directory (-execdir) included.
	for _, look := range [][]string{
		{".", "-type", "d", "-printf", `%p %y %m %U %G %T@\0`},
		{".", "!", "-type", "d", "-printf", `%p %y %m %U %G %s %T@ %n %l\0`},
		{".", "-execdir", "getfattr", "-h", "-d", `-m^(system|security|user|trusted\.[^S])`, "-e", "hex", "--", "{}", "+"},
		{".", "-type", "f", "-size", "-100M", "-execdir", "sha256sum", "-z", "--", "{}", "+"},
		{".", "(", "-type", "b", "-o", "-type", "c", ")", "-execdir", "stat", "-c", "%n %t:%T", "--", "{}", "+"},
	} {
		diffRecords(t, strings.Join(look, " "), findOutput(t, want, look), findOutput(t, have, look))
	}
	diffRecords(t, "names of one inode", linkGroups(t, want), linkGroups(t, have))
	diffRecords(t, "holes", holeMaps(t, want), holeMaps(t, have))
}

// rsyncOutput is what rsync prints.
func rsyncOutput(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("rsync", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("rsync: %v\n%s", err, stderr.String())
	}
	return string(out)
}

// findOutput are the records that find prints in dir, sorted: getfattr parts
// them by empty lines, all else by NULs or lines.
func findOutput(t *testing.T, dir string, args []string) []string {
	t.Helper()
	cmd := exec.Command("find", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("find %q in %s: %v\n%.2000s", args, dir, err, stderr.String())
	}
	separator := "\x00"
	switch {
	case slices.Contains(args, "getfattr"):
		separator = "\n\n"
	case slices.Contains(args, "stat"):
		separator = "\n"
	}
	records := strings.Split(string(out), separator)
	slices.Sort(records)
	return records
}

// linkGroups lists, for each inode with several names, all of them.
func linkGroups(t *testing.T, dir string) []string {
	t.Helper()
	groups := map[string][]string{}
	for _, record := range findOutput(t, dir, []string{".", "!", "-type", "d", "-links", "+1", "-printf", `%i %p\0`}) {
		inode, path, _ := strings.Cut(record, " ")
		groups[inode] = append(groups[inode], path)
	}
	var all []string
	for group := range maps.Values(groups) {
		slices.Sort(group)
		all = append(all, fmt.Sprintf("%q", group))
	}
	slices.Sort(all)
	return all
}

// holeMaps lists where the data of each file with holes is, as the kernel says
// it, and what the data is.
func holeMaps(t *testing.T, dir string) []string {
	t.Helper()
	const script = `
import hashlib, os
for name in sorted(os.listdir(".")):
    fd, at, runs = os.open(name, os.O_RDONLY), 0, []
    size = os.fstat(fd).st_size
    while at < size:
        try: start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError: break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, at, hashlib.sha256(os.pread(fd, at - start, start)).hexdigest()))
    print(name, size, runs)
    os.close(fd)
`
	cmd := exec.Command("python3", "-c", script)
	cmd.Dir = filepath.Join(dir, "holes")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("looking for holes: %v\n%s", err, out)
	}
	return strings.Split(string(out), "\n")
}

// sameRoom compares how much is allocated, on file systems of one kind. What
// the index of a file's extents takes depends on how it was written, so a
// block or two more or less say nothing.
func sameRoom(t *testing.T, want, have string) {
	t.Helper()
	blocks := func(dir string) map[string]int64 {
		all := map[string]int64{}
		for _, record := range findOutput(t, dir, []string{".", "-type", "f", "-printf", `%k %p\0`}) {
			var k int64
			if _, err := fmt.Sscan(record, &k); err == nil {
				_, path, _ := strings.Cut(record, " ")
				all[path] = k
			}
		}
		return all
	}
	source, target := blocks(want), blocks(have)
	for path, k := range source {
		if d := target[path] - k; d < -8 || d > 8 {
			t.Errorf("%q takes %d KiB instead of %d", path, target[path], k)
		}
	}
}

func diffRecords(t *testing.T, what string, want, have []string) {
	t.Helper()
	if slices.Equal(want, have) {
		return
	}
	in := func(list []string) map[string]bool {
		all := map[string]bool{}
		for _, r := range list {
			all[r] = true
		}
		return all
	}
	lacks, has := in(have), in(want)
	said := 0
	for _, r := range want {
		if !lacks[r] && said < 10 {
			said++
			t.Errorf("%s: is missing: %.300q", what, r)
		}
	}
	for _, r := range have {
		if !has[r] && said < 20 {
			said++
			t.Errorf("%s: is new: %.300q", what, r)
		}
	}
	if said == 0 {
		t.Errorf("%s: %d records instead of %d", what, len(have), len(want))
	}
}
