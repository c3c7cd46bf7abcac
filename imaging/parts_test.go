package imaging

import (
	"fmt"
	"strings"
	"testing"
)

const partsTable = `22 1 0:30 /@ / rw,relatime shared:1 - btrfs /dev/sda2 rw,subvolid=256
23 22 0:4 / /proc rw - proc proc rw
24 23 0:40 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
25 22 0:30 /@home /home rw shared:2 - btrfs /dev/sda2 rw,subvolid=257
26 22 8:1 / /boot ro - ext4 /dev/sda1 ro
27 22 0:41 / /srv/nfs rw - nfs4 server:/x rw
28 27 8:5 / /srv/nfs/local rw - ext4 /dev/sda5 rw
29 22 254:1 / /srv/db rw - xfs /dev/mapper/vg-db rw
30 22 254:1 /sub /srv/again rw - xfs /dev/mapper/vg-db rw
31 22 8:6 / /scratch rw - ext4 /dev/sda6 rw
32 31 8:7 / /scratch/below rw - ext4 /dev/sda7 rw
33 25 0:42 / /home/tmp rw - tmpfs tmpfs rw
`

// Of the mounts those are listed that a scan looks at, and those read whose
// contents are in the image.
func TestParts(t *testing.T) {
	for _, tt := range []struct {
		root string
		req  ScanRequest
		want string
	}{
		{"/", ScanRequest{Exclude: []string{"scratch"}},
			". btrfs /@ read, proc proc /, home btrfs /@home read, boot ext4 / read ro, scratch ext4 /, srv/db xfs / read, srv/again xfs /sub, home/tmp tmpfs /"},
		{"/", ScanRequest{OneFileSystem: true},
			". btrfs /@ read, proc proc /, home btrfs /@home, boot ext4 / ro, scratch ext4 /, srv/db xfs /, srv/again xfs /sub"},
		{"/home", ScanRequest{}, ". btrfs /@home read, tmp tmpfs /"},
		{"/srv/db/data", ScanRequest{}, ". xfs /data read"},
	} {
		m, err := ReadMounts(strings.NewReader(partsTable), tt.root)
		must(t, err)
		parts, entered, err := m.Parts(tt.req)
		must(t, err)
		var got []string
		for _, p := range parts {
			s := p.Path + " " + p.FS + " " + p.Root
			if p.Read {
				s += " read"
			}
			if p.ReadOnly {
				s += " ro"
			}
			got = append(got, s)
			if p.Read != entered(p.Path) {
				t.Errorf("%s: read %v, entered %v", p.Path, p.Read, entered(p.Path))
			}
		}
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("%s %+v:\n%s, want\n%s", tt.root, tt.req, strings.Join(got, ", "), tt.want)
		}
	}
	m, err := ReadMounts(strings.NewReader(partsTable), "/")
	must(t, err)
	if got := fmt.Sprintf("%s %s %s %d %d", m.Device("/srv/db/x"), m.Device("/home"), m.Device("/etc"), len(m.OfType("btrfs")), len(m.OfType("ext4"))); got != "254:1 0:30 0:30 1 4" {
		t.Errorf("devices: %s", got)
	}
	if _, _, err := m.Parts(ScanRequest{Exclude: []string{"["}}); err == nil {
		t.Error("a bad pattern is taken")
	}
}

func TestSnapshotMode(t *testing.T) {
	for _, m := range []SnapshotMode{SnapshotOff, SnapshotAuto, SnapshotRequire} {
		var back SnapshotMode
		b, err := m.MarshalText()
		must(t, err, back.UnmarshalText(b))
		if back != m {
			t.Errorf("%s is read as %s", m, back)
		}
	}
	if err := new(SnapshotMode).UnmarshalText([]byte("Auto")); err == nil {
		t.Error("Auto is taken")
	}
	// Without anything that keeps still, a scan that is asked to is refused.
	if err := NewLocal(t.TempDir()).Scan(t.Context(), ScanRequest{Consistency: Consistency{Snapshot: SnapshotAuto}}, nil); err == nil {
		t.Error("it was taken for a live scan")
	}
}
