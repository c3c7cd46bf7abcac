package clone

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
)

var installID = regexp.MustCompile(`^[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}$`)

// MakePlan decides what the machine hw is to become, by what the inventory
// says of it. It is pure: the same machine and target give the same plan, so
// that a machine that comes back after a power cut continues its own.
//
// A machine or an image that cannot do it gives a *RefusedError; no disk, or a
// choice that is the operator's, a *DiskError.
func MakePlan(t Target, hw Hardware) (*Plan, error) {
	if err := checkTarget(t, hw); err != nil {
		return nil, err
	}
	draft := draftLayout(t, hw)
	disk, rule, err := chooseDisk(t, hw, draft.least())
	if err != nil {
		return nil, err
	}
	p := &Plan{
		ID:       t.Install,
		Node:     t.Node,
		Domain:   t.Domain,
		Role:     t.Role,
		Image:    t.Image,
		Arch:     hw.Arch,
		Firmware: hw.Firmware,
		Disk:     disk,
		DiskRule: rule,
		MAC:      strings.ToLower(t.MAC),
		Addr:     t.Addr,
		Gateway:  t.Gateway,
		DNS:      t.DNS,
		After:    t.After,
		Server:   t.Server,
	}
	if p.After == "" {
		p.After = "reboot"
	}
	p.Partitions, p.Notes = draft.place(t.Install, disk.Size)
	return p, nil
}

func checkTarget(t Target, hw Hardware) error {
	switch {
	case !installID.MatchString(t.Install):
		return fmt.Errorf("plan an install: %q is not the id of an install", t.Install)
	case t.Node == "":
		return fmt.Errorf("plan install %s: the node has no name", t.Install)
	case t.Role != roleCompute && t.Role != roleHead:
		return fmt.Errorf("plan install %s: %q is not a role", t.Install, t.Role)
	case hw.Firmware != BIOS && hw.Firmware != UEFI:
		return fmt.Errorf("plan install %s: the machine's firmware is %q, neither bios nor uefi", t.Install, hw.Firmware)
	case !t.Addr.IsValid():
		return fmt.Errorf("plan install %s: %s has no address", t.Install, t.Node)
	}
	if arch := t.ImageHead.Facts.Arch; arch != "" && hw.Arch != "" && arch != hw.Arch {
		return &RefusedError{
			What: fmt.Sprintf("image %s is for %s machines and %s is %s", t.Image, arch, t.Node, hw.Arch),
			Hint: "deploy an image captured from a head of the same architecture",
		}
	}
	return Check(t.ImageHead, hw.Firmware)
}

// deriveUUID makes a UUID out of the plan's id and what it is for, so that
// making a plan twice names everything alike.
func deriveUUID(id, what string) string {
	sum := sha256.Sum256([]byte("doppel\x00" + id + "\x00" + what))
	sum[6] = sum[6]&0x0f | 0x40 // version 4: says nothing about how it came to be
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// deriveSerial is deriveUUID for FAT, whose serial number has 32 bits.
func deriveSerial(id, what string) string {
	sum := sha256.Sum256([]byte("doppel\x00" + id + "\x00" + what))
	return fmt.Sprintf("%04X-%04X", binary.BigEndian.Uint16(sum[:]), binary.BigEndian.Uint16(sum[2:]))
}

// FileSystemAt finds the plan's partition that is mounted at dir; nil when
// there is none.
func (p *Plan) FileSystemAt(dir string) *Partition {
	for i := range p.Partitions {
		if fs := p.Partitions[i].FS; fs != nil && fs.Mount == dir {
			return &p.Partitions[i]
		}
	}
	return nil
}

// ESP finds the plan's EFI system partition; nil when there is none.
func (p *Plan) ESP() *Partition {
	for i := range p.Partitions {
		if p.Partitions[i].Type == typeESP {
			return &p.Partitions[i]
		}
	}
	return nil
}

// PartitionPath is the node of a disk's partition: /dev/vda1, and
// /dev/nvme0n1p1 where the disk's own name ends in a digit.
func PartitionPath(disk string, number int) string {
	sep := ""
	if disk != "" && disk[len(disk)-1] >= '0' && disk[len(disk)-1] <= '9' {
		sep = "p"
	}
	return fmt.Sprintf("%s%s%d", disk, sep, number)
}

// String shows the plan to a person.
func (p *Plan) String() string {
	var b strings.Builder
	name := p.Node
	if p.Domain != "" {
		name += "." + p.Domain
	}
	fmt.Fprintf(&b, "%s (%s) becomes %s, %s firmware, address %s on %s", name, p.Role, p.Image, p.Firmware, p.Addr, p.MAC)
	if p.Gateway.IsValid() {
		fmt.Fprintf(&b, " by %s", p.Gateway)
	}
	fmt.Fprintf(&b, ", then %s\ndisk %s: %s\n", p.After, p.Disk, p.DiskRule)
	for _, q := range p.Partitions {
		what := "no file system"
		switch q.Type {
		case typeBIOSBoot:
			what = "GRUB"
		}
		if fs := q.FS; fs != nil {
			what = fs.Type + " " + fs.UUID
			if fs.Label != "" {
				what += fmt.Sprintf(" %q", fs.Label)
			}
			if fs.Mount != "" {
				what += " on " + fs.Mount
			}
		}
		fmt.Fprintf(&b, "%3d  %10d +%-10d KiB  %s  %s %q  %s\n", q.Number, q.Start>>10, q.Size>>10, q.Type, q.GUID, q.Name, what)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}
