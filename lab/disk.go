package lab

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// DiskPartition is a partition of a raw disk, as sfdisk and blkid see it.
type DiskPartition struct {
	Number int
	Offset int64 // bytes
	Size   int64 // bytes
	Type   string
	GUID   string
	FS     string // of blkid: ext4, vfat, swap, …; empty: none
	UUID   string // of the file system
}

// ReadDisk lists the partitions of a machine's disk, while it is off, and the
// GUID of its table.
func ReadDisk(ctx context.Context, disk string) (guid string, parts []DiskPartition, err error) {
	out, err := exec.CommandContext(ctx, "sfdisk", "--json", disk).Output()
	if err != nil {
		return "", nil, fmt.Errorf("reading the partitions of %s: %w", disk, err)
	}
	var t struct {
		Table struct {
			ID         string `json:"id"`
			SectorSize int64  `json:"sectorsize"`
			Partitions []struct {
				Start, Size int64
				Type, UUID  string
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &t); err != nil {
		return "", nil, fmt.Errorf("reading what sfdisk says of %s: %w", disk, err)
	}
	for i, p := range t.Table.Partitions {
		d := DiskPartition{Number: i + 1, Offset: p.Start * t.Table.SectorSize, Size: p.Size * t.Table.SectorSize, Type: p.Type, GUID: p.UUID}
		// blkid ends with 2 when it finds nothing.
		out, _ := exec.CommandContext(ctx, "blkid", "--probe", "--output", "export",
			"--offset", fmt.Sprint(d.Offset), "--size", fmt.Sprint(d.Size), disk).Output()
		for line := range strings.Lines(string(out)) {
			switch k, v, _ := strings.Cut(strings.TrimSpace(line), "="); k {
			case "TYPE":
				d.FS = v
			case "UUID":
				d.UUID = v
			}
		}
		parts = append(parts, d)
	}
	return t.Table.ID, parts, nil
}

//go:embed mounted.sh
var mountedScript string

// OnDisk runs a command with the file systems of a machine's disk mounted
// read-only, as its own fstab says, at the directory that the command's
// arguments name as @ROOT@. The mounts are in a mount name space of the
// command's own. vfat, which is the ESP, is left out: many kernels of virtual
// machines cannot mount it.
func OnDisk(ctx context.Context, disk, dir string, out io.Writer, name string, args ...string) error {
	_, parts, err := ReadDisk(ctx, disk)
	if err != nil {
		return err
	}
	var table bytes.Buffer
	for _, p := range parts {
		if p.FS == "ext4" || p.FS == "xfs" || p.FS == "ext3" || p.FS == "ext2" {
			fmt.Fprintf(&table, "%s %d %d\n", p.UUID, p.Offset, p.Size)
		}
	}
	argv := []string{"--mount", "--propagation", "private", "sh", "-euc", mountedScript, "mounted.sh", disk, dir, table.String(), name}
	for _, a := range args {
		argv = append(argv, strings.ReplaceAll(a, "@ROOT@", dir))
	}
	cmd := exec.CommandContext(ctx, "unshare", argv...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}
