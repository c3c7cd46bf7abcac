package clone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// grub does to a tree what grub-mkconfig does.
func grub(plan *Plan) func(Command) error {
	return func(c Command) error {
		if path.Base(c.Args[0]) != "grub-mkconfig" {
			return nil
		}
		text := fmt.Sprintf("search --fs-uuid %s\nlinux /boot/vmlinuz-6.1.0-1-amd64\n", plan.FileSystemAt("/").FS.UUID)
		name := filepath.Join(c.Root, "boot/grub/grub.cfg")
		return os.WriteFile(name, []byte(text), 0o600)
	}
}

func testOptions(work string, reports *[]Report) InstallOptions {
	return InstallOptions{
		Work:  work,
		Agent: []byte("agent"),
		Certificate: func(context.Context) (Credentials, error) {
			return Credentials{Certificate: []byte("crt"), Key: []byte("key"), CA: []byte("ca")}, nil
		},
		Report: func(r Report) {
			if reports != nil {
				*reports = append(*reports, r)
			}
		},
	}
}

func TestInstallTranscripts(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name   string
		layout *imaging.Layout
		fw     Firmware
		files  map[string]string
	}{
		{"default-bios", nil, BIOS, nil},
		{"default-uefi", nil, UEFI, nil},
		{"head-bios", headLayout(false), BIOS, map[string]string{
			"boot/grub/grub.cfg": "search --fs-uuid 11111111-0000-4000-8000-000000000002\nlinux /vmlinuz-6.1.0-1-amd64\n"}},
		{"head-uefi", headLayout(true), UEFI, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			head := debianHead()
			head.Layout = c.layout
			head.Facts.Firmware = string(c.fw)
			head.Facts.Cmdline = "BOOT_IMAGE=/vmlinuz root=UUID=x ro console=tty0 console=ttyS0,115200"
			files := debianFiles()
			for name, text := range c.files {
				files[name] = text
			}
			image := newImage(head, files)
			target := testTarget()
			target.ImageHead = image.Head
			plan := mustPlan(t, target, testHardware(c.fw, vda(20*gib)))
			work := t.TempDir()
			var text strings.Builder
			rec := &Recorder{Out: &text, Ran: grub(plan)}
			var reports []Report
			if err := Install(t.Context(), rec, plan, &image.Manifest, image, testOptions(work, &reports)); err != nil {
				t.Fatal(err)
			}
			var stages []Stage
			for _, r := range reports {
				if r.Install != plan.ID {
					t.Errorf("a report on install %q", r.Install)
				}
				if len(stages) == 0 || stages[len(stages)-1] != r.Stage {
					stages = append(stages, r.Stage)
				}
			}
			fmt.Fprintf(&text, "stages: %v\n", stages)
			golden(t, "install-"+c.name+".txt", strings.ReplaceAll(text.String(), work, "WORK"))
		})
	}
}

var errCut = errors.New("the power is cut")

// TestInstallContinues cuts an install before each of its steps, does it
// again, and compares what it came to with an install that was not cut.
func TestInstallContinues(t *testing.T) {
	needRoot(t)
	image := newImage(debianHead(), debianFiles())
	target := testTarget()
	target.ImageHead = image.Head
	plan := mustPlan(t, target, testHardware(UEFI, vda(20*gib)))

	var steps []string
	clean := t.TempDir()
	rec := &Recorder{Out: io.Discard, Ran: grub(plan), Before: func(s string) error { steps = append(steps, s); return nil }}
	if err := Install(t.Context(), rec, plan, &image.Manifest, image, testOptions(clean, nil)); err != nil {
		t.Fatal(err)
	}
	want := contents(t, filepath.Join(clean, "target"))
	for cut, step := range steps {
		work := t.TempDir()
		n := 0
		var after strings.Builder
		rec := &Recorder{Out: &after, Ran: grub(plan)}
		rec.Before = func(string) error {
			if n++; n > cut {
				return errCut
			}
			return nil
		}
		err := Install(t.Context(), rec, plan, &image.Manifest, image, testOptions(work, nil))
		if strings.HasPrefix(step, "boot entry") {
			// Not worth failing for; but the power is cut a step later.
			if err == nil {
				t.Errorf("cut before %q: nobody noticed", step)
			}
		} else if !errors.Is(err, errCut) {
			t.Errorf("cut before %q: %v", step, err)
		}
		var where *StageError
		if !errors.As(err, &where) {
			t.Errorf("cut before %q: the error does not say where: %v", step, err)
		}
		rec.Before = nil
		partitioned := strings.Contains(after.String(), "partition /dev/vda as")
		after.Reset()
		if err := Install(t.Context(), rec, plan, &image.Manifest, image, testOptions(work, nil)); err != nil {
			t.Errorf("cut before %q and continued: %v", step, err)
			continue
		}
		if partitioned && strings.Contains(after.String(), "partition /dev/vda as") {
			t.Errorf("cut before %q: the disk was partitioned a second time", step)
		}
		if got := contents(t, filepath.Join(work, "target")); !slices.Equal(got, want) {
			t.Errorf("cut before %q and continued:\n got %q\nwant %q", step, got, want)
		}
	}
}

// contents lists a tree, with what is in its files but for those that are
// random.
func contents(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", rel, fi.Mode())
		random := strings.Contains(rel, "ssh_host_") || strings.HasSuffix(rel, "random-seed")
		if d.Type().IsRegular() && !random {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInstallNamesCorruptChunk(t *testing.T) {
	needRoot(t)
	image := newImage(debianHead(), debianFiles())
	image.broken = store.Sum([]byte("text"))
	target := testTarget()
	target.ImageHead = image.Head
	plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	work := t.TempDir()
	err := Install(t.Context(), &Recorder{Out: io.Discard, Ran: grub(plan)}, plan, &image.Manifest, image, testOptions(work, nil))
	var where *StageError
	var corrupt *store.CorruptError
	if !errors.As(err, &where) || where.Stage != StageApply || !errors.As(err, &corrupt) || corrupt.ID != image.broken {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), image.broken.String()) {
		t.Errorf("the error does not name the chunk: %v", err)
	}
	if _, err := os.Stat(filepath.Join(work, "target/home/user/notes")); err == nil {
		t.Error("the file with the corrupt chunk was written")
	}
}

func TestInstallRefusesWrongConfig(t *testing.T) {
	needRoot(t)
	image := newImage(debianHead(), debianFiles())
	target := testTarget()
	target.ImageHead = image.Head
	plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	rec := &Recorder{Out: io.Discard, Ran: func(c Command) error {
		if path.Base(c.Args[0]) != "grub-mkconfig" {
			return nil
		}
		return os.WriteFile(filepath.Join(c.Root, "boot/grub/grub.cfg"), []byte("linux /boot/vmlinuz root=/dev/sda9\n"), 0o600)
	}}
	err := Install(t.Context(), rec, plan, &image.Manifest, image, testOptions(t.TempDir(), nil))
	var where *StageError
	if !errors.As(err, &where) || where.Stage != StageBootloader {
		t.Fatalf("got %v", err)
	}
}

func TestResolve(t *testing.T) {
	image := newImage(imaging.Head{}, map[string]string{
		"usr/lib/x86_64-linux-gnu/ld-linux.so.2": "elf", "usr/lib64/ld-linux.so.2": "-> ../lib/x86_64-linux-gnu/ld-linux.so.2",
		"lib64": "-> /usr/lib64", "loop": "-> loop", "out": "-> ../../../../usr/lib64",
	})
	x := manifestIndex{&image.List}
	for name, want := range map[string]string{
		"/lib64/ld-linux.so.2": "usr/lib/x86_64-linux-gnu/ld-linux.so.2", "out/ld-linux.so.2": "usr/lib/x86_64-linux-gnu/ld-linux.so.2",
		"loop": "", "nowhere": "", "lib64/none": "",
	} {
		got, _, ok := x.resolve(name)
		if got != want || ok != (want != "") {
			t.Errorf("%s leads to %q, %v; want %q", name, got, ok, want)
		}
	}
}

func TestXFSArgs(t *testing.T) {
	features := []string{"crc=1", "ftype=1", "finobt=1", "reflink=0", "sparse=1", "bigtime=0", "nrext64=0"}
	old := func(word string) bool { return word != "bigtime" && word != "nrext64" }
	got := strings.Join(xfsArgs(features, old), " ")
	if want := "-m crc=1 -m finobt=1 -m reflink=0 -i sparse=1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestXFSFeaturesAreMkfsArguments makes a file system anew from the features
// that were read, and compares them.
func TestXFSFeaturesAreMkfsArguments(t *testing.T) {
	dir := t.TempDir()
	tool, err := os.ReadFile("/usr/sbin/mkfs.xfs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mkfs.xfs"), tool, 0o755); err != nil {
		t.Fatal(err)
	}
	in := &install{tools: dir}
	in.index = manifestIndex{&newImage(imaging.Head{}, map[string]string{"mkfs.xfs": "elf"}).List}
	in.image = &imaging.Manifest{Head: imaging.Head{Boot: imaging.Boot{Tools: []string{"mkfs.xfs"}}}}
	disk := filepath.Join(dir, "disk")
	probe := func() *imaging.FileSystem {
		t.Helper()
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, _, err := imaging.ProbeFileSystem(f)
		if err != nil || got == nil {
			t.Fatalf("%v, %v", got, err)
		}
		return got
	}
	mkfs := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("/usr/sbin/mkfs.xfs", args...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.xfs %v: %v\n%s", args, err, out)
		}
	}
	for _, options := range [][]string{nil, {"-m", "reflink=0,bigtime=0,inobtcount=0"}, {"-m", "rmapbt=1", "-i", "nrext64=1"}, {"-m", "finobt=0", "-i", "sparse=0"}, {"-m", "crc=0", "-n", "ftype=0"}} {
		if err := os.WriteFile(disk, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(disk, 320<<20); err != nil {
			t.Fatal(err)
		}
		mkfs(append(append([]string{"-q", "-f", "-L", "data"}, options...), disk)...)
		first := probe()
		args, err := in.formatCommand(first, disk)
		if err != nil {
			t.Fatal(err)
		}
		mkfs(args[1:]...)
		if second := probe(); !reflect.DeepEqual(first, second) {
			t.Errorf("%v: %+v became %+v", options, first, second)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := encodeRecord(Record{Plan: testInstall, Formatted: []string{"a", "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:128])
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := decodeRecord(b)
		if !ok {
			return
		}
		if _, err := encodeRecord(r); err != nil && len(b) <= recordBytes {
			t.Errorf("%+v cannot be written: %v", r, err)
		}
	})
}
