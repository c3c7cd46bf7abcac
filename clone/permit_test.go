package clone

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// A node that was disarmed after it got its plan keeps its disk: the server is
// asked once more right before the first write, and no answer is no.
func TestInstallAsksBeforeItWrites(t *testing.T) {
	needRoot(t)
	image := newImage(debianHead(), debianFiles())
	target := testTarget()
	target.ImageHead = image.Head
	plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	disarmed := errors.New("node001 is assigned: no install is permitted")

	var text strings.Builder
	o := testOptions(t.TempDir(), nil)
	o.Permit = func(context.Context) error { return disarmed }
	err := Install(t.Context(), &Recorder{Out: &text}, plan, &image.Manifest, image, o)
	var where *StageError
	if !errors.As(err, &where) || where.Stage != StagePartition || !errors.Is(err, disarmed) {
		t.Errorf("got %v", err)
	}
	if text.Len() > 0 {
		t.Errorf("this was done: %s", text.String())
	}

	// Once it is permitted, it goes on; also where the disk carries the plan
	// already, it is asked.
	rec := &Recorder{Out: &text, Ran: grub(plan)}
	for range 2 {
		asked := 0
		text.Reset()
		o.Work = t.TempDir()
		o.Permit = func(context.Context) error { asked++; text.WriteString("asked\n"); return nil }
		if err := Install(t.Context(), rec, plan, &image.Manifest, image, o); err != nil {
			t.Fatal(err)
		}
		if asked != 1 || !strings.HasPrefix(text.String(), "asked\n") {
			t.Errorf("asked %d times: %s", asked, text.String())
		}
	}
}

// What ends the install in one stage is noticed before the next.
func TestInstallEndsBetweenStages(t *testing.T) {
	needRoot(t)
	image := newImage(debianHead(), debianFiles())
	target := testTarget()
	target.ImageHead = image.Head
	plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	refused := errors.New("disarmed")
	ctx, cancel := context.WithCancelCause(t.Context())
	var text strings.Builder
	o := testOptions(t.TempDir(), nil)
	o.Report = func(r Report) {
		if r.Stage == StagePartition {
			cancel(refused)
		}
	}
	if err := Install(ctx, &Recorder{Out: &text}, plan, &image.Manifest, image, o); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if text.Len() > 0 {
		t.Errorf("this was done: %s", text.String())
	}
}

// RAID controllers show one serial number for all their volumes, and copied
// virtual disks have one, too: such a name means no disk.
func TestDiskNameOfSeveral(t *testing.T) {
	one := Disk{Path: "/dev/sda", Size: 64 * gib, Sector: 512, Bus: "scsi", Serial: "CTRL7", WWN: "0x6001"}
	two := Disk{Path: "/dev/sdb", Size: 64 * gib, Sector: 512, Bus: "scsi", Serial: "CTRL7", WWN: "0x6002"}
	again := one // a second path to the same
	again.Path = "/dev/sdc"
	for _, c := range []struct {
		named string
		disks []Disk
		want  string // path; empty: refused
	}{
		{"CTRL7", []Disk{one, two}, ""},
		{"/dev/sdb", []Disk{one, two}, "/dev/sdb"},
		{"6002", []Disk{one, two}, "/dev/sdb"},
		{"CTRL7", []Disk{one, again}, "/dev/sda"},
		{"CTRL7", []Disk{{Path: "/dev/sda", Size: 64 * gib, Serial: "CTRL7"}, {Path: "/dev/sdb", Size: 64 * gib, Serial: "CTRL7"}}, ""},
	} {
		target := testTarget()
		target.Disk = c.named
		plan, err := MakePlan(target, testHardware(BIOS, c.disks...))
		var no *DiskError
		switch {
		case c.want == "" && (!errors.As(err, &no) || len(no.Verdicts) != 2 || !strings.Contains(err.Error(), "2 disks")):
			t.Errorf("%s: %+v, %v", c.named, plan, err)
		case c.want != "" && (err != nil || plan.Disk.Path != c.want):
			t.Errorf("%s: %+v, %v; want %s", c.named, plan, err, c.want)
		}
	}
}
