package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"doppel/clone"
)

// sysfs is where the kernel shows its devices; tests give another.
type sysfs string

func (s sysfs) path(elem ...string) string {
	return filepath.Join(append([]string{string(s)}, elem...)...)
}

// text reads an attribute; one that is not there is empty.
func (s sysfs) text(elem ...string) string {
	b, err := os.ReadFile(s.path(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.Trim(string(b), "\x00"))
}

func (s sysfs) number(elem ...string) int64 {
	n, _ := strconv.ParseInt(s.text(elem...), 10, 64)
	return n
}

// hardware says what this machine is.
func (s sysfs) hardware(guid func(disk string) string) (clone.Hardware, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return clone.Hardware{}, fmt.Errorf("asking for the machine's architecture: %w", err)
	}
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err != nil {
		return clone.Hardware{}, fmt.Errorf("asking for the machine's memory: %w", err)
	}
	hw := clone.Hardware{
		MACs:     s.macs(),
		UUID:     strings.ToLower(s.text("class/dmi/id/product_uuid")),
		Arch:     unix.ByteSliceToString(u.Machine[:]),
		Firmware: s.firmware(),
		Memory:   int64(mem.Totalram) * int64(mem.Unit),
		Disks:    s.disks(),
	}
	for i := range hw.Disks {
		hw.Disks[i].GUID = guid(hw.Disks[i].Path)
	}
	return hw, nil
}

func (s sysfs) firmware() clone.Firmware {
	if _, err := os.Stat(s.path("firmware/efi")); err == nil {
		return clone.UEFI
	}
	return clone.BIOS
}

// macs are the addresses of the machine's own Ethernet cards.
func (s sysfs) macs() []string {
	var macs []string
	cards, _ := filepath.Glob(s.path("class/net/*/device"))
	for _, c := range cards {
		name := filepath.Base(filepath.Dir(c))
		mac, err := net.ParseMAC(s.text("class/net", name, "address"))
		if err == nil && len(mac) == 6 && s.number("class/net", name, "type") == unix.ARPHRD_ETHER {
			macs = append(macs, mac.String())
		}
	}
	return macs
}

// notDisks are block devices that no install goes to: those made of others or
// of memory, floppies, optical drives, and the boot areas of eMMC.
var notDisks = regexp.MustCompile(`^(loop|ram|zram|dm-|md|nbd|sr|fd|mtdblock|drbd|rbd|bcache)|^mmcblk[0-9]+(boot|rpmb|gp)`)

func (s sysfs) disks() []clone.Disk {
	var disks []clone.Disk
	blocks, _ := filepath.Glob(s.path("block/*"))
	for _, b := range blocks {
		name := filepath.Base(b)
		// The kernel counts in 512 bytes whatever the sector is.
		size := s.number("block", name, "size") * 512
		if notDisks.MatchString(name) || size == 0 {
			continue
		}
		// Hidden paths of multipath NVMe have no node.
		if s.number("block", name, "hidden") == 1 {
			continue
		}
		disks = append(disks, s.disk(name, size))
	}
	return disks
}

func (s sysfs) disk(name string, size int64) clone.Disk {
	d := clone.Disk{
		Path:      "/dev/" + strings.ReplaceAll(name, "!", "/"),
		Size:      size,
		Sector:    int(max(s.number("block", name, "queue/logical_block_size"), 512)),
		Model:     s.text("block", name, "device/model"),
		Serial:    s.serial(name),
		WWN:       s.wwn(name),
		Removable: s.number("block", name, "removable") == 1,
		ReadOnly:  s.number("block", name, "ro") == 1,
	}
	device, err := filepath.EvalSymlinks(s.path("block", name))
	if err == nil {
		d.Bus = busOf(device)
	}
	d.Links = linksOf(d, s.text("block", name, "device/vendor"), s.text("block", name, "wwid"), device)
	return d
}

func (s sysfs) serial(name string) string {
	// virtio, then NVMe and MMC; SCSI and SATA say it in VPD page 0x80, after a
	// header of four bytes.
	for _, attr := range []string{"serial", "device/serial"} {
		if v := s.text("block", name, attr); v != "" {
			return v
		}
	}
	if b, err := os.ReadFile(s.path("block", name, "device/vpd_pg80")); err == nil && len(b) > 4 {
		return strings.TrimSpace(strings.Trim(string(b[4:]), "\x00"))
	}
	return ""
}

// wwn is the World Wide Name as tools write it: 0x and hexadecimal digits, or
// NVMe's eui. and uuid. forms.
func (s sysfs) wwn(name string) string {
	for _, attr := range []string{"wwid", "device/wwid"} {
		v := s.text("block", name, attr)
		if hex, ok := strings.CutPrefix(v, "naa."); ok {
			return "0x" + hex
		}
		if strings.HasPrefix(v, "eui.") || strings.HasPrefix(v, "uuid.") {
			return v
		}
	}
	return ""
}

// busOf reads how a disk hangs on the machine off its place in the tree of
// devices. The nearest bus counts: a SATA disk in a USB case is USB.
func busOf(device string) string {
	for _, b := range []struct{ part, bus string }{
		{"/usb", "usb"}, {"/nvme", "nvme"}, {"/virtio", "virtio"}, {"/mmc", "mmc"}, {"/ata", "sata"},
		{"/vmbus", "hyperv"}, {"/VMBUS", "hyperv"}, {"/vbd-", "xen"}, {"/end_device-", "sas"}, {"/host", "scsi"},
	} {
		if strings.Contains(device, b.part) {
			return b.bus
		}
	}
	return ""
}

var (
	pciAddress = regexp.MustCompile(`/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/`)
	nvmePlace  = regexp.MustCompile(`/nvme[0-9]+n([0-9]+)$`)
)

// linksOf are the names that udev would make below /dev/disk for a disk (rules
// 60-persistent-storage), so that an operator may name it by one.
func linksOf(d clone.Disk, vendor, wwid, device string) []string {
	var links []string
	add := func(name string) { links = append(links, name) }
	model, serial := udevName(d.Model), udevName(d.Serial)
	var pci string
	if m := pciAddress.FindAllStringSubmatch(device+"/", -1); len(m) > 0 {
		pci = m[len(m)-1][1]
	}
	switch d.Bus {
	case "virtio":
		if serial != "" && model == "" {
			add("by-id/virtio-" + serial)
		}
		if pci != "" {
			add("by-path/pci-" + pci)
			add("by-path/virtio-pci-" + pci)
		}
	case "nvme":
		if serial != "" {
			add("by-id/nvme-" + model + "_" + serial)
		}
		if wwid != "" {
			add("by-id/nvme-" + wwid)
		}
		if m := nvmePlace.FindStringSubmatch(device); m != nil && pci != "" {
			add("by-path/pci-" + pci + "-nvme-" + m[1])
		}
	case "sata":
		if serial != "" {
			add("by-id/ata-" + model + "_" + serial)
		}
	case "sas", "scsi":
		if hex, ok := strings.CutPrefix(d.WWN, "0x"); ok {
			add("by-id/scsi-3" + hex)
		}
	case "usb":
		if serial != "" {
			add("by-id/usb-" + udevName(vendor) + "_" + model + "_" + serial + "-0:0")
		}
	}
	if strings.HasPrefix(d.WWN, "0x") {
		add("by-id/wwn-" + d.WWN)
	}
	return links
}

// udevName writes a word as udev does: runs of blanks are one underscore, and
// what has no place in a file name is one, too.
func udevName(s string) string {
	s = strings.Join(strings.Fields(s), "_")
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("#+-.:=@_", r):
			return r
		}
		return '_'
	}, s)
}

// gptGUID tells the GUID of a disk's GPT, empty when it has none.
func gptGUID(ctx context.Context, m clone.Machine) func(disk string) string {
	return func(disk string) string {
		t, err := m.ReadTable(ctx, disk)
		if err != nil || t == nil {
			return ""
		}
		return t.GUID
	}
}
