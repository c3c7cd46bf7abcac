package clone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"
)

// efiOption is an EFI_LOAD_OPTION: what a Boot#### variable holds (UEFI
// specification, section 3.1.3).
type efiOption struct {
	Attributes uint32
	Label      string
	Path       []byte // device path
	Data       []byte
}

const efiActive = 1 // LOAD_OPTION_ACTIVE

// marshal writes the option as the firmware keeps it.
func (o efiOption) marshal() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, o.Attributes)
	b = le.AppendUint16(b, uint16(len(o.Path)))
	b = appendUTF16(b, o.Label)
	b = append(b, o.Path...)
	return append(b, o.Data...)
}

// parseEFIOption reads a Boot#### variable's value.
func parseEFIOption(b []byte) (efiOption, error) {
	le := binary.LittleEndian
	if len(b) < 8 {
		return efiOption{}, fmt.Errorf("a boot entry of %d bytes is too short", len(b))
	}
	o := efiOption{Attributes: le.Uint32(b)}
	n := int(le.Uint16(b[4:]))
	rest := b[6:]
	var label []uint16
	for {
		if len(rest) < 2 {
			return efiOption{}, fmt.Errorf("a boot entry's label does not end")
		}
		u := le.Uint16(rest)
		rest = rest[2:]
		if u == 0 {
			break
		}
		label = append(label, u)
	}
	if len(rest) < n {
		return efiOption{}, fmt.Errorf("a boot entry's device path of %d bytes is cut off", n)
	}
	o.Label = string(utf16.Decode(label))
	o.Path, o.Data = bytes.Clone(rest[:n]), bytes.Clone(rest[n:])
	return o, nil
}

// efiDevicePath leads to a file on a GPT partition: a hard drive node, a file
// path node and the end (UEFI specification, sections 10.3.5.1 and 10.3.5.4).
func efiDevicePath(p Partition, sector int, loader string) ([]byte, error) {
	id, err := uuid.Parse(p.GUID)
	if err != nil {
		return nil, fmt.Errorf("the GUID of partition %d: %w", p.Number, err)
	}
	le := binary.LittleEndian
	b := []byte{4, 1, 42, 0} // media, hard drive, 42 bytes
	b = le.AppendUint32(b, uint32(p.Number))
	b = le.AppendUint64(b, uint64(p.Start)/uint64(sector))
	b = le.AppendUint64(b, uint64(p.Size)/uint64(sector))
	// The first three fields of a GUID are little endian on disk.
	b = append(b, id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6])
	b = append(b, id[8:]...)
	b = append(b, 2, 2) // GPT; the signature is a GUID
	file := appendUTF16(nil, `\`+strings.ReplaceAll(strings.Trim(loader, "/"), "/", `\`))
	b = append(b, 4, 4)
	b = le.AppendUint16(b, uint16(4+len(file)))
	b = append(b, file...)
	return append(b, 0x7f, 0xff, 4, 0), nil
}

// appendUTF16 appends s as UTF-16, little endian, with a closing zero.
func appendUTF16(b []byte, s string) []byte {
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, 0, 0)
}

// bootOrderWith puts entry n into a BootOrder value that lacks it: right behind
// current, the network boot that this machine came from, or else at the end.
// What the order has stays in its order: network boot goes before the disk, and
// doppel tells the machine there to start from its disk. What firmware would try
// in between (network boot by HTTP, by IPv6, by other cards) waits a minute each
// for a server that is not there.
func bootOrderWith(order []byte, n uint16, current []byte) []byte {
	order = bytes.Clone(order[:len(order)/2*2])
	entry := binary.LittleEndian.AppendUint16(nil, n)
	at := len(order)
	for i := 0; i < len(order); i += 2 {
		switch here := order[i : i+2]; {
		case bytes.Equal(here, entry):
			return order
		case bytes.Equal(here, current):
			at = i + 2
		}
	}
	return slices.Insert(order, at, entry...)
}
