package web

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
)

// installable is what an image of 1 GiB that any firmware starts says of
// itself.
func installable() imaging.Head {
	return imaging.Head{
		Facts: imaging.Facts{Arch: "x86_64", OSRelease: map[string]string{"ID": "debian"}},
		Boot: imaging.Boot{
			Kernels: []imaging.Kernel{{Release: "6.1.0", Path: "boot/vmlinuz-6.1.0", Initrd: "boot/initrd.img-6.1.0", Modules: "usr/lib/modules/6.1.0"}},
			Loaders: []string{"grub-bios", "grub-uefi"},
			Tools:   []string{"usr/sbin/grub-install", "usr/sbin/grub-mkconfig", "usr/sbin/mkfs.ext4", "usr/sbin/mkfs.vfat", "usr/sbin/mkswap"},
		},
		Entries: 30_000, Bytes: 1 << 30,
	}
}

// What the rule of the disk does not decide, the real planner refuses: the
// node is Failed, its disk untouched, and status lists the disks with what
// speaks for and against each.
func TestOrdersByDisks(t *testing.T) {
	disk := func(path, serial string, size int64) clone.Disk {
		return clone.Disk{Path: path, Size: size, Sector: 512, Bus: "sata", Serial: serial}
	}
	small, one, two := disk("/dev/sda", "SMALL1", 1<<30), disk("/dev/sdb", "LARGE1", 64<<30), disk("/dev/sdc", "LARGE2", 32<<30)
	stick := disk("/dev/sdd", "STICK1", 64<<30)
	stick.Bus = "usb"
	for _, test := range []struct {
		name  string
		named string
		disks []clone.Disk
		says  []string // empty: planned
	}{
		{"no disk", "", nil, []string{"node001 has no disk"}},
		{"too small", "", []clone.Disk{small}, []string{"no disk that qualifies", "/dev/sda [1.0 GiB sata SMALL1]", "is too small: need "}},
		{"several", "", []clone.Disk{small, one, two}, []string{"2 disks that qualify", "/dev/sda", "SMALL1] is too small", "/dev/sdb [64.0 GiB sata LARGE1] qualifies", "/dev/sdc [32.0 GiB sata LARGE2] qualifies", "--disk LARGE1"}},
		{"USB alone", "", []clone.Disk{stick}, []string{"/dev/sdd", "is on USB", "--disk STICK1"}},
		{"named, and not there", "/dev/nvme0n1", []clone.Disk{one}, []string{"no disk /dev/nvme0n1", "/dev/sdb"}},
		{"one that fits", "", []clone.Disk{small, one, stick}, nil},
		{"several, one named", "LARGE2", []clone.Disk{one, two}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.machines.Plan = clone.MakePlan
			b.head = installable()
			commit(t, b.cluster, cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Addr: addrOf(11), Role: cluster.Compute}}}, cluster.Assign{MAC: mac(11), Node: "node001"},
				cluster.Arm{Node: "node001", Install: newInstall(), Image: "head@1", Digest: digest, Disk: test.named, After: "reboot"})
			m := b.machine(addrOf(11))
			m.enrol("node001", boot1)
			hw := hardware(11)
			hw.Disks = test.disks
			var o clone.Orders
			if status, why := m.ask("/v1/orders", hw, &o); status != 200 {
				t.Fatalf("orders: %d, %s", status, why)
			}
			n := b.node("node001")
			if len(test.says) == 0 {
				if n.State != cluster.Installing || o.Plan == nil || o.Refused != "" || o.Plan.DiskRule == "" {
					t.Fatalf("it is %s: %s; orders %+v", n.State, n.Reason, o)
				}
				return
			}
			if n.State != cluster.Failed || o.Plan != nil || o.Cluster != nil || o.Refused != n.Reason {
				t.Errorf("it is %s: %s; orders %+v", n.State, n.Reason, o)
			}
			status := httptest.NewRecorder()
			admin := &Admin{Cluster: b.cluster, CheckDeploy: checkDeploy, Log: slog.New(slog.DiscardHandler)}
			admin.Handler().ServeHTTP(status, httptest.NewRequest("GET", pathStatus, nil))
			for _, want := range test.says {
				if !strings.Contains(n.Reason, want) || !strings.Contains(status.Body.String(), want) {
					t.Errorf("the reason lacks %q: %s\nstatus: %s", want, n.Reason, status.Body)
				}
			}
			// It is not armed any more: the same machine gets nothing by asking again.
			if status, why := m.ask("/v1/orders", hw, nil); status != 403 {
				t.Errorf("asked again: %d, %s", status, why)
			}
		})
	}
}

// A disk that fills up on the node: the reason that the installer gives is the
// one that status shows.
func TestDiskFullOnTheNode(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	if status, why := m.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Fatalf("orders: %d, %s", status, why)
	}
	why := (&clone.StageError{Stage: clone.StageApply, Err: &imaging.SpaceError{Path: "/run/doppel/target", Need: 12 << 20, Have: 4 << 20}}).Error()
	if status, no := m.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFailed, Detail: why}, nil); status != 204 {
		t.Fatalf("report: %d, %s", status, no)
	}
	if n := b.node("node001"); n.State != cluster.Failed || n.Reason != why || !strings.Contains(why, "4194304 bytes free and 12582912 are needed") {
		t.Errorf("it is %s: %s", n.State, n.Reason)
	}
}
