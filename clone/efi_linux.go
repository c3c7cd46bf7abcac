package clone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	efiVars   = "/sys/firmware/efi/efivars"
	efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

	immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
)

// BootEntry writes a Boot#### variable through efivarfs, unless one with the
// same label and path is there.
func (l *Linux) BootEntry(ctx context.Context, plan *Plan, e BootEntry) error {
	var fst unix.Statfs_t
	if err := unix.Statfs(efiVars, &fst); err != nil {
		return fmt.Errorf("add a boot entry: the kernel shows no EFI variables: %w", err)
	}
	if fst.Type != unix.EFIVARFS_MAGIC {
		if err := l.Mount(ctx, Mount{Source: "efivarfs", Dir: efiVars, Type: "efivarfs"}); err != nil {
			return fmt.Errorf("add a boot entry: %w", err)
		}
	}
	return addBootEntry(efiVars, plan, e)
}

// addBootEntry works on a directory of variables as efivarfs shows it: each a
// file, NAME-GUID, of four bytes of attributes and the value.
func addBootEntry(dir string, plan *Plan, e BootEntry) error {
	var part *Partition
	for i := range plan.Partitions {
		if plan.Partitions[i].Number == e.Partition {
			part = &plan.Partitions[i]
		}
	}
	if part == nil {
		return fmt.Errorf("add a boot entry: the plan has no partition %d", e.Partition)
	}
	sector := plan.Disk.Sector
	if sector == 0 {
		sector = 512
	}
	path, err := efiDevicePath(*part, sector, e.Loader)
	if err != nil {
		return fmt.Errorf("add a boot entry: %w", err)
	}
	want := efiOption{Attributes: efiActive, Label: e.Label, Path: path}.marshal()
	number, there, err := bootNumber(dir, e.Label, want)
	if err != nil {
		return fmt.Errorf("add a boot entry: %w", err)
	}
	if !there {
		if err := writeEFIVar(dir, fmt.Sprintf("Boot%04X", number), want); err != nil {
			return fmt.Errorf("add a boot entry: %w", err)
		}
	}
	order, err := readEFIVar(dir, "BootOrder")
	if err != nil {
		return fmt.Errorf("add a boot entry: %w", err)
	}
	current, err := readEFIVar(dir, "BootCurrent") // not there on some firmware
	if err != nil {
		return fmt.Errorf("add a boot entry: %w", err)
	}
	if wanted := bootOrderWith(order, number, current); !bytes.Equal(order, wanted) {
		if err := writeEFIVar(dir, "BootOrder", wanted); err != nil {
			return fmt.Errorf("add a boot entry: %w", err)
		}
	}
	return nil
}

// bootNumber finds the entry with the label, or the first number that is free,
// and tells whether it holds want already.
func bootNumber(dir, label string, want []byte) (n uint16, there bool, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "Boot????-"+efiGlobal))
	if err != nil {
		return 0, false, err
	}
	taken := make(map[uint16]bool)
	for _, name := range names {
		hex := strings.TrimPrefix(filepath.Base(name), "Boot")[:4]
		v, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			continue
		}
		taken[uint16(v)] = true
		value, err := readEFIVar(dir, "Boot"+hex)
		if err != nil {
			return 0, false, err
		}
		if o, err := parseEFIOption(value); err == nil && o.Label == label {
			return uint16(v), bytes.Equal(value, want), nil
		}
	}
	for taken[n] {
		if n++; n == 0xffff {
			return 0, false, errors.New("every boot entry is taken")
		}
	}
	return n, false, nil
}

// readEFIVar reads a global variable's value; nil when there is none.
func readEFIVar(dir, name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, name+"-"+efiGlobal))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("the EFI variable %s has %d bytes", name, len(b))
	}
	return b[4:], nil
}

// writeEFIVar writes a global variable in one write, as efivarfs demands.
// Variables that are there are immutable files, so that no rm -r bricks a
// machine; the mark has to come off first.
func writeEFIVar(dir, name string, value []byte) error {
	at := filepath.Join(dir, name+"-"+efiGlobal)
	if err := clearImmutable(at); err != nil {
		return fmt.Errorf("write the EFI variable %s: %w", name, err)
	}
	const attributes = 7 // non-volatile, for boot services, for the running system
	b := binary.LittleEndian.AppendUint32(nil, attributes)
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write the EFI variable %s: %w", name, err)
	}
	_, err = f.Write(append(b, value...))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the EFI variable %s: %w", name, err)
	}
	return nil
}

func clearImmutable(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) {
		return nil // no file system with such marks
	}
	if err != nil {
		return err
	}
	if flags&immutable == 0 {
		return nil
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^immutable))
}
