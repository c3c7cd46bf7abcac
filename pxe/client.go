package pxe

import (
	"strings"

	"doppel/dhcpd"
)

// Arch is what kind of machine code a client's firmware runs.
type Arch uint8

const (
	ArchOther   Arch = iota // nothing we have a loader for: 32-bit UEFI, RISC-V, …
	ArchBIOS                // x86 with a BIOS
	ArchX8664               // x86-64 with UEFI
	ArchARM64               // 64-bit Arm with UEFI
	ArchUnknown             // it did not say
)

// String is the name that sightings and configuration use.
func (a Arch) String() string {
	switch a {
	case ArchBIOS:
		return "bios"
	case ArchX8664:
		return "uefi-x86_64"
	case ArchARM64:
		return "uefi-arm64"
	case ArchUnknown:
		return "unknown"
	}
	return "other"
}

// Via is how a client asks to boot.
type Via uint8

const (
	Plain Via = iota // it does not: an operating system wants an address
	ROM              // a boot ROM: DHCP, then TFTP
	HTTP             // UEFI HTTP boot
	IPXE             // iPXE already
)

func (v Via) String() string {
	return [...]string{"plain", "rom", "http", "ipxe"}[v&3]
}

// Client is what asks.
type Client struct {
	Arch Arch
	Via  Via
}

// ClientOf reads a DHCP query. The architecture is option 93's word, not that
// of the vendor class: both PXEClient and HTTPClient strings carry an
// architecture, and firmware has been seen to get it wrong there.
func ClientOf(q dhcpd.Query) Client {
	c := Client{Arch: archOf(q.Arch)}
	switch {
	case q.IPXE:
		c.Via = IPXE
	case q.HTTPBoot:
		c.Via = HTTP
	case q.PXE:
		c.Via = ROM
	}
	// A boot ROM without option 93 is older than RFC 4578, and so a BIOS.
	if c.Via == ROM && c.Arch == ArchUnknown {
		c.Arch = ArchBIOS
	}
	return c
}

// archOf takes the first architecture we can serve. The numbers are IANA's
// "Processor Architecture Types": RFC 4578 gave 7 to EFI byte code and 9 to
// x86-64, an erratum swapped them, and firmware says either for x86-64.
func archOf(types []uint16) Arch {
	for _, t := range types {
		switch t {
		case 0x00, 0x14: // x86 BIOS; x86 BIOS by HTTP
			return ArchBIOS
		case 0x07, 0x09, 0x10, 0x11: // x86-64 UEFI; the same by HTTP
			return ArchX8664
		case 0x0b, 0x13: // 64-bit Arm UEFI; the same by HTTP
			return ArchARM64
		}
	}
	if len(types) == 0 {
		return ArchUnknown
	}
	return ArchOther
}

// archOfIPXE reads what iPXE says of itself in its script's address: platform
// is pcbios or efi, and buildarch is what the binary was compiled for
// (undionly.kpxe is i386 on every machine).
func archOfIPXE(platform, buildarch string) Arch {
	switch {
	case platform == "" && buildarch == "":
		return ArchUnknown
	case strings.EqualFold(platform, "pcbios"):
		return ArchBIOS
	case strings.EqualFold(buildarch, "x86_64"):
		return ArchX8664
	case strings.EqualFold(buildarch, "arm64"):
		return ArchARM64
	}
	return ArchOther
}

// Runs tells whether firmware of the architecture can start a kernel for
// machine, which is a name as uname -m gives it. iPXE on a BIOS says nothing
// about the processor's 64-bit mode; every x86 machine a cluster has today has
// one.
func (a Arch) Runs(machine string) bool {
	switch a {
	case ArchBIOS, ArchX8664:
		return machine == "x86_64"
	case ArchARM64:
		return machine == "aarch64"
	}
	return false
}
