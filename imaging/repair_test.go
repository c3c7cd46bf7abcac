package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// storeFiles are the files of packs, manifests and names.
func storeFiles(t *testing.T, c *Catalog) (files []string) {
	t.Helper()
	for _, dir := range []string{"packs", "manifests", "names", "names/.copies"} {
		list, err := filepath.Glob(filepath.Join(c.Dir(), "store", dir, "[^.]*"))
		must(t, err)
		for _, f := range list {
			if info, err := os.Lstat(f); err == nil && info.Mode().IsRegular() {
				files = append(files, f)
			}
		}
	}
	return files
}

// harm does something to a file that a disk may do, and tells what.
func harm(t *testing.T, r *rand.Rand, path string, all []string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err, os.Chmod(path, 0o600))
	at := r.IntN(len(b))
	switch r.IntN(10) {
	default:
		bit := r.IntN(8)
		b[at] ^= 1 << bit
		must(t, os.WriteFile(path, b, 0o600))
		return fmt.Sprintf("bit %d of byte %d of %d flipped", bit, at, len(b))
	case 0, 1:
		must(t, os.WriteFile(path, b[:at], 0o600))
		return fmt.Sprintf("cut from %d to %d bytes", len(b), at)
	case 2:
		end := min(len(b), at+4096)
		for same := bytes.Count(b[at:end], []byte{0}) == end-at; same; same = false {
			b[at] = 1
		}
		clear(b[at:end:end])
		must(t, os.WriteFile(path, b, 0o600))
		return fmt.Sprintf("bytes %d to %d made zeros", at, end)
	case 3:
		must(t, os.WriteFile(path, append(b, b[at]), 0o600))
		return "made longer by a byte"
	case 4:
		must(t, os.Remove(path))
		return "removed"
	case 5:
		other := all[r.IntN(len(all))]
		for filepath.Dir(other) != filepath.Dir(path) || other == path {
			other = all[r.IntN(len(all))]
		}
		must(t, os.Rename(path, path+"~"), os.Rename(other, path), os.Rename(path+"~", other))
		return "swapped with " + filepath.Base(other)
	}
}

// Whatever is damaged is found and named; nothing of it is restored as if it
// were right; repair loses nothing that was readable, and a new capture brings
// back all that is still there.
func TestDamages(t *testing.T) {
	const damages = 1000
	const each = 4 // of so many is repaired, which takes longer
	c := openTestCatalog(t)
	root := t.TempDir()
	takeDamageable(t, c, root)
	want := readAllVersions(t, c)
	t.Setenv("TMPDIR", memory(t)) // where nothing waits for a disk
	var found, lost int
	defer func() {
		t.Logf("%d damages: %d found, something is lost by %d", damages, found, lost)
		if found < damages*9/10 || lost < damages/each/10 || lost > damages/each*9/10 {
			t.Error("the damages are no good sample")
		}
	}()
	for i := range damages {
		seed := uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			d := copyState(t, c.Dir())
			files := storeFiles(t, d)
			path := files[r.IntN(len(files))]
			did := filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path) + " " + harm(t, r, path, files)
			before, err := os.ReadFile(path)
			if original, oerr := os.ReadFile(strings.Replace(path, d.Dir(), c.Dir(), 1)); err == nil && oerr == nil && bytes.Equal(before, original) {
				t.Skip("nothing changed: there were zeros")
			}
			whole, f := checkDamage(t, d, did, path, want)
			if f {
				found++
			}
			if i%each == 0 && checkRepair(t, d, did, want, whole) {
				lost++
			}
			must(t, os.RemoveAll(d.Dir()))
			if t.Failed() {
				t.Log(did)
			}
		})
	}
}

// takeDamageable makes versions that share some and each have something of
// their own, of both audiences, in small packs.
func takeDamageable(t *testing.T, c *Catalog, root string) {
	t.Helper()
	for i := range 3 {
		fill(t, root+"/shared", noise(90<<10, 1))
		fill(t, root+"/text", []byte(strings.Repeat("a line that compresses\n", 1<<10)))
		fill(t, fmt.Sprintf("%s/own%d", root, i), noise(20<<10, byte(100+i)))
		fill(t, root+"/opt/key.pem", []byte("-----BEGIN PRIVATE KEY-----\n"+fmt.Sprint(i)+base64Lines))
		takeImage(t, c, root, "x")
		takeImage(t, c, root, "y")
	}
}

// checkDamage looks at a damaged store: it gives what can be read of it, and
// tells whether the damage was found.
func checkDamage(t *testing.T, c *Catalog, did, path string, want map[string]map[string]string) (whole map[string]map[string]string, found bool) {
	t.Helper()
	var faults []ImageFault
	must(t, c.Verify(t.Context(), nil, true, func(f ImageFault) { faults = append(faults, f) }))
	_, gone := os.Lstat(path)
	if len(faults) == 0 && !(errors.Is(gone, fs.ErrNotExist) && strings.Contains(path, "/.copies/")) {
		t.Errorf("%s: nothing is found to be wrong", did)
	}
	whole = readable(t, c, want)
	named := map[string]bool{}
	for _, f := range faults {
		named[f.Version.Image] = true
		if f.Version.Number > 0 {
			named[f.Version.Ref()] = true
		}
	}
	for ref := range want {
		image, _, _ := strings.Cut(ref, "@")
		if whole[ref] == nil && !named[ref] && !named[image] {
			t.Errorf("%s: %s cannot be read, and is not named", did, ref)
		}
	}
	return whole, len(faults) > 0
}

// checkRepair repairs a damaged store, and tells whether something is lost for
// good.
func checkRepair(t *testing.T, c *Catalog, did string, want, whole map[string]map[string]string) (lost bool) {
	t.Helper()
	dry, err := c.Repair(t.Context(), RepairOptions{Depth: store.Bytes, DryRun: true})
	must(t, err)
	r, err := c.Repair(t.Context(), RepairOptions{Depth: store.Bytes})
	must(t, err)
	if len(dry.Packs) != len(r.Packs) || len(dry.Names) != len(r.Names) || len(dry.Lost) != len(r.Lost) || !slices.Equal(dry.Linked, r.Linked) {
		t.Errorf("%s: foretold %+v, done %+v", did, dry, r)
	}
	after := readable(t, c, want)
	for ref, files := range whole {
		for file := range files {
			if after[ref][file] != files[file] {
				t.Errorf("%s: repair lost %s of %s", did, file, ref)
			}
		}
	}
	var left []ImageFault
	must(t, c.Verify(t.Context(), nil, true, func(f ImageFault) { left = append(left, f) }))
	if (len(left) > 0) != (len(r.Lost) > 0) {
		t.Errorf("%s: %v are lost, and %v is found to be wrong", did, r.Lost, left)
	}
	return len(r.Lost) > 0
}

// readable reads what can be read of the versions, and holds it against what
// it was.
func readable(t *testing.T, c *Catalog, want map[string]map[string]string) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	vault, err := c.Vault(t.Context())
	must(t, err)
	for ref := range want {
		v, err := c.Resolve(t.Context(), ref)
		if err != nil {
			continue
		}
		m, err := c.Manifest(t.Context(), v)
		if err != nil {
			continue
		}
		files := map[string]string{}
		bad := map[string]bool{}
		for r := range m.Refs() {
			b, err := vault.Chunk(t.Context(), r.Ref)
			bad[r.Entry.Path] = bad[r.Entry.Path] || err != nil
			files[r.Entry.Path] += string(b)
		}
		for path := range bad {
			if bad[path] {
				delete(files, path)
			} else if files[path] != want[ref][path] {
				t.Errorf("%s of %s is read, and is another", path, ref)
			}
		}
		if len(files) > 0 {
			all[ref] = files
		}
	}
	return all
}

// A pack in which only what leads to the blocks is lost loses nothing.
func TestRepairKeepsBlocks(t *testing.T) {
	for name, ruin := range map[string]func(b []byte) []byte{
		"footer":  func(b []byte) []byte { return b[:len(b)-1] },
		"trailer": func(b []byte) []byte { return b[:len(b)-100] },
		"table":   func(b []byte) []byte { b[len(b)-60] ^= 1; return b },
		"magic":   func(b []byte) []byte { copy(b, "LOST"); return b },
		"key":     func(b []byte) []byte { b[20] ^= 1; return b },
		"longer":  func(b []byte) []byte { return append(b, "more"...) },
	} {
		t.Run(name, func(t *testing.T) {
			c := openTestCatalog(t)
			root := t.TempDir()
			fill(t, root+"/large", noise(9<<20, 1)) // several blocks
			fill(t, root+"/opt/key.pem", []byte("-----BEGIN PRIVATE KEY-----\n"+base64Lines))
			takeImage(t, c, root, "x")
			want := readAllVersions(t, c)
			for _, path := range storeFiles(t, c) {
				if filepath.Base(filepath.Dir(path)) == "packs" {
					b, err := os.ReadFile(path)
					must(t, err, os.Chmod(path, 0o600))
					must(t, os.WriteFile(path, ruin(b), 0o600))
				}
			}
			r, err := c.Repair(t.Context(), RepairOptions{})
			must(t, err)
			if len(r.Packs) != 2 || len(r.Lost) > 0 {
				t.Errorf("repaired %+v", r)
			}
			sameVersions(t, c, want, "x@1")
		})
	}
}

// The blocks of a pack that are whole are saved, and a capture that finds
// nothing changed reads again what is in the others.
func TestRepairAndCapture(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	fill(t, root+"/a", noise(5<<20, 1))
	fill(t, root+"/b", noise(5<<20, 2))
	fill(t, root+"/c", noise(5<<20, 3))
	takeImage(t, c, root, "x")
	want := readAllVersions(t, c)
	must(t, os.Remove(root+"/c"))
	for _, path := range storeFiles(t, c) {
		if filepath.Base(filepath.Dir(path)) == "packs" {
			b, err := os.ReadFile(path)
			must(t, err, os.Chmod(path, 0o600))
			b[1<<20] ^= 1 // in a
			must(t, os.WriteFile(path, b, 0o600))
		}
	}
	r, err := c.Repair(t.Context(), RepairOptions{})
	must(t, err)
	lost := map[string]bool{}
	for _, f := range r.Lost {
		lost[f.Version.Ref()+" "+f.Path] = true
	}
	if len(lost) != 1 || !lost["x@1 a"] || r.Packs[0].Saved == 0 {
		t.Errorf("lost %v; %+v", lost, r)
	}
	again := takeImage(t, c, root, "x")
	if again.BytesRead != 5<<20 {
		t.Errorf("%d bytes are read again", again.BytesRead)
	}
	verifyAll(t, c)
	if got := readVersion(t, c, "x@1"); !maps.Equal(got, want["x@1"]) {
		t.Error("the old version is another")
	}
}

// A version whose manifest is lost gets that of an equal one.
func TestRepairManifest(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	fill(t, root+"/a", noise(50<<10, 1))
	takeImage(t, c, root, "x")
	want := readAllVersions(t, c)
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	blob := filepath.Join(c.Dir(), "store", "manifests", v.Blob.Hex())
	must(t, os.Chmod(blob, 0o600), os.Truncate(blob, 100))
	r, err := c.Repair(t.Context(), RepairOptions{})
	must(t, err)
	if len(r.Lost) != 1 || r.Lost[0].Version.Ref() != "x@1" || len(r.Linked) > 0 {
		t.Errorf("repaired %+v", r)
	}
	takeImage(t, c, root, "x")
	if r, err = c.Repair(t.Context(), RepairOptions{}); err != nil || len(r.Lost) > 0 || !slices.Equal(r.Linked, []string{"x@1"}) {
		t.Errorf("repaired after another capture: %+v, %v", r, err)
	}
	sameVersions(t, c, map[string]map[string]string{"x@1": want["x@1"], "x@2": want["x@1"]}, "x@1", "x@2")
}

// A number that may have been given is not given again.
func TestRepairNames(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	for i := range 2 {
		fill(t, root+"/a", noise(1000, byte(i)))
		takeImage(t, c, root, "x")
	}
	old, err := os.ReadFile(c.copyPath("x"))
	must(t, err)
	fill(t, root+"/a", noise(1000, 9))
	takeImage(t, c, root, "x")
	must(t, os.WriteFile(c.copyPath("x"), old, 0o600), os.Truncate(c.namePath("x"), 10))
	r, err := c.Repair(t.Context(), RepairOptions{})
	must(t, err)
	if len(r.Names) != 1 || r.Names[0].From != "copy" {
		t.Errorf("repaired %+v", r)
	}
	fill(t, root+"/a", noise(1000, 10))
	if again := takeImage(t, c, root, "x"); again.Version != 4 {
		t.Errorf("the next version is %d", again.Version)
	}
	verifyAll(t, c)
}

// TestRepairKilled kills a repair at each of its steps and at random instants:
// the next one finishes the work, and nothing is lost.
func TestRepairKilled(t *testing.T) {
	repair := func(t *testing.T, c *Catalog, step func(string)) {
		r, err := c.Repair(t.Context(), RepairOptions{Step: step})
		if err != nil || len(r.Lost) > 0 {
			t.Errorf("repair: %+v, %v", r, err)
		}
	}
	if untilKilled(t, repair) {
		return
	}
	t.Setenv("TMPDIR", memory(t))
	c := openTestCatalog(t)
	root := t.TempDir()
	fill(t, root+"/a", noise(3<<20, 1))
	takeImage(t, c, root, "x")
	want := readAllVersions(t, c)
	for _, path := range storeFiles(t, c) {
		if filepath.Base(filepath.Dir(path)) == "packs" || path == c.namePath("x") {
			info, err := os.Stat(path)
			must(t, err, os.Chmod(path, 0o600), os.Truncate(path, info.Size()-1))
		}
	}
	steps := eachKill(t, c, 45, func(c *Catalog) {
		repair(t, c, nil)
		sameVersions(t, c, want, "x@1")
	})
	for _, name := range []string{"names", "salvage", "commit", "lock", "set aside", "verify", "rest"} {
		if steps[name] == 0 {
			t.Errorf("no repair was killed at the step %q: %v", name, steps)
		}
	}
}
